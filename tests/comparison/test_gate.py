"""Gates: every position of a bound against every interval, and what is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats as distributions

from moe_eval.comparison import gate, gate_text
from moe_eval.comparison.gate import GateResult
from moe_eval.errors import UsageError
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, PairSchedule, QualityComparison
from moe_eval.records.labels import Status
from moe_eval.records.ratios import SpeedRatios
from moe_eval.records.run import Skipped
from moe_eval.records.verdicts import Verdict
from moe_eval.stats import Estimate
from tests.doubles import comparisons as made
from tests.doubles.comparisons import QUALITY, TURNS, UNFAIR, Known, shape

HOLDS, FAILS, UNDECIDED = GateResult
FIGURES = ("speed", "ttft", "tpot", "ln_ppl", "kld", "top1")


def comparison(
    *interval: Known | None, quality: QualityComparison | None = QUALITY, schedule: PairSchedule = TURNS, **changes: Any
) -> ComparisonRecord:
    """A pair with shapes of batch 1, 8 and so on, all of whose times have these ratios."""
    rows = [shape(batch, times) for batch, times in zip((1, 8, 32, 64), interval, strict=False)]
    return made.comparison(made.pair(rows, schedule, quality, **changes))


def code(text: str, record: ComparisonRecord) -> GateResult:
    return gate.check(record, gate_text.parse(text))[0]


@pytest.mark.parametrize("name", ["speed", "ttft", "tpot", "ln_ppl"])
def test_a_bound_is_held_against_the_ends_of_the_interval(name: str) -> None:
    """Every order of both ends and a bound, equal ones as well."""
    for low in range(1, 5):
        for high in range(low, 5):
            middle = math.sqrt(low * high)
            half = (high - low) / 2
            error = half / float(distributions.t.ppf(0.975, 3))
            quality = replace(QUALITY, ln_ppl_ratio=Estimate(low + half, error, float(low), float(high), 3))
            record = comparison((middle, float(low), float(high)), quality=quality)
            for bound in (step / 2 for step in range(11)):
                # all that the interval holds, in small steps
                values = [low + (high - low) * step / 100 for step in range(101)]
                for sign, holds in ((">=", [v >= bound for v in values]), ("<=", [v <= bound for v in values])):
                    expected = HOLDS if all(holds) else UNDECIDED if any(holds) else FAILS
                    if high > low and sum(holds) == 1:
                        continue  # at the far end the p-value is the error rate itself, as well as floats tell
                    assert code(f"{name}{sign}{bound}", record) == expected, (low, high, sign, bound)


@pytest.mark.parametrize(("name", "low", "high"), [("kld", 0.008, 0.012), ("top1", 0.94, 0.96)])
def test_divergence_and_agreement_have_intervals_too(name: str, low: float, high: float) -> None:
    middle = (low + high) / 2
    for sign, bound, expected in (
        (">=", low, HOLDS),
        ("<=", high, HOLDS),
        (">=", middle, UNDECIDED),
        ("<=", middle, UNDECIDED),
        (">=", high + 0.01, FAILS),
        ("<=", low - 0.005, FAILS),
    ):
        assert code(f"{name}{sign}{bound!r}", comparison((1.2, 1.1, 1.3))) == expected


def test_a_lower_bound_of_the_divergence_never_holds_a_most() -> None:
    bound = replace(QUALITY, divergence=replace(QUALITY.divergence, kind="capped"))
    results = [code(f"kld{text}", comparison((1.2, 1.1, 1.3), quality=bound)) for text in ("<=9", "<=0.001", ">=0.001")]
    assert results == [UNDECIDED, FAILS, HOLDS]


def test_a_condition_is_about_every_shape_or_one() -> None:
    record = comparison((1.0, 0.97, 1.03), (1.5, 1.4, 1.6))
    for text, expected in (
        ("speed>=1.2", FAILS),
        ("speed[b8]>=1.2", HOLDS),
        ("speed[b1]>=1.2", FAILS),
        ("speed[b1]>=1", UNDECIDED),
        ("speed>=0.9", HOLDS),
        ("speed>=1", UNDECIDED),
        ("speed[b64]>=0.1", UNDECIDED),
        ("tpot[b8]>=1.4", HOLDS),
    ):
        assert code(text, record) == expected, text
    # one that failed counts more than one that is open
    assert code("speed>=1.2", comparison((1.0, 0.5, 2.0), (1.0, 0.9, 1.1))) == FAILS


def test_codes_of_several_conditions() -> None:
    record = comparison((1.2, 1.1, 1.3))
    holds, fails, undecided = "speed>=1", "speed>=2", "speed>=1.2"
    for texts, expected in (
        ((holds, holds), HOLDS),
        ((holds, fails), FAILS),
        ((holds, undecided), UNDECIDED),
        ((undecided, fails), FAILS),
    ):
        result, lines = gate.check(record, gate_text.parse(",".join(texts)))
        assert result == expected
        assert len(lines) == 2
        assert all("fp8 against bf16: b1_i512_o256 1.20x (1.10 to 1.30)." in line for line in lines)
    slower = comparison((1.0, 0.9, 1.1), other="nvfp4")
    both = replace(record, pairs=(*record.pairs, *slower.pairs))
    result, lines = gate.check(both, gate_text.parse("speed>=1.15"))
    assert (result, len(lines)) == (FAILS, 2)
    assert lines[1].startswith("speed>=1.15 fails for nvfp4 against bf16")


def test_a_condition_may_be_about_one_arm() -> None:
    record = comparison((1.2, 1.1, 1.3))
    nvfp4 = comparison((0.8, 0.75, 0.85), other="nvfp4", verdict=Verdict.SLOWER)
    both = replace(record, pairs=(*record.pairs, *nvfp4.pairs))
    for text, expected in (
        ("fp8:speed>=1", HOLDS),
        ("nvfp4:speed>=1", FAILS),
        ("speed>=1", FAILS),
        ("fp8:verdict==pays", HOLDS),
        ("nvfp4:verdict==pays", FAILS),
        ("fp8:speed>=1,nvfp4:speed>=0.7", HOLDS),
        ("int4:speed>=1", UNDECIDED),
    ):
        assert code(text, both) == expected, text
    _, lines = gate.check(both, gate_text.parse("fp8:speed>=1,nvfp4:speed>=0.7"))
    assert [line.partition(":speed")[0] for line in lines] == ["fp8", "nvfp4"]
    _, lines = gate.check(both, gate_text.parse("int4:speed>=1"))
    assert lines == ["Nothing was compared with the reference for int4:speed>=1, so the gate is not decided."]
    gate_text.check_arms(gate_text.parse("fp8:speed>=1,speed>=2"), ["bf16", "fp8"])
    with pytest.raises(UsageError, match=r"'int4:speed>=1', and the arms are bf16, fp8\. Name one"):
        gate_text.check_arms(gate_text.parse("int4:speed>=1"), ["bf16", "fp8"])


def test_a_bound_among_many_fails_by_holms_procedure() -> None:
    """An interval that ends just below a bound fails alone, and beside seven bounds that hold it decides nothing."""
    barely, sure = (1.1, 1.21 / 1.198, 1.198), (2.0, 1.9, 2.1)
    alone, beside = comparison(barely), comparison(barely, sure, sure, sure)
    assert code("speed>=1.2", alone) == FAILS
    assert code("speed>=1.2", beside) == UNDECIDED
    assert code("speed>=1.2,ttft<=9", alone) == UNDECIDED
    # where all others fail for sure, the last needs no more than it does alone
    assert code("speed>=1.2", comparison(barely, *[(0.5, 0.49, 0.51)] * 3)) == FAILS
    _, lines = gate.check(comparison(barely, *[(0.5, 0.49, 0.51)] * 3), gate_text.parse("speed>=1.2"))
    assert lines[0].count("x (") == 4


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.PAYS, HOLDS),
        (Verdict.SLOWER, FAILS),
        (Verdict.NO_DIFFERENCE, FAILS),
        (Verdict.OPEN, UNDECIDED),
        (Verdict.BROKEN, UNDECIDED),
        (Verdict.NOT_COMPARABLE, UNDECIDED),
        (Verdict.QUICK_LOOK, UNDECIDED),
    ],
)
def test_the_verdict_is_a_condition(verdict: Verdict, expected: GateResult) -> None:
    record = comparison((1.2, 1.1, 1.3), verdict=verdict)
    result, lines = gate.check(record, gate_text.parse("verdict==pays"))
    assert result == expected
    assert lines[0].endswith(f"for fp8 against bf16: the verdict is {verdict.value!r}.")


def test_what_is_missing_or_not_comparable_is_not_decided() -> None:
    for name in FIGURES:
        assert code(f"{name}>=0", comparison(quality=None)) == UNDECIDED
        elsewhere = comparison((1.2, 1.1, 1.3), differs=("Speed was measured on another GPU.",))
        assert code(f"{name}<=1", elsewhere) == UNDECIDED
    assert code("ln_ppl<=9", comparison(quality=replace(QUALITY, ln_ppl_ratio=None, no_interval="One document."))) == 2
    for name in ("kld", "ln_ppl"):
        unknown = replace(QUALITY, divergence=None, ln_ppl_ratio=None, no_interval="Not at hand.")
        record, (line,) = gate.check(comparison(quality=unknown), gate_text.parse(f"{name}<=9"))
        assert (record, line.endswith("Not at hand.")) == (UNDECIDED, True)
    assert code("speed>=0", comparison((1.2, 1.1, 1.3), None)) == UNDECIDED  # one side broke down at batch 8
    assert gate.check(made.comparison(), gate_text.parse("speed>=0"))[0] == UNDECIDED
    itself = comparison((1.2, 1.1, 1.3), other="bf16-again")
    assert gate.check(itself, gate_text.parse("speed>=9"))[0] == UNDECIDED, "an arm against itself is no condition"


def test_shapes_that_are_not_comparable_are_not_decided_and_traced_ones_are_left_out() -> None:
    record = comparison((1.2, 1.1, 1.3), (1.2, 1.1, 1.3))
    small, large = record.pairs[0].shapes
    unfair = replace(large, fairness=UNFAIR, verdict=Verdict.NOT_COMPARABLE, reason="Other experts.")
    record = made.comparison(replace(record.pairs[0], shapes=(small, unfair)))
    assert code("speed>=1", record) == UNDECIDED
    assert code("speed>=2", record) == FAILS
    assert code("speed[b1]>=1", record) == HOLDS
    traced = replace(large, figures={}, speed=SpeedRatios())
    record = made.comparison(replace(record.pairs[0], shapes=(small, traced)))
    assert code("speed>=1", record) == HOLDS


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"arms": (ComparedArm("fp8", "fp8", Status.FAILED, "out of memory."),)},
            "fp8 failed (out of memory), so the gate cannot hold.",
        ),
        (
            {"skipped": (Skipped("nvfp4", None, "no checkpoint"),)},
            "nvfp4 was left out (no checkpoint), so the gate cannot hold.",
        ),
        (
            {"skipped": tuple(Skipped("nvfp4", name, "emulated") for name in ("latency", "kernels"))},
            "nvfp4 was left out (emulated), so the gate cannot hold.",
        ),
    ],
)
def test_an_arm_that_is_missing_keeps_a_gate_from_holding(changes: dict[str, Any], line: str) -> None:
    record = replace(comparison((1.2, 1.1, 1.3)), **changes)
    result, lines = gate.check(record, gate_text.parse("speed>=1"))
    assert (result, lines[1:]) == (UNDECIDED, [line])
    assert lines[0].startswith("speed>=1 holds for fp8")
    assert gate.check(record, gate_text.parse("speed>=2"))[0] == FAILS
    nothing = gate.check(replace(record, pairs=()), gate_text.parse("speed>=1"))
    assert (nothing[0], line in nothing[1]) == (UNDECIDED, True)


def test_what_one_evaluator_left_out_is_told_by_the_pair() -> None:
    arms = (ComparedArm("fp8", "fp8", Status.FINISHED),)
    record = replace(comparison(), arms=arms, skipped=(Skipped("fp8", "latency", "it is emulated"),))
    assert [code(text, record) for text in ("kld<=1", "speed>=0.1")] == [HOLDS, UNDECIDED]


def test_a_task_that_failed_keeps_a_gate_from_holding() -> None:
    record = comparison((1.2, 1.1, 1.3))
    result, lines = gate.check(record, gate_text.parse("speed>=1"), failed_tasks=2)
    assert (result, lines[-1]) == (UNDECIDED, "2 tasks of the run failed, so the gate cannot hold.")
    assert gate.check(record, gate_text.parse("speed>=2"), failed_tasks=1)[0] is FAILS
