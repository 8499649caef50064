"""What keeps a bound of speed from being decided, and which ratio it is held against."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats as distributions

from moe_eval.comparison import gate, gate_text
from moe_eval.comparison.gate import GateResult
from moe_eval.records.comparison import ComparedArm, ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.ratios import SpeedRatios
from moe_eval.records.shape_comparison import Clocks
from moe_eval.records.verdicts import Verdict
from tests.doubles import comparisons as made
from tests.doubles.comparisons import ABOVE, FAIR, UNCHECKED, ratio, shape

HOLDS, FAILS, UNDECIDED = GateResult


def code(text: str, record: ComparisonRecord) -> GateResult:
    return gate.check(record, gate_text.parse(text))[0]


@pytest.mark.parametrize("loads", [1, 2])
def test_a_quick_look_decides_nothing(loads: int) -> None:
    times = ratio(1.2, None, None, 1) if loads == 1 else ratio(1.2, 1.19, 1.21, 2)
    row = replace(shape(1, None), speed=SpeedRatios(times, times, times, times))
    for name in ("speed", "ttft", "tpot", "energy"):
        for condition in (">=0.1", "<=9", ">=9", "<=0.1"):
            result, lines = gate.check(made.comparison(made.pair([row])), gate_text.parse(f"{name}{condition}"))
            assert result == UNDECIDED
            assert "is a quick look" in lines[0]


@pytest.mark.parametrize("text", ["speed>=1", "speed<=1", "speed>=9", "verdict==pays"])
def test_routing_that_nobody_checked_and_emulation_decide_nothing(text: str) -> None:
    checked = made.comparison(made.pair([shape(1, ABOVE)]))
    unchecked = made.comparison(made.pair([shape(1, ABOVE, UNCHECKED)]))
    emulated = replace(checked, arms=(ComparedArm("fp8", "fp8", Status.FINISHED, emulated=True),))
    reference = replace(checked, arms=(ComparedArm("bf16", "bf16", Status.FINISHED, emulated=True),))
    assert code(text, checked) != UNDECIDED
    assert [code(text, record) for record in (unchecked, emulated, reference)] == [UNDECIDED] * 3


def test_a_broken_arm_has_no_speed_in_a_gate() -> None:
    result, lines = gate.check(
        made.comparison(made.pair([shape(1, ABOVE)], verdict=Verdict.BROKEN)), gate_text.parse("speed>=9,speed>=1")
    )
    assert result == UNDECIDED
    assert all(line.endswith("a broken arm has no speed.") for line in lines)


def test_energy_is_a_figure_of_its_own() -> None:
    row = shape(1, ABOVE)
    record = made.comparison(made.pair([replace(row, speed=replace(row.speed, j_per_tok=ratio(0.8, 0.75, 0.85)))]))
    assert [code(text, record) for text in ("energy>=0.7", "energy>=1", "energy>=0.8")] == [HOLDS, FAILS, UNDECIDED]
    assert code("energy>=0.1", made.comparison(made.pair([shape(1, ABOVE)]))) == UNDECIDED, "nobody measured it"


def test_iterations_at_a_low_clock_of_one_arm_decide_no_bound() -> None:
    """A ratio that an arm at a low clock makes: 1.5x, and 1.2x without it. It pays either way."""
    fast = ratio(1.2, 1.15, 1.25)
    row = replace(
        shape(1, (1.5, 1.45, 1.55)), clocks=Clocks((1980.0, 1980.0), (5, 0)), unthrottled=SpeedRatios(fast, fast, fast)
    )
    record = made.comparison(made.decide([row]))
    assert record.pairs[0].verdict is Verdict.PAYS
    for text, expected in (
        ("speed>=1.1", HOLDS),
        ("speed>=1.3", UNDECIDED),
        ("tpot<=1.3", UNDECIDED),
        ("ttft>=2", FAILS),
    ):
        result, lines = gate.check(record, gate_text.parse(text))
        assert result == expected, text
        assert "1.50x (1.45 to 1.55), without iterations at a low clock 1.20x (1.15 to 1.25)" in lines[0]


def test_a_bound_in_a_look_of_a_run_until_decided_has_a_part_of_the_error_rate() -> None:
    row = shape(1, None)
    times = ratio(1.1, 1.05, 1.1**2 / 1.05)
    assert times.df is not None
    for confidence in (0.95, 0.99, 0.999):
        level = (1 - confidence) / 2
        # just beyond a bound by a one-sided test of this level, or just short of it
        for beyond, expected in ((1.01, FAILS), (0.99, UNDECIDED)):
            reach = beyond * float(distributions.t.ppf(1 - level, times.df)) * (times.error or 0)
            look = replace(times, confidence=confidence)
            record = made.comparison(made.pair([replace(row, speed=SpeedRatios(e2e_ms=look), fairness=FAIR)]))
            assert code(f"speed>={1.1 * math.exp(reach)!r}", record) == expected
