"""Ratios of two arms' loads against arithmetic by hand, and what makes two arms unfair opponents."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as distributions

from moe_eval.comparison import speed
from moe_eval.data.workload import Shape
from moe_eval.records.comparison import PairSchedule
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.ratios import Ratio
from moe_eval.records.run import CUT_SHORT
from moe_eval.records.samples import Sample, WarmUp
from moe_eval.records.shape_latency import Routing, ShapeLatency
from tests.doubles import recorded_arms
from tests.doubles.comparisons import TURNS, TWO_RUNS

SHAPE = Shape(4, 512, 257)
Loads = list[list[Sample]]


def sample(first: float, last: float, engine: tuple[float, float] | None = None) -> Sample:
    """By the host's clock, and by the engine's where it says something."""
    if engine is None:
        return Sample(0.0, last, {"host": first}, {"host": last})
    return Sample(0.0, last, {"host": first, "engine": engine[0]}, {"host": last, "engine": engine[1]}, engine[0])


def loads(*seconds: float) -> Loads:
    return [[sample(e2e / 4, e2e), sample(e2e / 4, e2e)] for e2e in seconds]


def timed(samples: Loads) -> ShapeLatency:
    (row,) = record().shapes
    return replace(row, loads=tuple(map(tuple, samples)))


def record(name: str = "bf16", max_step_tokens: int | None = None) -> LatencyRecord:
    return recorded_arms.latency(name, {4: [[1000.0, 1000.0]] * 3}, max_step_tokens=max_step_tokens)


def test_the_ratio_says_how_much_faster_the_other_arm_is() -> None:
    ratios = speed.ratios(timed(loads(2.0, 2.2, 1.9)), timed(loads(1.0, 1.1, 0.95)), TURNS)
    for ratio in (ratios.e2e_ms, ratios.ttft_ms, ratios.tpot_ms):
        assert ratio.value == pytest.approx(2.0)
        assert ratio.low == pytest.approx(ratio.high)
        assert ratio.loads == 3


@pytest.mark.parametrize("side", [0, 1])
def test_a_warm_up_that_was_cut_short_leaves_no_interval(side: int) -> None:
    sides = [timed(loads(2.0, 2.2, 1.9)), timed(loads(1.0, 1.2, 0.95))]
    whole = speed.ratios(*sides, TURNS)
    sides[side] = replace(sides[side], warm_ups=(WarmUp((1.0,), "noise is steady"), WarmUp((1.0,), CUT_SHORT)))
    for ratios in (speed.ratios(*sides, TURNS), speed.unthrottled(*sides, TURNS)):
        assert ratios.e2e_ms == Ratio(whole.e2e_ms.value, None, None, 3, "host", widened=whole.e2e_ms.widened)
        assert (ratios.ttft_ms.low, ratios.j_per_tok) == (None, None)


def test_loads_that_one_arm_lacks_are_left_out() -> None:
    ratio = speed.ratios(timed(loads(2.0, 2.2, 9.0)), timed([*loads(1.0, 1.1), []]), TURNS).e2e_ms
    assert ratio.loads == 2
    assert ratio.value == pytest.approx(2.0)
    alone = speed.ratios(timed(loads(2.0)), timed(loads(1.0)), TURNS).e2e_ms
    assert alone == Ratio(2.0, None, None, 1, "host")
    assert alone == speed.ratios(timed(loads(2.0)), timed(loads(1.0)), TWO_RUNS).e2e_ms
    assert speed.ratios(timed([]), timed(loads(1.0)), TURNS).e2e_ms is None


def test_torn_loads_make_pairs_where_both_arms_have_iterations() -> None:
    """Load 1 of one arm and load 2 of the other were not measured, and load 3 has one iteration of two."""
    torn = loads(9.0, 2.2, 2.0, 1.8), [*loads(1.0, 1.1, 1.0), [sample(0.225, 0.9)]]
    torn[0][0], torn[1][2] = [], []
    ratio = speed.ratios(timed(torn[0]), timed(torn[1]), TURNS).e2e_ms
    assert ratio is not None
    assert (ratio.value, ratio.loads, ratio.df) == (pytest.approx(2.0), 2, 1)
    # of two runs no loads belong together, and all that there are count
    apart = speed.ratios(timed(torn[0]), timed(torn[1]), TWO_RUNS).e2e_ms
    assert apart is not None
    assert apart.loads == 3


SECONDS = (2.0, 2.1, 1.95, 2.02), (1.0, 1.04, 0.99, 1.03)


@pytest.mark.parametrize("widened", [1.0, 1.02])
def test_the_interval_of_one_run_is_students_over_pairs_of_loads(widened: float) -> None:
    ratios = speed.ratios(timed(loads(*SECONDS[0])), timed(loads(*SECONDS[1])), TURNS, widened)
    by_scipy = distributions.ttest_1samp(np.log(SECONDS[0]) - np.log(SECONDS[1]), 0).confidence_interval(0.95)
    for times, factor in ((ratios.e2e_ms, widened), (ratios.tpot_ms, widened), (ratios.ttft_ms, 1.0)):
        assert times is not None
        assert times.low == pytest.approx(math.exp(by_scipy.low) / factor)
        assert times.high == pytest.approx(math.exp(by_scipy.high) * factor)
        assert (times.loads, times.df, times.widened) == (4, 3, factor)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_interval_of_two_runs_is_welchs_and_five_percent(count: int) -> None:
    """Also of runs with other numbers of loads."""
    ratio = speed.ratios(timed(loads(*SECONDS[0])), timed(loads(*SECONDS[1][:count])), TWO_RUNS).e2e_ms
    test = distributions.ttest_ind(np.log(SECONDS[0]), np.log(SECONDS[1][:count]), equal_var=False)
    by_scipy = test.confidence_interval(0.95)
    assert ratio is not None
    assert ratio.low == pytest.approx(math.exp(by_scipy.low) / 1.05)
    assert ratio.high == pytest.approx(math.exp(by_scipy.high) * 1.05)
    assert (ratio.loads, ratio.df, ratio.widened) == (count, pytest.approx(test.df), 1.05)


@pytest.mark.parametrize("schedule", [TURNS, TWO_RUNS])
def test_loads_that_are_all_alike_have_no_scatter(schedule: PairSchedule) -> None:
    ratio = speed.ratios(timed(loads(2.0, 2.0, 2.0)), timed(loads(2.0, 2.0, 2.0)), schedule).e2e_ms
    assert ratio is not None
    assert (ratio.value, ratio.error) == (1, 0)
    assert (ratio.low, ratio.high) == (1 / ratio.widened, ratio.widened)


@pytest.mark.parametrize("engine", [None, (0.2, 1.2)])
@pytest.mark.parametrize("last", [0.2, 0.15])
def test_calls_that_noise_turns_round_have_no_ratio_of_times_per_token(
    last: float, engine: tuple[float, float] | None
) -> None:
    samples = [sample(0.2, end, engine) for end in (1.2, 1.2, last, 1.2, 1.2)]
    ratio = speed.ratios(timed([samples, samples]), timed([samples, samples]), TURNS).tpot_ms
    assert (ratio is not None) == (engine is not None), "the engine's clock is within one call"
    negative = [[sample(1.0, 0.9)], [sample(1.0, 0.9)]]
    assert speed.ratios(timed(negative), timed(negative), TURNS).tpot_ms is None


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


@pytest.mark.parametrize(
    ("before", "after", "widened"), [(50.0, 51.0, 1.02), (51.0, 50.0, 1.02), (8.0, 8.0, 1.0), (None, None, 1.0)]
)
def test_experts_that_differ_widen_the_interval_by_their_ratio(
    before: float | None, after: float | None, widened: float
) -> None:
    fairness = speed.fairness(routed("bf16", before), routed("fp8", after), SHAPE)
    assert (fairness.is_fair, fairness.widened) == (True, pytest.approx(widened))


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


@pytest.mark.parametrize(
    ("graphs", "is_fair"),
    [
        (((1, 8), ()), False),
        (((), (1, 8)), False),
        (((1, 8), (4,)), True),
        (((1, 2), (1, 2, 4)), False),
        (((), ()), True),
        ((None, ()), True),
    ],
)
def test_decoding_by_cuda_graphs_in_one_arm_alone_is_unfair(
    graphs: tuple[tuple[int, ...] | None, tuple[int, ...] | None], is_fair: bool
) -> None:
    """At batch 4, where a graph for 8 sequences is padded to."""
    arms = [
        recorded_arms.latency(name, {4: [[1000.0]] * 3}, cuda_graph_batch_sizes=sizes)
        for name, sizes in zip(("bf16", "fp8"), graphs, strict=True)
    ]
    fairness = speed.fairness(arms[0], arms[1], SHAPE)
    assert fairness.is_fair is is_fair
    if not is_fair:
        assert "decodes with CUDA graphs" in str(fairness.reason)
        assert speed.fairness(arms[0], arms[1], Shape(4, 512, 1)).is_fair is True, "there is no decode step"
