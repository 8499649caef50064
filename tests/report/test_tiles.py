"""Tiles and the header line: what is read has two significant digits and says what it is of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.records.comparison import ComparedArm, Pair
from moe_eval.records.headline import Header, Headline, HeadlineFigure
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Interval
from moe_eval.records.verdicts import QualityVerdict, Rules, Verdict
from moe_eval.report import readable, tiles
from moe_eval.report.tiles import Tile
from tests.doubles import compared_arms

SHAPE = "b32_i512_o256"
HEADLINES = (
    Headline(HeadlineFigure.SPEED_UP, SHAPE, 5007.43, 3480.06, 1.43889, 1.43010, 1.44774, "pays"),
    Headline(HeadlineFigure.OUTPUT_TOK_S_PER_GPU, SHAPE, 1635.97, 2353.99, 1.43889, 1.43010, 1.44774, "pays"),
    Headline(HeadlineFigure.TTFT_MS, SHAPE, 69.2, 84.02, 0.823, 0.741, 0.917, "slower"),
    Headline(HeadlineFigure.QUALITY, None, 14.2213, 14.2784, 1.00402, 1.00239, 1.00565, QualityVerdict.COSTS.value),
    Headline(HeadlineFigure.MEMORY_GIB, None, 56.8705, 29.0268, 1.95924),
    Headline(HeadlineFigure.J_PER_TOK, SHAPE, 0.32626, 0.21064, 1.54887, None, None, "quick look"),
)


def pair(*headlines: Headline) -> Pair:
    return replace(compared_arms.comparison().pairs[0], headlines=headlines)


def test_every_headline_is_a_tile_with_its_interval_and_verdict() -> None:
    shown = tiles.of_pair(pair(*HEADLINES), Rules())
    assert shown == (
        Tile("Speed-up", "1.44x", "1.43 to 1.45, end to end", "pays", "good"),
        Tile("Output per GPU", "2,400 tok/s", "1.44x (1.43 to 1.45), bf16 1,600 tok/s", "better", "good"),
        Tile("Time to first token", "84 ms", "0.82x (0.74 to 0.92), bf16 69 ms", "worse", "bad"),
        Tile("Quality", "+0.40 %", "perplexity, +0.24 to +0.56", "costs", "bad"),
        Tile("Weights per GPU", "29 GiB", "bf16 57 GiB, 49 % less", "", "open"),
        Tile("Energy per token", "0.21 J", "1.55x (no interval), bf16 0.33 J", "quick look", "open"),
    )
    assert shown[2].line == "84 ms, 0.82x (0.74 to 0.92), bf16 69 ms: worse"
    assert tiles.place_of(pair(*HEADLINES)) == "batch 32, 512 tokens in, 256 out"
    assert tiles.of_pair(pair(), Rules()) == ()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ((1.016, 1.003, 1.029), ("1.016x", "1.003 to 1.029")),
        ((1.0104, 1.0101, 1.02), ("1.0104x", "1.0101 to 1.0200")),  # above the least gain, and seen to be
        ((1.0004, 0.9991, 1.0031), ("1.000x", "0.999 to 1.003")),
        ((2.53, 2.49, 2.61), ("2.5x", "2.5 to 2.6")),
        ((11.3, 10.1, 12.2), ("11x", "10 to 12")),
        ((0.82, math.nan, 0.92), ("0.82x", "")),
    ],
)
def test_a_ratio_shows_what_it_gains(ratio: tuple[float, float, float], expected: tuple[str, str]) -> None:
    assert readable.factor(*ratio, 0.01) == expected


def test_a_change_that_is_not_0_does_not_read_as_0() -> None:
    assert readable.change(0.402, 0.239, 0.565) == ("+0.40 %", "+0.24 to +0.56")
    assert readable.change(1.0, 0.02, 1.98) == ("+1.00 %", "+0.02 to +1.98")
    assert readable.change(1400.0, None, None) == ("+1,400 %", "")
    assert readable.change(0.0, 0.0, 0.0) == ("0.00 %", "0.00 to 0.00")


@given(st.floats(1e-3, 1e7))
def test_two_significant_digits_are_as_near_as_they_can_be(value: float) -> None:
    shown = float(readable.significant(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.0501)
    assert len(f"{shown:.12e}".split("e")[0].rstrip("0").replace(".", "")) <= 2


def test_shapes_categories_and_engines_have_names_that_need_no_manual() -> None:
    assert readable.shape_words("b1_i512_o9") == "batch 1, 512 tokens in, 9 out"
    assert readable.shape_words("my <shape>") == "my <shape>"
    assert [readable.category(name) for name in ("expert_gemm", "routing_permute", "quant_dequant", "new_kind")] == [
        "expert GEMMs",
        "routing and permutation",
        "quantisation",
        "new kind",
    ]
    assert readable.engine("trtllm 1.2.0") == "TensorRT-LLM 1.2.0"


def test_the_header_line_has_what_is_known() -> None:
    header = Header(("Qwen3-30B-A3B",), ("2 x NVIDIA H100",), ("vllm 0.22.1",), "2026-11-27T01:03:01+00:00", "3b26" * 8)
    line = "Qwen3-30B-A3B · 2 x NVIDIA H100 · vLLM 0.22.1 · 2026-11-27 · run 3b263b26"
    assert tiles.header_line(header) == line
    assert tiles.header_line(replace(header, random_weights=True)) == f"{line} · random weights"
    assert tiles.header_line(Header()) == ""


def test_an_arm_by_itself_has_the_figures_of_its_largest_rate_and_no_verdict() -> None:
    rates = {"b1_i512_o9": Interval(100.0), "b8_i512_o9": Interval(640.4, 630.0, 651.0, 4)}
    arm = ComparedArm("bf16", "bf16", Status.FINISHED, token_ppl=14.2, weights_gib=56.87, gpus=2)
    arm = replace(arm, speed={name: {"output_tok_s": rate} for name, rate in rates.items()})
    assert tiles.of_arm(arm) == (
        Tile("Output per GPU", "320 tok/s", "315 to 326", ""),
        Tile("Perplexity", "14", "by token", ""),
        Tile("Weights per GPU", "57 GiB", "", ""),
    )
    assert [tile.title for tile in tiles.of_arm(replace(arm, random_weights=True, emulated=True))] == [
        "Weights per GPU"
    ]


def test_kinds_follow_the_words_of_verdicts() -> None:
    assert [tiles.kind_of(verdict.value) for verdict in (Verdict.PAYS, Verdict.SLOWER, Verdict.OPEN)] == [
        "good",
        "bad",
        "open",
    ]
