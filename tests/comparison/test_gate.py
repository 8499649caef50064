"""Gates: every position of a bound against every interval, what is missing, and what is no gate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.comparison import gate
from moe_eval.comparison.gate import Condition, GateResult
from moe_eval.errors import UsageError
from moe_eval.records.comparison import (
    ComparedArm,
    ComparisonRecord,
    Fairness,
    PairSchedule,
    QualityComparison,
    SpeedRatios,
    Verdict,
)
from moe_eval.records.labels import Status
from moe_eval.records.run import Skipped
from moe_eval.stats import Estimate
from tests.doubles import comparisons as made
from tests.doubles.comparisons import QUALITY, RELOADED, TURNS, Known, shape

HOLDS, FAILS, UNDECIDED = GateResult
FIGURES = ("speed", "ttft", "tpot", "ln_ppl", "kld", "top1")


def comparison(
    *interval: Known | None, quality: QualityComparison | None = QUALITY, schedule: PairSchedule = TURNS, **changes: Any
) -> ComparisonRecord:
    """A pair with shapes of batch 1, 8 and so on, all of whose times have these ratios."""
    rows = [shape(batch, ratio) for batch, ratio in zip((1, 8, 32), interval, strict=False)]
    return made.comparison(made.pair(rows, schedule, quality, **changes))


def code(text: str, record: ComparisonRecord) -> GateResult:
    return gate.check(record, gate.parse(text))[0]


def test_a_gate_is_read_and_its_worst_result_counts() -> None:
    worst = [GateResult.worst(results) for results in ([], [HOLDS, UNDECIDED], [UNDECIDED, FAILS, HOLDS])]
    assert worst == [HOLDS, UNDECIDED, FAILS]
    assert gate.parse("speed>=1.2, ln_ppl <= 1e-2,speed[b8]>=2,verdict==pays") == (
        Condition("speed>=1.2", "speed", None, ">=", 1.2),
        Condition("ln_ppl<=1e-2", "ln_ppl", None, "<=", 0.01),
        Condition("speed[b8]>=2", "speed", 8, ">=", 2.0),
        Condition("verdict==pays", "verdict"),
    )


@given(st.sampled_from(FIGURES), st.sampled_from([">=", "<="]), st.floats(allow_nan=False, allow_infinity=False))
def test_every_bound_is_read_as_it_is_written(name: str, sign: str, bound: float) -> None:
    bound = abs(math.sin(bound)) if name == "top1" else bound
    (record,) = gate.parse(f"{name}{sign}{bound!r}")
    assert (record.name, record.sign, record.bound, record.batch_size) == (name, sign, bound, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "speed",
        "speed>1.2",
        "speed>=",
        "speed>=x",
        "speed>=nan",
        "speed>=inf",
        "speed==1.2",
        "fast>=1",
        "speed>=1,",
        "kld[b8]<=1",
        "speed[8]>=1",
        "speed[b]>=1",
        "verdict==wins",
        "verdict>=1",
        "speed>=1;ln_ppl<=1",
        "speed>=1>=2",
        "kld<=1_0",
        "kl d<=1",
        "kld<=1 0",
        "kld< =1",
        "kld<=\uff11",
        "speed[b\u0661]>=1",
        "kld<=1e999",
        "kld<=0x1",
        "top1>=50",
        "top1<=-0.1",
        "speed [b1]>=1",
    ],
)
def test_what_is_no_gate_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--gate has .*a list such as speed>=1.2,ln_ppl<=0.01.*verdict==pays\.$"):
        gate.parse(text)


@pytest.mark.parametrize("name", ["speed", "ttft", "tpot", "ln_ppl"])
def test_a_bound_is_held_against_the_ends_of_the_interval(name: str) -> None:
    """Every order of both ends and a bound, equal ones as well."""
    for low in range(1, 6):
        for high in range(low, 6):
            middle = (low + high) / 2
            ratio = Estimate(middle, 0.1, float(low), float(high))
            quality = replace(QUALITY, ln_ppl_ratio=ratio)
            record = comparison((middle, float(low), float(high)), quality=quality, schedule=RELOADED)
            for bound in range(7):
                # all that the interval holds, in small steps
                values = [low + (high - low) * step / 100 for step in range(101)]
                for sign, holds in ((">=", [v >= bound for v in values]), ("<=", [v <= bound for v in values])):
                    expected = HOLDS if all(holds) else UNDECIDED if any(holds) else FAILS
                    assert code(f"{name}{sign}{bound}", record) == expected, (low, high, sign, bound)


@pytest.mark.parametrize(("name", "value"), [("kld", 0.01), ("top1", 0.95)])
def test_figures_of_every_token_count_as_they_are(name: str, value: float) -> None:
    for sign, bound, expected in (
        (">=", value, HOLDS),
        ("<=", value, HOLDS),
        (">=", value + 0.01, FAILS),
        ("<=", value + 0.01, HOLDS),
        ("<=", value - 0.005, FAILS),
    ):
        assert code(f"{name}{sign}{bound!r}", comparison((1.2, 1.1, 1.3))) == expected


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
        result, lines = gate.check(record, gate.parse(",".join(texts)))
        assert result == expected
        assert len(lines) == 2
        assert all("fp8 against bf16: b1_i512_o256 1.20x, 1.10 to 1.30" in line for line in lines)
    slower = comparison((1.0, 0.9, 1.1), other="nvfp4")
    both = replace(record, pairs=(*record.pairs, *slower.pairs))
    result, lines = gate.check(both, gate.parse("speed>=1.15"))
    assert (result, len(lines)) == (FAILS, 2)
    assert lines[1].startswith("speed>=1.15 fails for nvfp4 against bf16")


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [("pays", HOLDS), ("does not pay", FAILS), ("inconclusive", UNDECIDED), ("not comparable", UNDECIDED)],
)
def test_the_verdict_is_a_condition(verdict: str, expected: GateResult) -> None:
    assert code("verdict==pays", comparison((1.2, 1.1, 1.3), verdict=Verdict(verdict))) == expected


def test_what_is_missing_or_not_comparable_is_not_decided() -> None:
    for name in FIGURES:
        assert code(f"{name}>=0", comparison(quality=None)) == UNDECIDED
        elsewhere = comparison((1.2, 1.1, 1.3), differs=("Speed was measured on another GPU.",))
        assert code(f"{name}<=1", elsewhere) == UNDECIDED
    assert code("ln_ppl<=9", comparison(quality=replace(QUALITY, ln_ppl_ratio=None, no_interval="One document."))) == 2
    for name in ("kld", "ln_ppl"):
        unknown = replace(QUALITY, divergence=None, ln_ppl_ratio=None, no_interval="Not at hand.")
        record, (line,) = gate.check(comparison(quality=unknown), gate.parse(f"{name}<=9"))
        assert (record, line.endswith("Not at hand.")) == (UNDECIDED, True)
    assert code("speed>=0", comparison((1.2, 1.1, 1.3), None)) == UNDECIDED  # one side broke down at batch 8
    assert gate.check(made.comparison(), gate.parse("speed>=0"))[0] == UNDECIDED
    itself = comparison((1.2, 1.1, 1.3), other="bf16-again")
    assert gate.check(itself, gate.parse("speed>=9"))[0] == UNDECIDED, "an arm against itself is no condition"


def test_unfair_shapes_are_not_decided_and_traced_ones_are_left_out() -> None:
    record = comparison((1.2, 1.1, 1.3), (1.2, 1.1, 1.3))
    small, large = record.pairs[0].shapes
    unfair = replace(large, fairness=Fairness(is_fair=False, reason="Other experts."))
    record = made.comparison(replace(record.pairs[0], shapes=(small, unfair)))
    assert code("speed>=1", record) == UNDECIDED
    assert code("speed[b1]>=1", record) == HOLDS
    traced = replace(large, figures={}, speed=SpeedRatios())
    record = made.comparison(replace(record.pairs[0], shapes=(small, traced)))
    assert code("speed>=1", record) == HOLDS


def test_a_ratio_without_an_interval_is_known_to_three_percent() -> None:
    for schedule in (TURNS, replace(TURNS, mode="sequential")):
        record = comparison((1.2, None, None), schedule=schedule)
        assert [code(f"speed>={bound}", record) for bound in (1.16, 1.17, 1.23, 1.24)] == [0, 2, 2, 1]
        assert "no interval" in gate.check(record, gate.parse("speed>=1"))[1][0]


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
    result, lines = gate.check(record, gate.parse("speed>=1"))
    assert (result, lines[1:]) == (UNDECIDED, [line])
    assert lines[0].startswith("speed>=1 holds for fp8")
    assert gate.check(record, gate.parse("speed>=2"))[0] == FAILS
    nothing = gate.check(replace(record, pairs=()), gate.parse("speed>=1"))
    assert (nothing[0], line in nothing[1]) == (UNDECIDED, True)


def test_what_one_evaluator_left_out_is_told_by_the_pair() -> None:
    arms = (ComparedArm("fp8", "fp8", Status.FINISHED),)
    record = replace(comparison(), arms=arms, skipped=(Skipped("fp8", "latency", "it is emulated"),))
    assert [code(text, record) for text in ("kld<=1", "speed>=0.1")] == [HOLDS, UNDECIDED]


def test_a_task_that_failed_keeps_a_gate_from_holding() -> None:
    record = comparison((1.2, 1.1, 1.3))
    result, lines = gate.check(record, gate.parse("speed>=1"), failed_tasks=2)
    assert (result, lines[-1]) == (UNDECIDED, "2 tasks of the run failed, so the gate cannot hold.")
    assert gate.check(record, gate.parse("speed>=2"), failed_tasks=1)[0] is FAILS
