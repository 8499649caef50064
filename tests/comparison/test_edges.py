"""Records at the edges of the rules, from samples to the sentence and the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from moe_eval import stats
from moe_eval.comparison import gate, gate_text, pairs, verdict
from moe_eval.comparison.gate import GateResult
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import Pair
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.ratios import Ratio
from moe_eval.records.samples import Sample
from moe_eval.records.verdicts import QualityVerdict, Verdict
from moe_eval.stats import ERROR_RATE, LEAST_LOADS
from tests.doubles import comparisons
from tests.doubles import recorded_arms as made
from tests.doubles.comparisons import ABOVE, QUALITY, RULES, UNFAIR, comparison, decide, ratio, shape

LEVELS = {"bf16": (1.0, 1.002, 0.998, 1.001), "fp8": (1.001, 0.999, 1.0, 1.002), "nvfp4": (0.999, 1.0, 1.001, 1.002)}
HOLDS, FAILS, UNDECIDED = GateResult


def timed(name: str, ms: float, batches: Sequence[int] = (1, 8), **options: Any) -> ArmRecords:
    """Four loads of three iterations, whose levels differ by 0.1 %."""
    return made.arm(name, {batch: [[ms * level] * 3 for level in LEVELS[name]] for batch in batches}, **options)


def latency(arm: ArmRecords) -> LatencyRecord:
    assert arm.latency is not None
    return arm.latency


def sampled(arm: ArmRecords, change: Callable[[Sample], Sample]) -> ArmRecords:
    """An arm with every sample changed."""
    shapes = tuple(
        replace(row, loads=tuple(tuple(change(sample) for sample in load) for load in row.loads))
        for row in latency(arm).shapes
    )
    return replace(arm, latency=replace(latency(arm), shapes=shapes))


def ended(arm: ArmRecords, loads: Sequence[int], **changes: Any) -> ArmRecords:
    """An arm of which so many loads of every shape were measured. A shape without any has no row."""
    rows = [
        replace(row, loads=row.loads[:count]) for row, count in zip(latency(arm).shapes, loads, strict=True) if count
    ]
    return replace(arm, latency=replace(latency(arm), shapes=tuple(rows), **changes))


def e2e(pair: Pair, at: int = 0) -> Ratio:
    ratio = pair.shapes[at].speed.e2e_ms
    assert ratio is not None
    return ratio


def code(text: str, *compared: Pair, **changes: Any) -> GateResult:
    return gate.check(comparison(*compared, **changes), gate_text.parse(text))[0]


def test_a_shape_with_collapsed_routing_among_good_ones_has_no_verdict() -> None:
    arms = [timed("bf16", 100, (1, 8, 32)), timed("fp8", 50, (1, 8, 32))]
    routing = {batch: made.counted(batch, 15.0 if batch == 8 else 50.0) for batch in (1, 8, 32)}
    arms[1] = replace(arms[1], latency=replace(latency(arms[1]), routing=routing))
    compared = made.pair(*arms)
    assert [row.verdict for row in compared.shapes] == ["pays", "not comparable", "pays"]
    assert compared.verdict is Verdict.PAYS
    assert "At batch 8 there is no verdict. bf16 reads 50.0 experts per layer and step. fp8" in compared.sentence
    assert "2.00x" not in compared.sentence.partition("At batch 8 there")[2]
    results = [code(text, compared) for text in ("speed>=1.5", "speed[b8]>=0.1", "speed[b8]<=9", "speed[b32]>=1.5")]
    assert results == [UNDECIDED, UNDECIDED, UNDECIDED, HOLDS]


@pytest.mark.parametrize("is_deciding", [True, False])
def test_iterations_at_a_low_clock_in_one_arm_decide_nothing(is_deciding: bool) -> None:
    """Three of five iterations take 120 ms where 100 are usual, or one of five does."""
    slow = 3 if is_deciding else 1
    loads = [[120.0 * level] * slow + [100.0 * level] * (5 - slow) for level in LEVELS["bf16"]]
    other = 100.0 if is_deciding else 80.0
    arms = [
        made.arm("bf16", {1: loads}, slow=slow),
        made.arm("fp8", {1: [[other * level] * 5 for level in LEVELS["fp8"]]}),
    ]
    for compared in (made.pair(*arms), made.pair(*arms[::-1])):
        (row,) = compared.shapes
        assert row.clocks is not None
        assert row.clocks.is_one_slow
        assert "low clock" in compared.sentence
        if is_deciding:
            assert compared.verdict is row.verdict is Verdict.NOT_COMPARABLE
        else:
            assert row.unthrottled is not None
            assert row.unthrottled.e2e_ms == row.speed.e2e_ms
    forth = made.pair(*arms)
    assert forth.verdict == ("not comparable" if is_deciding else "pays")
    assert e2e(forth).value == pytest.approx(1.2 if is_deciding else 1.25, rel=1e-3)
    assert code("speed>=1.1", forth) == (UNDECIDED if is_deciding else HOLDS)


def test_both_arms_at_a_low_clock_are_compared() -> None:
    compared = made.pair(timed("bf16", 100, slow=2), timed("fp8", 50, slow=2))
    assert compared.verdict is Verdict.PAYS
    assert all(row.unthrottled is None for row in compared.shapes)


def test_cuda_graphs_in_one_arm_alone_are_not_comparable() -> None:
    arms = timed("bf16", 100, cuda_graph_batch_sizes=(1, 8)), timed("fp8", 200, cuda_graph_batch_sizes=())
    compared = made.pair(*arms)
    assert compared.verdict is Verdict.NOT_COMPARABLE
    assert "bf16 decodes with CUDA graphs and fp8 without" in compared.sentence
    assert code("speed>=1,verdict==pays", compared) is UNDECIDED
    small = made.pair(timed("bf16", 50, cuda_graph_batch_sizes=(1,)), arms[0])  # both have a graph for batch 1
    assert [row.verdict for row in small.shapes] == ["slower", "not comparable"]


def test_one_load_of_one_iteration_is_a_quick_look() -> None:
    compared = made.pair(made.arm("bf16", {1: [[200.0]]}), made.arm("fp8", {1: [[100.0]]}))
    assert (compared.verdict, e2e(compared).low) == ("quick look", None)
    assert "2.00x" in compared.sentence
    assert [code(text, compared) for text in ("speed>=1", "speed>=3", "verdict==pays")] == [UNDECIDED] * 3


def test_equal_medians_make_no_difference() -> None:
    compared = made.pair(timed("bf16", 100), replace(timed("bf16", 100), name="fp8", precision="fp8"))
    assert (e2e(compared).value, e2e(compared).low, e2e(compared).high) == (1, 1, 1)
    assert {row.verdict for row in compared.shapes} == {Verdict.NO_DIFFERENCE}
    assert [code(text, compared) for text in ("speed>=1,speed<=1", "speed>=1.001")] == [HOLDS, FAILS]


def test_what_is_worse_stands_in_the_sentence_of_an_arm_that_pays() -> None:
    """End to end it takes half the time. The first token, energy and weights are worse."""
    gib = 2**30
    fp8 = sampled(
        timed("fp8", 50, weight_bytes={"experts": 40 * gib, "other": 2 * gib}),
        lambda sample: replace(sample, first={"host": 0.03125}, energy_j=1.25),
    )
    compared = made.pair(timed("bf16", 100, weight_bytes={"experts": 28 * gib, "other": 2 * gib}), fp8)
    assert compared.verdict is Verdict.PAYS
    assert "Worse is its time to first token: 0.80" in compared.sentence
    assert "Worse is its energy per token: 0.80" in compared.sentence
    assert "time per output token" not in compared.sentence
    assert "Its weights take more memory: 42.0 GiB, and 30.0 in bf16." in compared.sentence
    assert [code(f"{name}>=1", compared) for name in ("speed", "tpot", "ttft", "energy")] == [
        HOLDS,
        HOLDS,
        FAILS,
        FAILS,
    ]


@pytest.mark.parametrize("emulated", ["bf16", "fp8"])
def test_the_speed_of_an_emulated_arm_holds_nothing(emulated: str) -> None:
    arms = [timed(name, ms, emulated=name == emulated) for name, ms in (("bf16", 100), ("fp8", 50))]
    compared = pairs.compare(arms)
    assert compared.pairs[0].verdict is Verdict.OPEN
    assert f"{emulated} is emulated, which says nothing about speed" in compared.pairs[0].sentence
    conditions = gate_text.parse("speed>=0.1,ttft>=0.1,energy<=9,verdict==pays,speed>=9")
    result, lines = gate.check(compared, conditions)
    assert result is UNDECIDED
    assert all("not decided" in line for line in lines)


def test_experts_that_differ_by_two_percent_widen_what_has_decode_steps() -> None:
    alike, apart = (
        made.pair(timed("bf16", 100), timed("fp8", 50, experts=experts)).shapes[0].speed for experts in (50.0, 51.0)
    )
    for metric, widened in (("e2e_ms", 1.02), ("tpot_ms", 1.02), ("j_per_tok", 1.02), ("ttft_ms", 1.0)):
        before, after = getattr(alike, metric), getattr(apart, metric)
        assert after.value == before.value
        assert after.low == pytest.approx(before.low / widened)
        assert after.high == pytest.approx(before.high * widened)


def test_an_arm_that_broke_down_leaves_the_others_their_verdict() -> None:
    nvfp4 = ended(timed("nvfp4", 40), (1, 0), status=Status.FAILED, error="out of memory")
    compared = pairs.compare([timed("bf16", 100), timed("fp8", 50), nvfp4])
    fp8, failed = compared.pairs
    assert (fp8.verdict, failed.verdict) == ("pays", "quick look")
    assert e2e(fp8) == e2e(made.pair(timed("bf16", 100), timed("fp8", 50)))
    assert failed.sentence.endswith("nvfp4 failed (out of memory).")
    assert gate.check(compared, gate_text.parse("fp8:speed>=1"))[0] is UNDECIDED, "one that was asked for is missing"
    assert gate.check(compared, gate_text.parse("fp8:speed>=3"))[0] is FAILS


def test_a_run_until_decided_counts_its_looks_by_the_loads_there_are() -> None:
    """Of at most 8, the run ended in the fourth, before both shapes were timed."""
    schedule = latency(timed("bf16", 1)).schedule
    assert schedule is not None
    planned = replace(schedule, loads=8, until_decided=True)
    arms = [ended(timed(name, ms), (4, 3), schedule=planned) for name, ms in (("bf16", 100), ("fp8", 50))]
    compared = made.pair(*arms)
    assert compared.schedule is not None
    assert (compared.schedule.loads, compared.schedule.look, compared.schedule.looks) == (3, 1, 6)
    level = stats.look_level(3, 8, LEAST_LOADS, ERROR_RATE)
    for at, loads in enumerate((4, 3)):
        times = e2e(compared, at)
        assert (times.loads, times.df, times.confidence) == (loads, loads - 1, pytest.approx(1 - 2 * level))
    assert compared.verdict is Verdict.PAYS
    untimed = made.pair(arms[0], ended(arms[1], (3, 0)))
    assert untimed.shapes[1].speed.e2e_ms is None
    assert code("speed>=1", untimed) is UNDECIDED


def test_a_broken_arm_is_broken_though_its_routing_has_collapsed() -> None:
    quality = replace(QUALITY, verdict=QualityVerdict.BROKEN, sentence="Its top-1 agreement is 2 %.")
    broken = decide([shape(1, ABOVE, UNFAIR)], quality=quality)
    assert broken.verdict is Verdict.BROKEN
    assert broken.sentence.startswith("Broken: Its top-1 agreement is 2 %.")
    open_shape = decide([shape(1, comparisons.WIDE)], quality=quality)
    assert open_shape.shapes[0].verdict is Verdict.OPEN
    assert verdict.is_decided(comparison(open_shape)), "more loads do not mend it"
    elsewhere = decide([shape(1, ABOVE)], quality=quality, differs=("Speed was measured on another GPU.",))
    assert elsewhere.verdict is Verdict.NOT_COMPARABLE


def test_a_small_loss_that_many_shapes_make_uncertain_is_no_worthwhile_difference() -> None:
    small, large = ratio(0.997, 0.9945, 0.9995), ratio(0.9, 0.82, 0.99)
    others = [ratio(*comparisons.WIDE)] * 7
    assert verdict.of_family([small], RULES) == verdict.of_family([large], RULES) == ["slower"]
    assert verdict.of_family([small, *others], RULES)[0] is Verdict.NO_DIFFERENCE
    assert verdict.of_family([large, *others], RULES)[0] is Verdict.OPEN
