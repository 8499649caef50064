"""Comparisons of recorded arms: ratios by hand, swapped arms, quality from tokens, and what forbids them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from moe_eval.comparison import gate, gate_text, kernels, pairs
from moe_eval.comparison.gate import GateResult
from moe_eval.records import by_arm
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import LabelDifference, PairSchedule
from moe_eval.records.labels import Status
from moe_eval.records.latency import Capacity
from moe_eval.records.ratios import Interval, SpeedRatios
from moe_eval.records.run import Skipped
from moe_eval.records.shape_comparison import CeilingOfPhase
from moe_eval.records.verdicts import Verdict
from moe_eval.traces.kernel_table import Launches
from moe_eval.traces.readers import files
from tests.doubles import recorded_arms as made
from tests.doubles.comparisons import comparison
from tests.doubles.recorded_arms import INPUT, OUTPUT, pair, scored
from tests.doubles.timeline import generation

TRACES = Path(__file__).parents[1] / "traces" / "data"
# e2e in ms of a Qwen3-30B-A3B with random weights on one H100 (vLLM 0.22.1): two loads of three iterations
H100 = {
    "bf16": {
        1: [[1321.0, 1320.8, 1321.4], [1300.7, 1299.6, 1297.0]],
        8: [[2847.1, 2846.2, 2846.6], [2843.8, 2843.9, 2843.9]],
    },
    "fp8": {
        1: [[1260.3, 1264.6, 1271.4], [1260.6, 1255.6, 1255.4]],
        8: [[2206.2, 2246.1, 2198.9], [2199.1, 2196.6, 2197.6]],
    },
}


def test_ratios_and_intervals_of_a_real_pair_are_those_of_a_calculation_by_hand(tmp_path: Path) -> None:
    made.write(tmp_path, [made.arm(name, times, mode="alternating", experts=None) for name, times in H100.items()])
    compared = pair(*by_arm.read(tmp_path))
    assert [shape.name for shape in compared.shapes] == [f"b{n}_i{INPUT}_o{OUTPUT}" for n in (1, 8)]
    for shape, medians in zip(
        compared.shapes, [((1321.0, 1264.6), (1299.6, 1255.6)), ((2846.6, 2206.2), (2843.9, 2197.6))], strict=True
    ):
        logs = np.log([a / b for a, b in medians])
        by_scipy = distributions.ttest_1samp(logs, 0).confidence_interval(0.95)
        ratio = shape.speed.e2e_ms
        assert ratio.value == pytest.approx(math.exp(logs.mean()), rel=1e-9)
        assert (ratio.low, ratio.high) == pytest.approx((math.exp(by_scipy.low), math.exp(by_scipy.high)))
        # the first token takes a quarter of a call in these records, so all times have one ratio
        assert shape.speed.tpot_ms.value == pytest.approx(ratio.value)
    small, large = compared.shapes
    assert {small.verdict, large.verdict, compared.verdict} == {Verdict.QUICK_LOOK}
    assert compared.sentence.startswith(
        "Quick look, no verdict: fp8 against bf16 at every batch size measured, end to end: "
    )
    assert "1.292x (1.268 to 1.317) at batch 8" in compared.sentence
    assert compared.sentence.endswith("Quality was not measured on both sides.")
    assert compared.settled_by == "Give --loads 4 for more loads."
    assert "not checked (bf16: not measured)" in large.reason
    e2e = large.figures["e2e_ms"]
    logs = np.log([2846.6, 2843.9])
    reach = distributions.t.ppf(0.975, 1) * logs.std(ddof=1) / math.sqrt(2)
    expected = [math.exp(logs.mean() + side * reach) for side in (0, -1, 1)]
    assert e2e.reference == Interval(*(pytest.approx(value) for value in expected), loads=2)
    assert e2e.other.median == pytest.approx(math.sqrt(2206.2 * 2197.6))
    # 0.01 J for every ms of a call, over the tokens made
    energy = large.figures["j_per_tok"]
    joules = [energy.reference.median * 8 * OUTPUT, energy.other.median * 8 * OUTPUT]
    assert joules == [pytest.approx(ms / 100) for ms in (expected[0], math.sqrt(2206.2 * 2197.6))]
    assert (large.clocks.sm_mhz, large.clocks.slow_samples) == ((1980, 1980), (0, 0))
    assert compared.schedule == PairSchedule("alternating", 2, 3, one_run=True)


times = st.lists(st.lists(st.floats(10, 1000), min_size=2, max_size=2), min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["turns", "alternating"]), st.booleans())
def test_swapped_arms_have_the_inverse_ratio_and_never_pay_both_ways(data: Any, mode: str, one_run: bool) -> None:
    loads = data.draw(times)
    count = len(loads)
    others = data.draw(st.lists(st.lists(st.floats(10, 1000), min_size=2, max_size=2), min_size=count, max_size=count))
    arms = [
        made.arm("bf16", {1: loads, 4: others}, mode=mode),
        made.arm("fp8", {1: others, 4: loads}, mode=mode, output_dir="first" if one_run else "second"),
    ]
    forth, back = pair(*arms), pair(*arms[::-1])
    for shape, reverse in zip(forth.shapes, back.shapes, strict=True):
        for metric in ("e2e_ms", "ttft_ms", "tpot_ms"):
            a, b = getattr(shape.speed, metric), getattr(reverse.speed, metric)
            assert a.value * b.value == pytest.approx(1)
            assert (a.low is None) == (b.low is None) == (count == 1)
            if a.low is not None:
                assert a.low * b.high == pytest.approx(1)
        sides, turned = shape.figures["e2e_ms"], reverse.figures["e2e_ms"]
        assert (sides.reference, sides.other) == (turned.other, turned.reference)
        assert not shape.verdict == reverse.verdict == "pays"
    assert not forth.verdict == back.verdict == "pays"
    conditions = gate_text.parse("verdict==pays,speed>=1.02")
    assert {gate.check(comparison(way), conditions)[0] for way in (forth, back)} != {GateResult.HOLDS}


def test_a_time_that_no_clock_has_on_both_sides_has_no_ratio() -> None:
    arms = [made.arm(name, MS) for name in ("bf16", "fp8")]
    loads = tuple(
        tuple(replace(sample, first={}, last={"engine": 1.0}, energy_j=None) for sample in load)
        for load in arms[1].latency.shapes[0].loads
    )
    assert pair(arms[0], changed(arms[1], loads=loads)).shapes[0].speed == SpeedRatios()


def test_kernels_belong_to_the_shape_of_their_size_and_stand_alone_where_there_is_none() -> None:
    ms = {1: [[100.0, 100.0]], 4: [[300.0, 300.0]]}
    traced = {shape: made.kernels("x", shape=shape) for shape in (f"b1_i{INPUT}_o9", f"b2_i{INPUT}_o9")}
    arms = [ArmRecords(name, name, made.latency(name, ms), kernels=traced) for name in ("bf16", "fp8")]
    shapes = pair(*arms).shapes
    assert [(shape.batch_size, shape.kernels is not None) for shape in shapes] == [(1, True), (4, False), (2, True)]
    assert shapes[2].speed == SpeedRatios()
    assert shapes[2].figures == {}
    alone = pair(arms[0], ArmRecords("fp8", "fp8", made.latency("fp8", ms))).shapes
    assert (alone[0].kernels, alone[0].breakdown) == (None, None)
    assert set(alone[0].ceiling or ()) == {"prefill", "decode"}


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_kernels_are_compared_beside_the_measured_times(batch: int) -> None:
    """By traces of an H100."""
    name = f"b{batch}_i{INPUT}_o9"
    arms = []
    for arm in ("bf16", "fp8"):
        record = made.traced(arm, files.read(TRACES / f"{arm}_{name}.json.gz"), name, arm)
        arms.append(ArmRecords(arm, arm, made.latency(arm, {batch: MS[1]}), kernels={name: record}))
    (shape,) = pair(*arms).shapes
    before, after = (arm.kernels[name] for arm in arms)
    measured = {
        phase: ratio.value for phase, ratio in (("prefill", shape.speed.ttft_ms), ("decode", shape.speed.tpot_ms))
    }
    assert measured == pytest.approx({"prefill": 1, "decode": 1})
    assert shape.kernels == kernels.changes(before, after, ("bf16", "fp8"), measured)
    assert [*shape.kernels] == [phase for phase in before.phases if phase in after.phases]
    assert shape.breakdown["decode"]["expert_gemm"] == tuple(
        record.phases["decode"].categories["expert_gemm"].ms for record in (before, after)
    )
    decode = before.phases["decode"]
    ceiling = CeilingOfPhase(decode.ceiling.if_free, decode.wall_ceiling.if_free, decode.ceiling.expert_gemm_share)
    assert shape.ceiling["decode"] == ceiling
    # the times of both arms are alike, and those of the kernels are not but at batch 1
    subject = "expert GEMMs are" if batch == 1 else "kernels do not explain the decode"
    assert pair(*arms).because.startswith(f"At batch {batch} the {subject}")


MS = {1: [[100.0, 101.0], [100.0, 99.0], [100.0, 100.0], [101.0, 100.0]]}


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"gpu": "NVIDIA H200"}, r"Speed was measured on another GPU .NVIDIA H100 80GB HBM3 and NVIDIA H200"),
        ({"gpus": 2}, "NVIDIA H100 80GB HBM3 and 2 x NVIDIA H100"),
        ({"seed": 1}, "Speed was measured on other prompts or shapes"),
        ({"weights": "random"}, "Speed was measured with other weights .checkpoint and random"),
        ({"architecture": "Mixtral"}, "another architecture"),
        ({"version": "0.23"}, "another version of the engine .0.22.1 and 0.23"),
        ({"precision": "fp8-w8a16"}, "fp8 ran fp8-w8a16 where fp8 was planned"),
    ],
)
def test_arms_that_differ_in_more_than_precision_are_not_compared(facts: dict[str, Any], sentence: str) -> None:
    arms = [made.arm("bf16", MS), made.arm("fp8", MS, **facts)]
    compared = pair(*arms)
    assert compared.verdict is Verdict.NOT_COMPARABLE
    assert len(compared.differs) == 1
    for text in (compared.differs[0], compared.sentence, compared.shapes[0].reason):
        assert re.search(sentence, text)
        assert text.endswith(".")
    assert {shape.verdict for shape in compared.shapes} == {Verdict.NOT_COMPARABLE}
    assert compared.because == ""
    result, _ = gate.check(comparison(compared), gate_text.parse("speed<=9,verdict==pays"))
    assert result is GateResult.UNDECIDED
    across = pair(*arms, across=("gpus",))
    assert (across.verdict is Verdict.NOT_COMPARABLE) == ("gpu" not in str(facts))
    assert any(label.other in str(facts) for label in compared.labels) or "seed" in facts or "gpus" in facts


def test_other_windows_and_kernels_that_contradict_their_label_are_named(tmp_path: Path) -> None:
    arms = scored(tmp_path, {"bf16": 0.0, "fp8": 0.02})
    quality = arms[1].quality
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"input_len": 256}, "another window (128 and 256)"),
        ({"dataset": "wikitext"}, "another data set (moe_sample and wikitext)"),
        ({}, "the tokenizer or the choice of windows differs"),
    )
    for change, text in changes:
        figures = replace(quality.figures, dataset_digest="e" * 16, **change)
        compared = pair(arms[0], replace(arms[1], quality=replace(quality, figures=figures)))
        assert (compared.verdict, compared.quality) == ("not comparable", None)
        assert text in compared.sentence
    wrong = made.kernels("fp8", label="fp8")  # its trace has no kernel that quantises
    assert "the label says fp8" in wrong.contradiction
    compared = pair(made.arm("bf16", MS), ArmRecords("fp8", "fp8", made.latency("fp8", MS), kernels={"": wrong}))
    assert compared.differs == (f"fp8: {wrong.contradiction.rstrip('.')}.",)


def test_unfair_routing_voids_speed_and_not_quality(tmp_path: Path) -> None:
    arms = [
        replace(arm, latency=made.latency(arm.name, MS, experts=experts))
        for arm, experts in zip(scored(tmp_path, {"bf16": 0.0, "fp8": 0.02}), (50.0, 40.0), strict=True)
    ]
    compared = pair(*arms)
    assert (compared.shapes[0].fairness.is_fair, compared.verdict) == (False, "not comparable")
    assert "bf16 reads 50.0 experts per layer and step. fp8 reads 40.0" in compared.sentence
    results = [gate.check(comparison(compared), gate_text.parse(text))[0] for text in ("speed>=0.1", "ln_ppl<=0.1")]
    assert results == [GateResult.UNDECIDED, GateResult.HOLDS]


def test_arms_are_described_and_broken_ones_are_named() -> None:
    traced = {f"b1_i{INPUT}_o9": made.kernels("fp8", fp8=True, label="fp8")}
    failed = made.latency("fp8", MS, status=Status.FAILED, slow=1)
    compared = pairs.compare(
        [made.arm("bf16", MS), made.arm("bf16-again", MS), ArmRecords("fp8", "fp8", failed, kernels=traced)]
    )
    assert (compared.schema, compared.reference) == (2, "bf16")
    fp8 = compared.arms[2]
    assert (fp8.name, fp8.engine, fp8.engine_version, fp8.gpu) == ("fp8", "vllm", "0.22.1", made.GPU)
    assert (fp8.precision_seen, fp8.status, fp8.error) == ("fp8", "failed", "out of memory")
    assert fp8.speed[f"b1_i{INPUT}_o{OUTPUT}"]["e2e_ms"].median == pytest.approx((100.5 * 99.5 * 100.0 * 100.5) ** 0.25)
    assert set(fp8.kernels[f"b1_i{INPUT}_o9"]) == {"prefill", "decode"}
    repeat, candidate = compared.pairs
    assert (repeat.is_repeat, candidate.is_repeat) == (True, False)
    assert "bf16 measured a second time" in repeat.sentence
    assert candidate.sentence.endswith(". fp8 failed (out of memory).")
    assert candidate.shapes[0].clocks.slow_samples == (0, 4)
    assert "at under 75 %" in candidate.shapes[0].notes["fp8"][0]
    assert "bf16" not in candidate.shapes[0].notes
    assert LabelDifference("precision", "bf16", "fp8") in candidate.labels
    result, lines = gate.check(compared, gate_text.parse("speed>=0.5"))
    assert lines[0].startswith("speed>=0.5 holds for fp8 against bf16")
    assert (result, lines[1]) == (GateResult.UNDECIDED, "fp8 failed (out of memory), so the gate cannot hold.")


@pytest.mark.parametrize(
    ("facts", "capacity", "expected"),
    [
        ({"weight_bytes": {"experts": 3 << 30, "other": 1 << 29}}, Capacity(9 << 30, 4096), (3.5, 4096)),
        ({}, Capacity(9 << 30, None), (9.0, None)),  # the engine does not see them, and the files are there
        ({}, None, (None, None)),
    ],
)
def test_arms_tell_their_memory(
    facts: dict[str, Any], capacity: Capacity | None, expected: tuple[float | None, int | None]
) -> None:
    arm = made.arm("bf16", MS, **facts)
    compared = pairs.compare([replace(arm, latency=replace(arm.latency, capacity=capacity))]).arms[0]
    assert (compared.weights_gib, compared.kv_cache_tokens) == expected


def changed(arm: ArmRecords, **changes: Any) -> ArmRecords:
    """A timed arm with changes of its one shape."""
    return replace(arm, latency=replace(arm.latency, shapes=(replace(arm.latency.shapes[0], **changes),)))


def test_slow_samples_that_nobody_could_see_are_not_none() -> None:
    arm = made.arm("fp8", MS)
    turns = tuple(replace(turn, slow_samples=(None,) * 2) for turn in arm.latency.shapes[0].turns)
    assert pair(made.arm("bf16", MS), changed(arm, turns=turns)).shapes[0].clocks.slow_samples == (0, None)


def test_two_runs_may_be_five_percent_apart() -> None:
    """A ratio of 1.03 whose loads agree to the last digit."""
    faster = {1: [[ms / 1.03 for ms in load] for load in MS[1]]}
    together = pair(made.arm("bf16", MS), made.arm("fp8", faster))
    apart = pair(made.arm("bf16", MS), made.arm("fp8", faster, output_dir="second"))
    assert (together.verdict, apart.verdict) == ("pays", "open")
    assert "5 % are allowed for what differs between runs" in apart.sentence
    assert apart.settled_by == "Measure both arms in one run."


def test_what_a_run_did_not_begin_is_left_out() -> None:
    skipped = Skipped("nvfp4", None, "no checkpoint"), Skipped("fp8", "kernels", "emulated"), Skipped("fp8", None, "x")
    run = made.run(("bf16", "fp8", "fp32"), skipped=skipped)
    assert pairs.left_out([run], {"bf16", "fp8"}) == (*skipped[:2], Skipped("fp32", None, "it was not measured"))
    compared = pairs.compare([made.arm("bf16", MS), made.arm("fp8", MS)], runs=[run])
    assert compared.skipped == (*skipped[:2], Skipped("fp32", None, "it was not measured"))


def test_faults_of_a_trace_are_notes_of_its_arm() -> None:
    name = f"b1_i{INPUT}_o9"
    lost = Launches(np.array([1, 2]), np.array([7, 7]), np.array([True, True]))
    spoiled = made.traced("bf16", replace(generation(graph=True).trace(), unanswered=lost), name, "bf16")
    arms = [
        ArmRecords(arm, arm, made.latency(arm, {1: MS[1]}), kernels={name: record})
        for arm, record in (("bf16", spoiled), ("fp8", made.kernels("fp8", fp8=True)))
    ]
    (shape,) = pair(*arms).shapes
    (note,) = shape.notes["bf16"]
    assert note.startswith("Graph launches without kernels: 2 of ")
    assert "fp8" not in shape.notes
    assert shape.ceiling == dict.fromkeys(spoiled.phases, CeilingOfPhase(None, None, None))
