"""Ratios of two arms' blocks against arithmetic by hand, and what makes two arms unfair opponents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_eval.comparison import speed
from moe_eval.data.workload import Shape
from moe_eval.records.comparison import Ratio
from moe_eval.records.latency import LatencyRecord, Routing, Sample, ShapeLatency
from tests.doubles import recorded_arms

SHAPE = Shape(4, 512, 257)
Blocks = list[list[Sample]]


def sample(first: float, last: float, engine: tuple[float, float] | None = None) -> Sample:
    """By the host's clock, and by the engine's where it says something."""
    if engine is None:
        return Sample(0.0, last, {"host": first}, {"host": last})
    return Sample(0.0, last, {"host": first, "engine": engine[0]}, {"host": last, "engine": engine[1]}, engine[0])


def blocks(*seconds: float) -> Blocks:
    return [[sample(e2e / 4, e2e), sample(e2e / 4, e2e)] for e2e in seconds]


def timed(samples: Blocks) -> ShapeLatency:
    (row,) = record().shapes
    return replace(row, blocks=tuple(map(tuple, samples)))


def record(name: str = "bf16", max_step_tokens: int | None = None) -> LatencyRecord:
    return recorded_arms.latency(name, {4: [[1000.0, 1000.0]] * 3}, max_step_tokens=max_step_tokens)


def test_the_ratio_says_how_much_faster_the_other_arm_is() -> None:
    ratios = speed.ratios(timed(blocks(2.0, 2.2, 1.9)), timed(blocks(1.0, 1.1, 0.95)))
    for ratio in (ratios.e2e_ms, ratios.ttft_ms, ratios.tpot_ms):
        assert ratio.value == pytest.approx(2.0)
        assert ratio.low == pytest.approx(ratio.high)
        assert ratio.blocks == 3


def test_blocks_that_one_arm_lacks_are_left_out() -> None:
    ratio = speed.ratios(timed(blocks(2.0, 2.2, 9.0)), timed([*blocks(1.0, 1.1), []])).e2e_ms
    assert ratio.blocks == 2
    assert ratio.value == pytest.approx(2.0)
    alone = speed.ratios(timed(blocks(2.0)), timed(blocks(1.0))).e2e_ms
    assert alone == Ratio(2.0, None, None, 1, "host")
    assert speed.ratios(timed([]), timed(blocks(1.0))).e2e_ms is None


@pytest.mark.parametrize("engine", [None, (0.2, 1.2)])
@pytest.mark.parametrize("last", [0.2, 0.15])
def test_calls_that_noise_turns_round_have_no_ratio_of_times_per_token(
    last: float, engine: tuple[float, float] | None
) -> None:
    samples = [sample(0.2, end, engine) for end in (1.2, 1.2, last, 1.2, 1.2)]
    ratio = speed.ratios(timed([samples, samples]), timed([samples, samples])).tpot_ms
    assert (ratio is not None) == (engine is not None), "the engine's clock is within one call"
    negative = [[sample(1.0, 0.9)], [sample(1.0, 0.9)]]
    assert speed.ratios(timed(negative), timed(negative)).tpot_ms is None


def routed(name: str, distinct: float | None, effective: float = 128.0) -> LatencyRecord:
    routing = Routing(4, 128, 8, 4, distinct, 60.0, ((3,) * 128,), effective, 1.0)
    return replace(record(name), routing={4: routing})


def test_an_arm_with_collapsed_routing_is_no_fair_opponent() -> None:
    """Dummy weights once sent an FP8 arm through 15 experts where the BF16 one read 51.8: a speed-up of nothing."""
    fairness = speed.fairness(routed("bf16", 51.8), routed("fp8", 15.0), SHAPE)
    assert fairness.is_fair is False
    assert str(fairness.reason).startswith("bf16 reads 51.8 experts per layer and step. fp8 reads 15.0")
    assert speed.fairness(routed("bf16", 51.8), routed("fp8", 51.0), SHAPE).is_fair is True
    # how evenly tokens spread counts as well
    assert speed.fairness(routed("bf16", 8), routed("fp8", 8, effective=15.0), SHAPE).is_fair is False


@pytest.mark.parametrize(
    ("before", "after", "is_fair"),
    [
        *((before, after, True) for before, after in ((100, 95), (95, 100), (8, 8), (None, None))),
        *((before, after, False) for before, after in ((100, 94.9), (94.9, 100), (8, None))),
    ],
)
def test_the_bound_is_a_share_of_the_greater(before: float | None, after: float | None, is_fair: bool) -> None:
    assert speed.fairness(routed("bf16", before), routed("fp8", after), SHAPE).is_fair is is_fair


@pytest.mark.parametrize("uncounted", ["bf16", "fp8"])
def test_routing_that_nobody_counted_is_a_reason(uncounted: str) -> None:
    arms = {name: routed(name, 50.0) for name in ("bf16", "fp8")}
    arms[uncounted] = replace(arms[uncounted], routing=None, no_routing="not measured: no option")
    fairness = speed.fairness(arms["bf16"], arms["fp8"], SHAPE)
    assert (fairness.is_fair, fairness.reason) == (None, f"{uncounted}: not measured: no option")


@pytest.mark.parametrize("budgets", [(1024, 2048), (2048, 700), (1024, 2047), (700, 700), (None, 2048), (None, 2047)])
def test_arms_that_read_prompts_over_other_numbers_of_steps_are_no_fair_opponents(
    budgets: tuple[int | None, int | None],
) -> None:
    """Four prompts of 512 tokens."""
    arms = [record(name, budget) for name, budget in zip(("bf16", "fp8"), budgets, strict=True)]
    steps = [len(range(0, 2048, budget or 5000)) for budget in budgets]
    fairness = speed.fairness(arms[0], arms[1], SHAPE)
    assert fairness.is_fair is (steps[0] == steps[1])
    if steps[0] != steps[1]:
        sentence = f"bf16 reads 2048 prompt tokens over {steps[0]} steps and fp8 over {steps[1]}"
        assert str(fairness.reason).startswith(sentence)
