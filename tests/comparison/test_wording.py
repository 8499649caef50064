"""The sentences of a verdict: what pays where, what it costs, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.comparison.test_verdict import ABOVE, BELOW, NONE_TO_GAIN, QUALITY, WIDE, decide, shape


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ((ABOVE,), "fp8 pays at batch 1 (1.20x, 1.10 to 1.30) at"),
        ((NONE_TO_GAIN, ABOVE), "fp8 pays from batch 8 (1.20x, 1.10 to 1.30) at +0.40 %"),
        ((ABOVE, (1.5, 1.4, 1.6)), "fp8 pays at every batch size measured, from batch 1 (1.20x, 1.10 to 1.30; 1.50x, "
                                   "1.40 to 1.60 at batch 8)"),
        ((ABOVE, WIDE, ABOVE), "fp8 pays at batch 1 (1.20x, 1.10 to 1.30), at batch 32 (1.20x"),
        ((BELOW, ABOVE), "fp8 does not pay at every batch size: it pays from batch 8 (1.20x"),
        ((WIDE,), "fp8 may pay or not: at batch 1 it is open (1.02x, 0.90 to 1.16); it comes at +0.40 %"),
        ((NONE_TO_GAIN,), "fp8 does not pay: at batch 1 it does not (1.00x, 0.97 to 1.03: the interval holds 1)"),
        (((1.0071, 1.001, 1.015),), "fp8 pays at batch 1 (1.007x, 1.001 to 1.015)"),
        (((1.0031, 1.001, 1.005),), "fp8 does not pay: at batch 1 it does not (1.003x, 1.001 to 1.005: the ratio, 0.5 "
                                    "% of difference between two processes allowed for, may be 1)"),
    ],
)  # fmt: skip
def test_sentences(known: Sequence[tuple[float, float, float]], says: str) -> None:
    rows = [shape(batch, each) for batch, each in zip((1, 8, 32), known, strict=False)]
    assert decide(rows)["sentence"].startswith(says)
    assert "quality was not measured" in decide(rows, quality=None)["sentence"]
    made_up = decide(rows, quality={**QUALITY, "random_weights": True})["sentence"]
    assert "cannot be said of random weights" in made_up
    assert "perplexity" not in made_up


def test_shapes_of_one_batch_size_are_told_by_their_name() -> None:
    rows = [shape(8, ABOVE), {**shape(8, WIDE), "name": "b8_i9_o9"}]
    assert decide(rows)["sentence"].startswith("fp8 pays at b8_i512_o256 (1.20x")
    assert "at b8_i9_o9 it is open" in decide(rows)["sentence"]


def test_emulated_arms_are_judged_by_quality_alone() -> None:
    for rows in ([], [shape(1, ABOVE)]):
        found = decide(rows, fp8={"emulated": True})
        assert found["verdict"] == "inconclusive"
        assert found["sentence"].startswith(
            "inconclusive, quality only: +0.40 % perplexity (+0.10 to +0.70); fp8 is emulated"
        )
        assert "fp8 natively" in found["settled_by"]
    single = decide([], quality={**QUALITY, "ln_ppl_ratio": None}, fp8={"emulated": True})
    assert "+0.40 % perplexity (no interval)" in single["sentence"]


def test_what_is_missing_is_named() -> None:
    found = decide([], fp8={"status": "failed", "error": "out of memory."})
    assert found["sentence"].startswith("inconclusive, quality only: +0.40 %")
    assert found["sentence"].endswith("fp8 failed (out of memory)")
    nothing = decide([], quality=None, fp8={"status": "skipped", "error": "needs SM100"})
    assert (
        nothing["sentence"] == "inconclusive, as nothing is known of fp8 against bf16: fp8 was left out (needs SM100)"
    )
    assert decide([])["settled_by"] == "moe-eval perf with both arms"


def traced(
    batch: int, known: tuple[float, float, float], change: Mapping[str, float], waiting: float
) -> dict[str, Any]:
    """A shape with a decode step of 5 ms of which the experts are 2."""
    before = {"expert_gemm": 2.0, "quant_dequant": 0.0, "routing_permute": 0.5, "attention": 2.0}
    categories = {
        name: {"before_ms": ms, "after_ms": ms + change.get(name, 0.0), "change_ms": change.get(name, 0.0),
               "before_launches": 1.0, "after_launches": 1.0}
        for name, ms in before.items()
    }  # fmt: skip
    total = sum(change.values())
    decode = {"categories": categories, "kernel_change_ms": total, "step_ms": [5.0, 5.0 + total + waiting],
              "waiting_change_ms": waiting}  # fmt: skip
    predicted = {"busy": 4.5 / (4.5 + total), "step": 5 / (5 + total + waiting)}
    return {**shape(batch, known), "kernels": {"decode": decode}, "predicted": predicted}


def test_the_reason_is_in_the_kernels_of_the_smallest_batch_that_does_not_pay() -> None:
    small = traced(1, WIDE, {"expert_gemm": -1.0, "quant_dequant": 0.5, "routing_permute": 0.1}, 0.25)
    large = traced(8, ABOVE, {"expert_gemm": -1.5, "attention": -0.2}, 0.0)
    text = decide([small, large])["because"]
    assert text == (
        "at batch 1 the expert GEMMs are 40 % of a decode step of bf16 (5.00 ms), and those of fp8 take 1.00 ms less; "
        "of that is taken back by quantisation 0.50 ms (50 %), permutation 0.10 ms (10 %), gaps between kernels 0.25 "
        "ms (25 %); the traced step is 1.03x as fast (1.10x by kernels), measured without a profiler 1.02x, "
        "0.90 to 1.16"
    )
    paying = decide([large, traced(32, ABOVE, {"expert_gemm": -1.5, "attention": -0.2}, 0.0)])["because"]
    assert paying.startswith("at batch 32 the expert GEMMs are 40 %")
    assert "less is taken by all other kernels 0.20 ms" in paying
    half = decide([traced(1, WIDE, {"expert_gemm": -0.5, "quant_dequant": 0.1}, 0.0)])["because"]
    assert "quantisation 0.10 ms (20 %);" in half
    worse = decide([traced(1, BELOW, {"expert_gemm": 0.5, "quant_dequant": 0.4}, 0.0)])["because"]
    assert "take 0.50 ms more; more is taken by quantisation 0.40 ms;" in worse
    assert decide([shape(1, ABOVE)])["because"] == ""
