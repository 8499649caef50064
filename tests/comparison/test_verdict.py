"""Verdicts: every position of an interval, every combination of shapes, and what the sentences are made of."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats as scipy_stats

from moe_eval.comparison import allowances, verdict
from moe_eval.records.comparison import Fairness, PairSchedule, SpeedRatios
from tests.doubles.comparisons import (
    ABOVE,
    BELOW,
    FAIR,
    NOTHING_TO_GAIN,
    RELOADED,
    TURNS,
    UNCHECKED,
    UNFAIR,
    VERDICTS,
    WIDE,
    Known,
    decide,
    ratio,
    shape,
)


@pytest.mark.parametrize(
    ("low", "high", "expected_verdict"),
    [
        (1.0, 1.04, "does not pay"),  # it holds 1 where it begins there
        (1.0001, 1.04, "pays"),
        (0.96, 1.0, "does not pay"),
        (0.96, 0.9999, "does not pay"),
        (1 / 1.05, 1.05, "does not pay"),
        (1 / 1.05, 1.0501, "inconclusive"),
        (0.952, 1.05, "inconclusive"),
        (0.99, 1.08, "inconclusive"),  # a gain of 8 % may be in it
        (0.5, 1.01, "inconclusive"),
        (0.9, 1.0, "inconclusive"),
    ],
)
def test_the_edges_of_the_rule(low: float, high: float, expected_verdict: str) -> None:
    assert verdict.of_shape(shape(1, (math.sqrt(low * high), low, high)), RELOADED)[0] == expected_verdict


@pytest.mark.parametrize(
    ("schedule", "allowed"),
    [
        (replace(TURNS, mode="sequential"), 1.03),
        (replace(TURNS, one_run=False), 1.05),
        (replace(TURNS, mode="sequential", one_run=False), 1.05),
        (replace(TURNS, blocks=1), 1.03),
    ],
)
@pytest.mark.parametrize(
    ("beyond", "expected_verdict"),
    [
        (1.4, "pays"),
        (1.001, "pays"),
        (0.999, "inconclusive"),
        (0.985, "inconclusive"),
        (0.965, "inconclusive"),
        (0.5, "does not pay"),
    ],
)
def test_without_drift_in_an_interval_some_percent_have_to_be_passed(
    schedule: PairSchedule, allowed: float, beyond: float, expected_verdict: str
) -> None:
    value = allowed * beyond
    decided, reason = verdict.of_shape(shape(1, (value, None, None)), schedule)
    assert decided == expected_verdict
    assert f"{100 * allowed - 100:.0f} % of drift allowed for" in reason
    assert re.search("no interval|in no interval", reason)
    sentence = decide([shape(1, (value, None, None))], schedule).sentence
    assert f"{value:.2f}"[:3] in sentence
    assert "no interval" in sentence


def test_two_processes_side_by_side_may_differ_by_half_a_percent() -> None:
    """BF16 against itself on an H100, two processes in turns: 1.0024, 1.0003 to 1.0045."""
    same = (1.0024, 1.0003, 1.0045)
    decided, reason = verdict.of_shape(shape(1, same), TURNS)
    assert decided == "does not pay"
    assert reason.startswith("The ratio may be 1 ")
    assert "with 0.5 % of difference between two processes allowed for" in reason
    assert verdict.of_shape(shape(1, same), RELOADED)[0] == "pays"  # there every block is a process of its own
    assert verdict.of_shape(shape(1, (1.0064, 1.0051, 1.0077)), TURNS)[0] == "pays"
    assert verdict.of_shape(shape(1, (0.9936, 0.992, 0.9949)), TURNS)[0] == "does not pay"


@pytest.mark.parametrize("schedule", [TURNS, replace(TURNS, one_run=False)])
def test_an_interval_with_one_wide_end_does_not_become_an_allowance(schedule: PairSchedule) -> None:
    """How wide the interval is by itself is nothing that was allowed for."""
    percent = "0.5" if schedule.one_run else "5"
    for interval, place in (((1.2, 1.05, 1.203), "lies above 1"), ((0.8, 0.798, 0.95), "lies below 1")):
        assert f" 1 with {percent} % of " in verdict.of_shape(shape(1, interval), schedule)[1]
        assert place in verdict.of_shape(shape(1, interval), schedule)[1]
    assert "The interval holds 1" in verdict.of_shape(shape(1, (1.003, 0.9, 1.004)), schedule)[1]


def test_an_interval_that_drift_is_not_in_still_counts() -> None:
    """A ratio beyond drift whose own interval holds 1 decides nothing."""
    schedule = replace(TURNS, one_run=False)
    assert verdict.of_shape(shape(1, (1.07, 0.98, 1.17)), schedule)[0] == "inconclusive"
    assert verdict.of_shape(shape(1, (1.07, 1.06, 1.08)), schedule)[0] == "pays"
    assert verdict.of_shape(shape(1, (1.015, 1.01, 1.02)), schedule)[0] == "inconclusive"
    assert verdict.of_shape(shape(1, (1.015, 1.01, 1.02)), TURNS)[0] == "pays"


def test_fairness_comes_before_speed() -> None:
    assert {interval: verdict.of_shape(shape(1, interval), TURNS)[0] for interval in VERDICTS} == VERDICTS
    assert verdict.of_shape(shape(1, ABOVE, UNFAIR), TURNS) == ("not comparable", UNFAIR.reason)
    decided, reason = verdict.of_shape(shape(1, ABOVE, UNCHECKED), TURNS)
    assert decided == "pays"
    assert "not checked (bf16: not measured)" in reason
    assert verdict.of_shape(shape(1, None), TURNS)[0] == "inconclusive"


KINDS: dict[Any, tuple[Known | None, Fairness]] = {
    **{interval: (interval, FAIR) for interval in VERDICTS},
    "unfair": (BELOW, UNFAIR),
    "untimed": (None, FAIR),
}


def expected(kinds: Sequence[Any]) -> str:
    """The contract in other words: counts of each kind of shape."""
    timed = [kind for kind in kinds if kind != "untimed"]
    fair = [kind for kind in timed if kind != "unfair"]
    if not timed:
        return "inconclusive"
    if not fair:
        return "not comparable"
    if fair.count(BELOW):
        return "does not pay"
    if fair.count(ABOVE):
        return "pays"
    return "inconclusive" if fair.count(WIDE) else "does not pay"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_combination_of_shapes(count: int) -> None:
    for kinds in itertools.product(KINDS, repeat=count):
        rows = [shape(batch, *KINDS[kind]) for batch, kind in zip((1, 8, 32), kinds, strict=False)]
        pair = decide(rows)
        assert pair.verdict == expected(kinds), kinds
        assert (pair.settled_by is None) == (
            pair.verdict == "not comparable" or not (WIDE in kinds or set(kinds) == {"untimed"})
        ), kinds
        if pair.verdict in ("pays", "does not pay"):
            # no number without its interval: every ratio that is told is followed by one
            for number in re.findall(r"\d+\.\d+x.{12}", pair.sentence):
                assert re.match(r"\d+\.\d+x, \d\.\d+ to", number), pair.sentence
            assert "+0.40 % perplexity (+0.10 to +0.70)" in pair.sentence
        for batch, kind in zip((1, 8, 32), kinds, strict=False):
            # every batch size that does not pay is named with what it is
            word = {BELOW: "slower", NOTHING_TO_GAIN: "does not", WIDE: "is open", "unfair": "no verdict"}.get(kind)
            if word and pair.verdict != "not comparable":
                assert re.search(rf"At batch {batch} [a-z ]*{word}", pair.sentence), pair.sentence


def test_what_cannot_be_compared_says_what_differs() -> None:
    differs = ("Speed was measured on other prompts.", "Speed was measured on another GPU.")
    pair = decide([shape(1, ABOVE)], differs=differs, of_arms={"fp8": {"emulated": True}})
    assert (pair.verdict, pair.settled_by, pair.because) == ("not comparable", None, "")
    assert pair.sentence == f"fp8 cannot be compared with bf16. {differs[0]} {differs[1]}"
    assert pair.shapes[0].reason == f"{differs[0]} {differs[1]}"
    unfair = decide([shape(1, ABOVE, UNFAIR)])
    assert unfair.differs == (UNFAIR.reason,)


def test_an_arm_against_itself_has_to_come_out_as_one() -> None:
    assert decide([shape(1, NOTHING_TO_GAIN)], is_repeat=True).verdict == "does not pay"
    for interval in (ABOVE, BELOW):
        pair = decide([shape(1, NOTHING_TO_GAIN), shape(8, interval)], is_repeat=True)
        assert pair.verdict == "inconclusive"
        assert "not 1 at batch 8, so something disturbs the measurement" in pair.sentence


@pytest.mark.parametrize("blocks", [2, 3, 4, 10])
@pytest.mark.parametrize(("value", "half"), [(1.04, 0.06), (1.0, 0.2), (1.01, 0.06), (1.03, 0.5)])
def test_as_many_blocks_are_asked_for_as_decide_it(blocks: int, value: float, half: float) -> None:
    """Blocks that scatter alike give, in that number, an interval that decides, and it is the least such number."""
    interval = (value, value * math.exp(-half), value * math.exp(half))
    row = replace(shape(1, interval), speed=SpeedRatios(e2e_ms=ratio(*interval, blocks=blocks)))
    text = decide([row], RELOADED).settled_by
    deviation = half * math.sqrt(blocks) / scipy_stats.t.ppf(0.975, blocks - 1)

    def decides(blocks_in_all: int) -> bool:
        reach = scipy_stats.t.ppf(0.975, blocks_in_all - 1) * deviation / math.sqrt(blocks_in_all)
        narrower = (value, value * math.exp(-reach), value * math.exp(reach))
        return verdict.of_shape(shape(1, narrower), RELOADED)[0] != "inconclusive"

    if "more than 64" in text:
        assert not decides(64)
        return
    count = int(re.fullmatch(r"Give --blocks (\d+) for more blocks\.", text)[1])  # type: ignore[index]
    assert decides(count)
    assert count == 2 * blocks or not decides(count - 1)
    turns = decide([row], TURNS).settled_by
    assert turns == f"Give --num_iterations {count * 2} for more iterations."


@pytest.mark.parametrize("interval", [ABOVE, BELOW, NOTHING_TO_GAIN, WIDE, (1.3, None, None)])
def test_no_verdict_pays_both_ways(interval: Known) -> None:
    value, low, high = interval
    back = (1 / value, high and 1 / high, low and 1 / low)
    for schedule in (TURNS, replace(TURNS, mode="sequential")):
        ways = [decide([shape(1, way)], schedule).verdict for way in (interval, back)]
        assert ways != ["pays", "pays"]
        assert (ways[0] == "inconclusive") == (ways[1] == "inconclusive")
        bounds = [allowances.bounds(ratio(*way), schedule) for way in (interval, back)]
        assert bounds[0] == pytest.approx([1 / bounds[1][1], 1 / bounds[1][0]])
