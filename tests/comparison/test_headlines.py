"""Headlines of recorded arms: figures by hand, and none where there is nothing to say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from moe_eval.comparison import pairs
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import Pair
from moe_eval.records.headline import Headline
from moe_eval.records.verdicts import Rules
from tests.doubles import recorded_arms as made

LOADS = [[100.0, 100.2], [99.5, 99.7], [100.1, 100.0], [100.4, 100.2]]
MS = {1: LOADS, 8: [[4 * ms for ms in load] for load in LOADS]}
FASTER = {1: LOADS, 8: [[2 * ms for ms in load] for load in reversed(LOADS)]}
GIB = 1 << 30


def of_pair(pair: Pair) -> dict[str, Headline]:
    return {headline.figure.value: headline for headline in pair.headlines}


def arm(name: str, ms: Any, gib: int, **facts: Any) -> ArmRecords:
    return made.arm(name, ms, weight_bytes={"experts": gib * GIB}, **facts)


def test_headlines_are_of_the_shape_that_decides() -> None:
    (compared,) = pairs.compare([arm("bf16", MS, 40), arm("fp8", FASTER, 20)]).pairs
    headlines = of_pair(compared)
    assert list(headlines) == ["speed_up", "output_tok_s_per_gpu", "ttft_ms", "memory_gib", "j_per_tok"]
    speed = headlines["speed_up"]
    assert (speed.shape, speed.verdict) == (f"b8_i{made.INPUT}_o{made.OUTPUT}", compared.shapes[1].verdict)
    assert speed.ratio == pytest.approx(2.0)
    assert speed.low < 2 < speed.high
    assert (speed.reference, speed.value) == pytest.approx((400.05, 200.02), rel=2e-3)
    rates = headlines["output_tok_s_per_gpu"]
    assert rates.value / rates.reference == pytest.approx(2.0)
    assert rates.value == pytest.approx(8 * made.OUTPUT / 0.20002, rel=2e-3)
    assert (rates.ratio, rates.verdict) == (speed.ratio, "pays")
    memory = headlines["memory_gib"]
    assert (memory.reference, memory.value, memory.ratio, memory.low, memory.verdict) == (40, 20, 2, None, None)
    assert headlines["ttft_ms"].verdict == "pays"


def test_tokens_on_each_of_two_gpus_are_half_of_all() -> None:
    """Twice as fast on two GPUs is as many tokens on each."""
    arms = [arm("bf16", MS, 40, gpus=1), arm("fp8", FASTER, 20, gpus=2)]
    (compared,) = pairs.compare(arms, across=["gpus"], rules=Rules(per_gpu=False)).pairs
    rates = of_pair(compared)["output_tok_s_per_gpu"]
    assert (rates.ratio, rates.value) == pytest.approx((1.0, rates.reference))
    assert rates.low < 1 < rates.high


def test_the_header_names_everything_once() -> None:
    run = made.run(("bf16", "fp8"))
    arms = [
        arm("bf16", MS, 40, checkpoint="/models/Qwen3"),
        arm("fp8", MS, 20, checkpoint="Qwen/Qwen3", weights="random"),
    ]
    header = pairs.compare(arms, runs=[run]).header
    assert (header.models, header.gpus, header.engines) == (("Qwen3",), (made.GPU,), ("vllm 0.22.1",))
    assert (header.started, header.run_id) == (run.started, run.run_id)
    assert (header.random_weights, header.emulated) == (True, False)
    two = pairs.compare([arm("bf16", MS, 40, gpus=2)]).header
    assert (two.gpus, two.started, two.random_weights) == ((f"2 x {made.GPU}",), None, False)


def scored(name: str, worse: float, **facts: Any) -> ArmRecords:
    record = made.quality(name, made.scores(worse, seed=1), **facts)
    return ArmRecords(name, name, quality=record)


def test_quality_is_the_ratio_of_perplexities() -> None:
    (compared,) = pairs.compare([scored("bf16", 0.0), scored("fp8", 0.1)]).pairs
    (headline,) = compared.headlines
    assert headline.figure.value == "quality"
    assert headline.ratio == pytest.approx(headline.value / headline.reference)
    assert headline.ratio == pytest.approx(math.exp(0.1), rel=1e-3)
    assert headline.verdict == compared.quality.verdict.value


def test_random_weights_emulation_and_broken_arms_have_no_such_headlines() -> None:
    random = [scored("bf16", 0.0, weights="random"), scored("fp8", 0.1, weights="random")]
    assert pairs.compare(random).pairs[0].headlines == ()
    emulated = [arm("bf16", MS, 40), arm("fp8", FASTER, 20, emulated=True)]
    assert pairs.compare(emulated).pairs[0].headlines == ()
    other_gpu = [arm("bf16", MS, 40), arm("fp8", FASTER, 20, gpu="NVIDIA L40S")]
    assert pairs.compare(other_gpu).pairs[0].headlines == ()


def test_the_time_that_decides_is_told() -> None:
    (compared,) = pairs.compare([arm("bf16", MS, 40), arm("fp8", FASTER, 20)], rules=Rules(decide_on="ttft")).pairs
    headlines = of_pair(compared)
    assert headlines["speed_up"].reference == headlines["ttft_ms"].reference
    assert headlines["speed_up"] == replace(headlines["ttft_ms"], figure="speed_up", verdict="pays")


def test_a_figure_that_does_not_decide_is_judged_among_all_arms_too() -> None:
    """A gain of 3 % whose p-value is 0.018 by hand: it holds alone, and not among seven arms."""
    steady = {1: [[100.0, 100.0]] * 4}
    faster = {1: [[100 * math.exp(-0.03 - shift)] * 2 for shift in (-0.0095, -0.0095, 0.0095, 0.0095)]}
    arms = [arm("bf16", steady, 40), arm("fp8", faster, 20)]
    others = [arm(f"arm{number}", steady, 40, planned="fp16") for number in range(6)]
    rules = Rules(decide_on="ttft")
    alone, among = (pairs.compare(group, rules=rules).pairs[0] for group in (arms, [*arms, *others]))
    words = [of_pair(pair)["output_tok_s_per_gpu"].verdict for pair in (alone, among)]
    assert words == ["pays", "open"]
