"""Verdicts: every position of an interval, every combination of shapes, and many claims at a time."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as distributions

from moe_eval.comparison import verdict
from moe_eval.comparison.speed import ratio_of_loads
from moe_eval.records.ratios import Ratio, SpeedRatios
from moe_eval.records.shape_comparison import Clocks, Fairness
from moe_eval.records.verdicts import QualityVerdict, Rules, Verdict
from tests.doubles.comparisons import (
    ABOVE,
    BELOW,
    FAIR,
    NO_GAIN,
    QUALITY,
    RULES,
    TURNS,
    TWO_RUNS,
    UNCHECKED,
    UNFAIR,
    VERDICTS,
    WIDE,
    Known,
    comparison,
    decide,
    pair,
    ratio,
    shape,
)
from tests.doubles.comparisons import arms as two_arms


@pytest.mark.parametrize(
    ("low", "high", "expected_verdict"),
    [
        (1.01, 1.04, "open"),  # it holds the least gain where it begins there
        (1.0101, 1.04, "pays"),
        (1.0005, 1.0115, "open"),  # faster, and perhaps by the least gain
        (1.0005, 1.01, "no worthwhile difference"),
        (1 / 1.01, 1.01, "no worthwhile difference"),
        (1 / 1.01, 1.0101, "open"),
        (0.99, 1.01, "open"),
        (0.96, 1.0, "open"),
        (0.96, 0.9999, "slower"),
        (0.995, 0.9999, "slower"),
        (0.5, 2.0, "open"),
    ],
)
def test_the_edges_of_the_rule(low: float, high: float, expected_verdict: str) -> None:
    assert verdict.of_ratio(ratio(math.sqrt(low * high), low, high), RULES) == expected_verdict


def test_the_least_gain_is_the_users() -> None:
    faster = ratio(1.04, 1.03, 1.05)
    rulings = {gain: verdict.of_ratio(faster, Rules(min_gain=gain)) for gain in (0.0, 0.02, 0.04, 0.1)}
    assert [ruling.value for ruling in rulings.values()] == ["pays", "pays", "open", "no worthwhile difference"]


@pytest.mark.parametrize("loads", [1, 2])
def test_fewer_than_three_loads_are_a_quick_look(loads: int) -> None:
    interval = (1.5, None, None) if loads == 1 else (1.5, 1.4, 1.6)
    row = replace(shape(1, ABOVE), speed=SpeedRatios(e2e_ms=ratio(*interval, loads=loads)))
    decided = decide([row])
    assert decided.verdict is decided.shapes[0].verdict is Verdict.QUICK_LOOK
    assert decided.sentence.startswith("Quick look, no verdict: fp8 against bf16 at batch 1, end to end: 1.5")
    assert decided.settled_by == "Give --loads 4 for more loads."
    assert f"3 loads of each arm and there {'is 1' if loads == 1 else 'are 2'}" in decided.shapes[0].reason


def test_warm_ups_that_were_cut_short_are_a_quick_look() -> None:
    row = replace(shape(1, ABOVE), speed=SpeedRatios(e2e_ms=ratio(1.5, None, None, loads=4)))
    decided = decide([row])
    assert decided.verdict is decided.shapes[0].verdict is Verdict.QUICK_LOOK
    assert decided.sentence.startswith("Quick look, no verdict: fp8 against bf16 at batch 1, end to end: 1.5")
    assert decided.settled_by == "Give --warmup_iterations 5 or more."
    assert "5 iterations of warm-up" in decided.shapes[0].reason


def test_fairness_comes_before_speed() -> None:
    assert {interval: decide([shape(1, interval)]).shapes[0].verdict for interval in VERDICTS} == VERDICTS
    unfair = decide([shape(1, ABOVE, UNFAIR), shape(8, ABOVE)]).shapes[0]
    assert (unfair.verdict, unfair.reason) == ("not comparable", UNFAIR.reason)
    unchecked = decide([shape(1, ABOVE, UNCHECKED)])
    assert unchecked.verdict == "pays"
    for text in (unchecked.sentence, unchecked.shapes[0].reason):
        assert "not checked (bf16: not measured)" in text


@pytest.mark.parametrize(
    ("fast", "expected_verdict"), [(ABOVE, "pays"), (WIDE, "not comparable"), (None, "not comparable")]
)
def test_iterations_at_a_low_clock_on_one_side_must_not_decide(fast: Known | None, expected_verdict: str) -> None:
    slow = replace(
        shape(1, ABOVE),
        clocks=Clocks((1980.0, 1500.0), (0, 3)),
        unthrottled=SpeedRatios(e2e_ms=ratio(*fast) if fast else None),
    )
    decided = decide([slow, shape(8, ABOVE)])
    assert decided.shapes[0].verdict == expected_verdict
    assert "low clock" in decided.shapes[0].reason
    assert "low clock" in decided.sentence
    both = replace(slow, clocks=Clocks((1500.0, 1500.0), (3, 3)), unthrottled=None)
    assert decide([both]).verdict == "pays"


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
        return "open"
    if not fair:
        return "not comparable"
    if fair.count(BELOW):
        return "slower"
    if fair.count(ABOVE):
        return "pays"
    return "open" if fair.count(WIDE) else "no worthwhile difference"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_combination_of_shapes(count: int) -> None:
    words = {ABOVE: "pays", BELOW: "slower", NO_GAIN: "no worthwhile difference", WIDE: "open", "unfair": "no verdict"}
    for kinds in itertools.product(KINDS, repeat=count):
        # intervals that hold up among three shapes: the same ends, and a smaller error
        rows = [shape(batch, *KINDS[kind]) for batch, kind in zip((1, 8, 32), kinds, strict=False)]
        decided = decide([_sure(row) for row in rows])
        assert decided.verdict == expected(kinds), kinds
        is_open = decided.verdict != "not comparable" and (WIDE in kinds or set(kinds) == {"untimed"})
        assert (decided.settled_by is not None) == is_open, kinds
        assert verdict.is_decided(comparison(decided)) == (WIDE not in kinds)
        if decided.verdict == "not comparable" or set(kinds) == {"untimed"}:
            continue
        # no number without its interval: every ratio that is told is followed by one
        for number in re.findall(r"\d+\.\d+x.{8}", decided.sentence):
            assert re.match(r"\d+\.\d+x \(\d\.\d+", number), decided.sentence
        for kind in {*kinds} - {"untimed"}:
            assert words[kind] in decided.sentence
        told = re.findall(r"\d+\.\d+x \(", decided.sentence.partition("Worse")[0])
        assert len(told) == len([kind for kind in kinds if kind not in ("unfair", "untimed")]), "no shape is left out"


def _sure(row: Any) -> Any:
    """A shape whose ratio has so many loads that Holm's procedure confirms it among others."""
    times = row.speed.e2e_ms
    if times is None:
        return row
    return replace(row, speed=SpeedRatios(replace(times, df=1000.0, error=(times.high - times.low) / 40 / times.value)))


def test_what_cannot_be_compared_says_what_differs() -> None:
    differs = ("Speed was measured on other prompts.", "Speed was measured on another GPU.")
    decided = decide([shape(1, ABOVE)], differs=differs, of_arms={"fp8": {"emulated": True}})
    assert (decided.verdict, decided.settled_by, decided.because) == ("not comparable", None, "")
    assert decided.sentence == f"fp8 cannot be compared with bf16. {differs[0]} {differs[1]}"
    assert decided.shapes[0].reason == f"{differs[0]} {differs[1]}"
    assert decide([shape(1, ABOVE, UNFAIR)]).differs == (UNFAIR.reason,)


def test_a_broken_arm_has_no_speed() -> None:
    quality = replace(QUALITY, verdict=QualityVerdict.BROKEN, sentence="Its perplexity is 30 times higher.")
    decided = decide([shape(1, ABOVE)], quality=quality)
    assert decided.verdict is Verdict.BROKEN
    assert decided.sentence == "Broken: Its perplexity is 30 times higher. A broken arm has no speed."
    unscorable = {"fp8": {"broken": "the score of token 3 is nan"}}
    decided = decide([shape(1, ABOVE)], quality=None, of_arms=unscorable)
    assert decided.verdict is Verdict.BROKEN
    assert "fp8 gives no probabilities. The score of token 3 is nan." in decided.sentence


def test_an_arm_against_itself_has_to_come_out_as_one() -> None:
    assert decide([shape(1, NO_GAIN)], is_repeat=True).verdict == "no worthwhile difference"
    for interval in (ABOVE, BELOW):
        decided = decide([shape(1, NO_GAIN), _sure(shape(8, interval))], is_repeat=True)
        assert decided.verdict == "open"
        assert "not 1 at batch 8, so something disturbs the measurement" in decided.sentence


def random_ratio(generator: np.random.Generator, truth: float, loads: int, scatter: float) -> Ratio:
    above, below = generator.normal(0, scatter, (2, loads))
    return ratio_of_loads(above.tolist(), (below - math.log(truth)).tolist(), "host", replace(TURNS, loads=loads))


@pytest.mark.parametrize("loads", [3, 4, 8])
def test_p_values_belong_to_the_interval(loads: int) -> None:
    """A bound at an end of the 95 % interval has a p-value of 2.5 %, and one inside a greater one."""
    generator = np.random.default_rng(loads)
    for widened in (1.0, 1.02):
        times = random_ratio(generator, 1.1, loads, 0.01)
        times = replace(times, low=times.low / widened, high=times.high * widened, widened=widened)
        assert verdict.p_value(times, times.low, is_above=True) == pytest.approx(0.025)
        assert verdict.p_value(times, times.high, is_above=False) == pytest.approx(0.025)
        assert verdict.p_value(times, times.value / widened, is_above=True) == pytest.approx(0.5)
    logs = generator.normal(0.02, 0.01, loads)
    times = ratio_of_loads(logs.tolist(), [0.0] * loads, "host", TURNS)
    by_scipy = distributions.ttest_1samp(logs, math.log(1.01), alternative="greater").pvalue
    assert verdict.p_value(times, 1.01, is_above=True) == pytest.approx(by_scipy)


def test_one_of_many_claims_has_to_be_surer() -> None:
    """Holm's procedure: an interval just above the least gain pays alone, and not beside seven that show nothing."""
    sure = ratio(1.3, 1.29, 1.31)
    barely = ratio(1.05, 1.0101, 1.0915)
    nothing = ratio(*WIDE)
    assert verdict.of_family([barely], RULES) == ["pays"]
    assert verdict.of_family([barely, *[nothing] * 7], RULES) == ["open"] * 8
    # where all others are confirmed, the last needs no more than it does alone
    assert verdict.of_family([barely, *[sure] * 7], RULES) == ["pays"] * 8
    beside = decide([shape(batch, (1.05, 1.0101, 1.0915) if batch == 1 else WIDE) for batch in (1, 8, 32, 64)])
    assert beside.shapes[0].verdict is Verdict.OPEN
    assert "by chance (Holm)" in beside.shapes[0].reason


@pytest.mark.parametrize(("truth", "claim"), [(1.0, Verdict.SLOWER), (1.01, Verdict.PAYS)])
@pytest.mark.parametrize("shapes", [1, 8])
def test_false_claims_come_in_a_fortieth_of_runs(truth: float, claim: Verdict, shapes: int) -> None:
    generator = np.random.default_rng(shapes)
    runs = 1500
    false = sum(
        claim in verdict.of_family([random_ratio(generator, truth, 4, 0.01) for _ in range(shapes)], RULES)
        for _ in range(runs)
    )
    assert false / runs < 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)
    assert false > 0, "it is no rule that never speaks"


def test_four_loads_that_scatter_by_one_percent_find_five_percent() -> None:
    generator = np.random.default_rng(0)
    runs = 1000
    rulings = [verdict.of_ratio(random_ratio(generator, 1.05, 4, 0.01), RULES) for _ in range(runs)]
    assert rulings.count(Verdict.PAYS) / runs > 0.9


@pytest.mark.parametrize("loads", [3, 4, 10])
@pytest.mark.parametrize(("value", "half"), [(1.04, 0.06), (1.0, 0.2), (1.005, 0.06), (1.03, 0.5), (0.97, 0.05)])
def test_as_many_loads_are_asked_for_as_decide_it(loads: int, value: float, half: float) -> None:
    """Loads that scatter alike give, in that number, an interval that decides, and it is the least such number."""
    times = ratio(value, value * math.exp(-half), value * math.exp(half), loads)
    row = replace(shape(1, WIDE), speed=SpeedRatios(e2e_ms=times))
    text = str(decide([row]).settled_by)
    deviation = half * math.sqrt(loads) / distributions.t.ppf(0.975, loads - 1)

    def decides(count: int) -> bool:
        reach = distributions.t.ppf(0.975, count - 1) * deviation / math.sqrt(count)
        return verdict.of_ratio(ratio(value, value * math.exp(-reach), value * math.exp(reach), count), RULES) != "open"

    if "more than 64" in text:
        assert not decides(64)
        return
    count = int(re.fullmatch(r"Give --loads (\d+) for more loads\.", text)[1])  # type: ignore[index]
    assert decides(count)
    assert count == loads + 1 or not decides(count - 1)
    assert decide([row], TWO_RUNS).settled_by == "Measure both arms in one run."


@pytest.mark.parametrize("interval", [ABOVE, BELOW, NO_GAIN, WIDE])
def test_no_verdict_pays_both_ways(interval: Known) -> None:
    value, low, high = interval
    back = (1 / value, high and 1 / high, low and 1 / low)
    ways = [decide([shape(1, way)]).verdict for way in (interval, back)]
    assert ways != ["pays", "pays"]
    assert (ways[0] == "open") == (ways[1] == "open")


def test_arms_are_judged_together_and_repeats_apart() -> None:
    barely = [shape(1, (1.05, 1.0101, 1.0915))]
    alone = pair(barely)
    others = [pair([shape(1, WIDE)], other="nvfp4"), pair([shape(1, WIDE)], other="bf16-again", is_repeat=True)]
    names = two_arms()
    names |= {name: replace(names["fp8"], name=name) for name in ("nvfp4", "bf16-again")}
    assert verdict.decide([alone, others[0]], names, RULES)[0].verdict is Verdict.OPEN
    assert verdict.decide([alone, others[1]], names, RULES)[0].verdict is Verdict.PAYS


def test_the_time_that_decides_is_the_users() -> None:
    times = SpeedRatios(e2e_ms=ratio(*ABOVE), ttft_ms=ratio(*BELOW), tpot_ms=ratio(*NO_GAIN))
    row = replace(shape(1, ABOVE), speed=times)
    rulings = {name: decide([row], rules=Rules(decide_on=name)) for name in ("e2e", "output_tok_s", "ttft", "tpot")}
    assert [decided.verdict.value for decided in rulings.values()] == [
        "pays",
        "pays",
        "slower",
        "no worthwhile difference",
    ]
    assert "Worse is its time to first token: 0.80x (0.70 to 0.90) at batch 1." in rulings["e2e"].sentence
    assert "to the first token" in rulings["ttft"].sentence
