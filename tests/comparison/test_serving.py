"""Arms under load: ratios, verdicts and sentences of records whose figures have a closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from moe_eval.comparison import gate, gate_text, pairs, served_gate
from moe_eval.comparison.gate import GateResult
from moe_eval.data.served_requests import LoadPoint
from moe_eval.errors import UsageError
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import Pair
from moe_eval.records.headline import HeadlineFigure
from moe_eval.records.serving import ServingLimits
from moe_eval.records.serving_comparison import ServingComparison
from moe_eval.records.verdicts import Rules, Verdict
from tests.doubles import served
from tests.doubles.recorded_arms import TIMED_ON, kernels, latency

LOADS = (0.996, 1.002, 1.004, 0.998)  # what every load's times are multiplied with
USERS = (1, 2, 4, 8, 16)
ARMS = ("bf16", "fp8")


def arm(name: str, gains: Mapping[int, float], loads: Sequence[float] = LOADS, **options: Any) -> ArmRecords:
    """An arm whose tokens take 10 ms x users^0.5 over its gain."""
    tpot = {users: [10 * users**0.5 / gain * load for load in loads] for users, gain in gains.items()}
    facts = replace(TIMED_ON, precision=name.partition("-")[0], gpus=options.pop("count", 1))
    record = served.record(name, tpot, facts, **options)
    return ArmRecords(name, record.precision, serving=record)


def counted(*sides: ArmRecords, experts: tuple[float, float] = (50.0, 50.0)) -> list[ArmRecords]:
    """Arms whose experts were counted in fixed batches: so many of a step."""
    return [
        replace(side, latency=latency(side.name, {8: [[10.0]] * 4}, experts=count))
        for side, count in zip(sides, experts, strict=True)
    ]


def compared(*arms: ArmRecords, rules: Rules | None = None) -> Pair:
    return pairs.compare(arms, rules=rules).pairs[0]


def serving(pair: Pair) -> ServingComparison:
    assert pair.serving is not None
    return pair.serving


def level(gain: float) -> dict[int, float]:
    return dict.fromkeys(USERS, gain)


def test_a_gain_in_time_is_the_ratio_at_every_point() -> None:
    shifted = [*LOADS[1:], LOADS[0]]
    pair = compared(arm("bf16", level(1.0)), arm("fp8", level(1.25), shifted))
    for point in serving(pair).points:
        ratios = point.ratios
        for ratio in (ratios.output_tok_s, ratios.tok_s_per_user, ratios.e2e_p50_ms, ratios.ttft_p50_ms):
            assert ratio is not None
            assert ratio.value == pytest.approx(1.25)
            assert ratio.low is not None
            assert 1.2 < ratio.low < 1.25
        assert point.verdict is Verdict.PAYS
    assert pair.verdict is Verdict.PAYS
    assert pair.sentence.startswith("At every load measured fp8 pays, in output tokens per second and GPU: 1.250x (")


def test_at_equal_speed_it_counts_twice_and_only_on_the_frontier() -> None:
    pair = compared(arm("bf16", level(1.0)), arm("fp8", level(1.25)))
    ratios = {point.point.concurrency: point.at_equal_speed for point in serving(pair).points}
    assert ratios[16] is None, "its frontier ends before: nobody is as slow"
    for users in (1, 2, 4, 8):
        ratio = ratios[users]
        assert ratio is not None
        assert ratio.value == pytest.approx(1.5625)
    assert [point.is_best for point in serving(pair).frontier[0]] == [True] * 5
    assert serving(pair).frontier[0][2].tok_s_per_gpu == pytest.approx(4 * 1000 / 20, rel=1e-3)


def test_the_users_within_a_limit_come_first() -> None:
    limits = ServingLimits(tpot_ms=25.0)
    shifted = [*LOADS[1:], LOADS[0]]
    pair = compared(arm("bf16", level(1.0), limits=limits), arm("fp8", level(1.2), shifted, limits=limits))
    users = serving(pair).users
    assert users is not None
    assert (users.reference, users.other) == (pytest.approx(6.25, rel=0.01), pytest.approx(9.0, rel=0.01))
    assert users.ratio is not None
    assert users.ratio.value == pytest.approx(1.44)
    assert pair.sentence.startswith("fp8 serves 1.440x (")
    assert "the users within 25 ms a token (fp8 9, bf16 6.25)." in pair.sentence


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (5.0, "Within 5 ms a token neither arm serves even 1 user."),
        (9.0, "Within 9 ms a token fp8 serves 1.17 users and bf16 none."),
        (10.0, "fp8 serves 1.44"),
        (39.0, "Within 39 ms a token fp8 serves 16 users or more and bf16 15.2 users, at least 1.05x."),
        (99.0, "Within 99 ms a token both arms serve 16 users or more."),
    ],
)
def test_a_limit_beyond_the_points_has_no_ratio(limit: float, words: str) -> None:
    limits = ServingLimits(tpot_ms=limit)
    loads = (1.0, 1.0, 1.0)
    pair = compared(arm("bf16", level(1.0), loads, limits=limits), arm("fp8", level(1.2), loads, limits=limits))
    assert pair.sentence.startswith(words)
    assert (headline(pair) is None) == (limit != 10.0), "a bound is no headline"


def headline(pair: Pair) -> float | None:
    return next((entry.ratio for entry in pair.headlines if entry.figure is HeadlineFigure.USERS_IN_TIME), None)


def test_fewer_users_than_were_tried_are_not_none() -> None:
    limits, loads = ServingLimits(tpot_ms=35.0), (1.0, 1.0, 1.0)
    for gain, words in (
        (1.0, "neither arm serves 16 users."),
        (1.5, "fp8 serves 16 users or more and bf16 fewer than"),
    ):
        pair = compared(arm("bf16", {16: 1.0}, loads, limits=limits), arm("fp8", {16: gain}, loads, limits=limits))
        assert pair.sentence.startswith(f"Within 35 ms a token {words}")


def test_a_point_that_one_arm_failed_is_told_apart_from_an_open_one() -> None:
    failing = {users: [10 / 1.2 * users**0.5 * load if users < 16 else None for load in LOADS] for users in USERS}
    record = served.record("fp8", failing, replace(TIMED_ON, precision="fp8"))
    pair = compared(arm("bf16", level(1.0)), ArmRecords("fp8", "fp8", serving=record))
    assert pair.sentence.startswith("At 16 users not both arms were measured. Up to 8 users fp8 pays, in output tokens")
    assert pair.settled_by == "Give --resume, which measures again what failed."


def test_what_settles_servers_is_told_beside_batches_that_are_settled() -> None:
    pair = compared(*counted(arm("bf16", level(1.0)), arm("fp8", level(1.05), (0.7, 1.4, 1.0, 0.9))))
    assert (pair.verdict, serving(pair).verdict) == (Verdict.NO_DIFFERENCE, Verdict.OPEN)
    assert pair.settled_by is not None
    assert "loads" in pair.settled_by


def test_it_pays_from_a_load_on_and_does_nothing_below() -> None:
    gains = {1: 1.0, 2: 1.0, 4: 1.2, 8: 1.3, 16: 1.35}
    pair = compared(arm("bf16", level(1.0)), arm("fp8", gains, [*LOADS[1:], LOADS[0]]), rules=Rules(min_gain=0.02))
    assert [point.verdict for point in serving(pair).points] == [
        *[Verdict.NO_DIFFERENCE] * 2,
        *[Verdict.PAYS] * 3,
    ]
    sentences = pair.sentence.split(". ")
    assert sentences[0].startswith("From 4 users on fp8 pays, in output tokens per second and GPU: 1.200x (")
    assert sentences[0].endswith("at 16 users")
    assert sentences[1].startswith("Up to 2 users it makes no worthwhile difference: 1.000x (")


def test_one_slower_load_makes_the_pair_slower() -> None:
    gains = {1: 0.8, 2: 1.0, 4: 1.2, 8: 1.2, 16: 1.2}
    pair = compared(arm("bf16", level(1.0)), arm("fp8", gains))
    assert pair.verdict is Verdict.SLOWER
    assert "At 1 user it is slower: 0.80" in pair.sentence


def test_two_loads_are_a_quick_look_and_scatter_leaves_it_open() -> None:
    assert compared(arm("bf16", level(1.0), LOADS[:2]), arm("fp8", level(1.3), LOADS[:2])).verdict is Verdict.QUICK_LOOK
    wide = (0.7, 1.4, 1.0, 0.9)
    pair = compared(arm("bf16", level(1.0)), arm("fp8", level(1.05), wide))
    assert pair.verdict is Verdict.OPEN
    assert pair.settled_by is not None
    assert "loads" in pair.settled_by


def test_throughput_is_by_gpu_where_arms_have_other_numbers_of_them() -> None:
    pair = compared(arm("bf16", level(1.0), count=2), arm("fp8", level(1.0), count=1))
    ratios = [point.ratios for point in serving(pair).points]
    assert [ratio.output_tok_s.value for ratio in ratios if ratio.output_tok_s] == pytest.approx([2.0] * 5)
    assert [ratio.e2e_p50_ms.value for ratio in ratios if ratio.e2e_p50_ms] == pytest.approx([1.0] * 5)


def test_a_load_that_failed_on_one_side_pairs_with_none() -> None:
    record = served.record("fp8", {1: [8.0, None, 8.0, 8.0, 8.0]}, replace(TIMED_ON, precision="fp8"))
    reference = served.record("bf16", {1: [10.0, 99.0, 10.0, 10.0, 10.0]}, TIMED_ON)
    pair = compared(ArmRecords("bf16", "bf16", serving=reference), ArmRecords("fp8", "fp8", serving=record))
    (point,) = serving(pair).points
    assert point.ratios.output_tok_s is not None
    assert point.ratios.output_tok_s.value == pytest.approx(1.25)
    assert serving(pair).loads == 4
    assert "fp8 failed (the server ended)" in pair.sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"digest": "e" * 16}, "other requests (digests"),
        ({"limits": ServingLimits(ttft_ms=1.0)}, "within other limits"),
        ({"output": 5}, "Answers had 5.0 to 11.0 tokens"),
    ],
)
def test_servers_that_did_other_work_are_not_compared(options: dict[str, Any], words: str) -> None:
    pair = compared(arm("bf16", level(1.0)), arm("fp8", level(1.2), **options))
    assert pair.verdict is Verdict.NOT_COMPARABLE
    assert words in pair.sentence
    assert all(point.verdict is Verdict.NOT_COMPARABLE for point in serving(pair).points)


def test_points_and_arms_are_one_family() -> None:
    """An interval that lies just above the least gain alone is not confirmed among five."""
    loads = (1.0, 1.0, 1.0, 1.0)
    gains = (1.016, 1.0245, 1.02, 1.0195)
    tpot = {users: [10 / gain for gain in gains] for users in USERS}
    alone = served.record("fp8", {1: tpot[1]}, replace(TIMED_ON, precision="fp8"))
    many = served.record("fp8", tpot, replace(TIMED_ON, precision="fp8"))
    reference = {users: [10.0] * len(loads) for users in USERS}
    sides = [
        (served.record("bf16", {1: reference[1]}, TIMED_ON), alone),
        (served.record("bf16", reference, TIMED_ON), many),
    ]
    verdicts = [
        serving(compared(ArmRecords("bf16", "bf16", serving=first), ArmRecords("fp8", "fp8", serving=second))).points[0]
        for first, second in sides
    ]
    assert [point.verdict for point in verdicts] == [Verdict.PAYS, Verdict.OPEN]
    assert "(Holm)" in verdicts[1].reason


def checked(pair_arms: Sequence[ArmRecords], text: str) -> tuple[GateResult, str]:
    comparison = pairs.compare(pair_arms)
    result, lines = gate.check(comparison, gate_text.parse(text))
    return result, " ".join(lines)


def test_a_gate_on_goodput_bounds_the_most_that_any_point_has() -> None:
    """Within 25 ms a token four users are in time with bf16, and eight with fp8: 2.5 times the requests."""
    limits, shifted = ServingLimits(tpot_ms=25.0), [*LOADS[1:], LOADS[0]]
    arms = counted(arm("bf16", level(1.0), limits=limits), arm("fp8", level(1.25), shifted, limits=limits))
    ratio = serving(compared(*arms)).goodput
    assert ratio is not None
    assert ratio.value == pytest.approx(1.25 * math.sqrt(2))
    assert checked(arms, "serving:goodput>=1.7")[0] is GateResult.HOLDS
    assert checked(arms, "serving:goodput >= 1.9")[0] is GateResult.FAILS
    assert checked(arms, "fp8:serving:goodput[c4]>=1.2")[0] is GateResult.HOLDS
    assert checked(arms, "serving:goodput>=1.7678")[0] is GateResult.UNDECIDED
    assert checked(arms, "serving:users>=1.5,serving:output[c16]>=1.2")[0] is GateResult.HOLDS
    result, why = checked(arms, "serving:goodput[c16]>=1")
    assert (result, "no such figure" in why) == (GateResult.UNDECIDED, True)


def test_no_gate_on_servers_is_decided_where_nobody_counted_experts() -> None:
    sides = [arm("bf16", level(1.0)), arm("fp8", level(1.25))]
    for text in ("serving:output>=1.1", "serving:output>=2", "serving:user[c4]>=1.1"):
        result, why = checked(sides, text)
        assert (result, "routing was not checked" in why) == (GateResult.UNDECIDED, True)
    assert checked(sides, "verdict==pays")[0] is GateResult.UNDECIDED
    assert checked(counted(*sides), "serving:output>=1.1")[0] is GateResult.HOLDS
    assert checked(counted(*sides), "serving:output>=2")[0] is GateResult.FAILS


def test_a_gate_on_what_was_not_served_is_undecided() -> None:
    few = [arm("bf16", level(1.0), LOADS[:2]), arm("fp8", level(1.3), LOADS[:2])]
    for arms, text, words in (
        (few, "serving:output>=1.1", "is a quick look"),
        (few, "serving:output[c5]>=1.1", "no load point c5"),
        (few, "serving:goodput>=1.1", "no such figure"),
        ([ArmRecords("bf16", "bf16"), ArmRecords("fp8", "fp8")], "serving:output>=1", "not measured on both sides"),
    ):
        result, why = checked(arms, text)
        assert result is GateResult.UNDECIDED
        assert words in why


@pytest.mark.parametrize("text", ["serving:goodputs>=1", "serving:speed>=1.1"])
def test_a_gate_names_the_figures_of_servers(text: str) -> None:
    with pytest.raises(UsageError, match="servers have no figure"):
        gate_text.parse(text)


def test_servers_of_two_runs_have_welchs_interval_and_no_interval_of_frontiers() -> None:
    pair = compared(arm("bf16", level(1.0)), arm("fp8", level(1.25), run_id="1" * 32))
    point = serving(pair).points[1]
    assert point.ratios.output_tok_s is not None
    assert point.ratios.output_tok_s.widened == pytest.approx(1.05)
    assert point.at_equal_speed is not None
    assert point.at_equal_speed.low is None
    assert "5 % are allowed" in pair.sentence


def test_an_arm_that_was_served_twice_pays_nothing_against_itself() -> None:
    again = arm("bf16-again", level(1.25))
    pair = compared(arm("bf16", level(1.0)), again)
    assert pair.is_repeat
    assert pair.verdict is Verdict.OPEN
    assert "so every ratio has to hold 1" in pair.sentence


def test_at_a_rate_the_time_of_a_request_decides_and_no_frontier_has_it() -> None:
    sides = []
    for name, ms in (("bf16", 10.0), ("fp8", 8.0)):
        record = served.record(name, {1: [ms] * 3}, replace(TIMED_ON, precision=name))
        (point,) = record.points
        sides.append(
            ArmRecords(
                name,
                name,
                serving=replace(record, points=(replace(point, name="r2.5_i8_o11", point=LoadPoint(None, 2.5)),)),
            )
        )
    pair = compared(*sides)
    (point,) = serving(pair).points
    assert point.ratios.deciding(point.point) is point.ratios.e2e_p50_ms
    assert pair.sentence.startswith("At 2.5 requests per second fp8 pays, by the median time of a request: 1.25x")
    assert serving(pair).frontier == ((), ())


def test_the_reason_is_of_the_load_at_which_servers_were_traced() -> None:
    shape = "c8_i8_o11"
    traces = [kernels(name, fp8=name == "fp8", shape=shape) for name in ARMS]
    sides = [replace(arm(trace.arm or "", level(1.0)), kernels={shape: trace}) for trace in traces]
    assert compared(*sides).because.startswith("At 8 users the expert GEMMs are ")


def test_experts_that_fixed_batches_show_to_differ_forbid_a_verdict_on_servers() -> None:
    def both(experts: tuple[float, float]) -> Pair:
        return compared(*counted(arm("bf16", level(1.0)), arm("fp8", level(1.25)), experts=experts))

    fair, unfair = both((50.0, 50.0)), both((50.0, 20.0))
    assert "not checked" not in serving(fair).sentence
    assert serving(fair).verdict is Verdict.PAYS
    assert serving(unfair).verdict is Verdict.NOT_COMPARABLE
    assert "experts per layer and step" in serving(unfair).sentence
    alone = compared(arm("bf16", level(1.0)), arm("fp8", level(1.25)))
    assert "as many experts was not checked" in alone.sentence


@pytest.mark.parametrize(
    ("text", "limits", "words"),
    [
        ("serving:output>=1", None, "no server is driven. Add serving to --evaluators."),
        ("serving:goodput>=1.1", ServingLimits(), "requests in time need a limit. Give --ttft_ms or --tpot_ms."),
        ("serving:users>=1.1", ServingLimits(ttft_ms=9.0), "users in time need a limit. Give --tpot_ms."),
        ("fp8:serving:output[c9]>=1", ServingLimits(), "the load points are c1, c8. Name one of these."),
    ],
)
def test_a_gate_that_a_run_cannot_decide_is_refused_before_it(
    text: str, limits: ServingLimits | None, words: str
) -> None:
    with pytest.raises(UsageError) as problem:
        served_gate.check(gate_text.parse(text), limits, ["c1", "c8"], is_timed=True)
    assert str(problem.value) == f"--gate has {text!r}, and {words}"


@pytest.mark.parametrize("text", ["serving:output>=1", "fp8:verdict==pays"])
def test_a_gate_where_nobody_will_count_experts_is_refused_before_the_run(text: str) -> None:
    with pytest.raises(UsageError, match="Add latency to --evaluators"):
        served_gate.check(gate_text.parse(text), ServingLimits(), ["c1"], is_timed=False)


def test_other_gates_are_not_refused() -> None:
    for text, limits, is_timed in (
        ("serving:goodput>=1,speed>=1,serving:users>=1,verdict==pays", ServingLimits(tpot_ms=1.0), True),
        ("verdict==pays,speed>=1", None, True),
        ("ln_ppl<=0.1", ServingLimits(), False),
    ):
        served_gate.check(gate_text.parse(text), limits, ["c1"], is_timed=is_timed)


def test_whether_an_endpoint_caches_prefixes_is_not_known_and_forbids_nothing() -> None:
    sides = [arm("bf16", level(1.0)), arm("fp8", level(1.2))]
    records = [replace(side.serving, prefix_caching=None) for side in sides if side.serving]
    known = [replace(record, prefix_caching=caching) for record, caching in zip(records, (True, False), strict=True)]
    for pair_records, is_comparable in ((records, True), ([records[0], known[1]], True), (known, False)):
        pair = compared(*(replace(side, serving=record) for side, record in zip(sides, pair_records, strict=True)))
        assert (pair.verdict is not Verdict.NOT_COMPARABLE) == is_comparable
