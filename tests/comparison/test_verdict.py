"""Verdicts: every position of an interval, every combination of shapes, and what the sentences are made of."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from scipy import stats as scipy_stats

from moe_eval.comparison import ratios, verdict

TURNS = {"mode": "interleaved", "blocks": 4, "per_block": 2, "one_run": True}
RELOADED = {**TURNS, "mode": "reloaded"}
# by what is known of a ratio: an interval, and what it says
ABOVE, BELOW, NONE_TO_GAIN, WIDE = (1.2, 1.1, 1.3), (0.8, 0.7, 0.9), (1.0, 0.97, 1.03), (1.02, 0.9, 1.16)
SAYS = {ABOVE: "pays", BELOW: "does not pay", NONE_TO_GAIN: "does not pay", WIDE: "inconclusive"}
QUALITY = {
    "ln_ppl_ratio": {"value": math.log(1.004), "error": 1e-3, "low": math.log(1.001), "high": math.log(1.007)},
    "ppl_change": 0.004, "kld_mean": 0.01, "kld_p99": 0.1, "same_top1": 0.95, "noise_floor": None, "flag": None,
    "no_interval": None, "random_weights": False,
}  # fmt: skip


def ratio(value: float, low: float | None, high: float | None, blocks: int = 4) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "blocks": blocks, "source": "host"}


def shape(
    batch: int, known: tuple[float, float | None, float | None] | None, fair: bool | None = True
) -> dict[str, Any]:
    """A shape of a comparison by its batch size and what is known of the ratio."""
    times = None if known is None else ratio(*known)
    return {
        "name": f"b{batch}_i512_o256", "batch_size": batch, "input_len": 512, "output_len": 256,
        "speed": {"e2e_ms": times, "ttft_ms": None, "tpot_ms": times}, "fair": fair,
        "fair_reason": {True: None, False: "bf16 reads 50.0 experts and fp8 40.0", None: "bf16: not measured"}[fair],
        "kernels": None, "predicted": None, "medians": {"e2e_ms": [1.0, 1.0]},
    }  # fmt: skip


def arms(**changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    plain = {"emulated": False, "status": "finished", "error": None}
    return {name: {**plain, **changes.get(name, {})} for name in ("bf16", "fp8")}


def decide(
    rows: Sequence[Mapping[str, Any]], schedule: Any = TURNS, quality: Any = QUALITY, **more: Any
) -> dict[str, Any]:
    """The verdict on a pair of these shapes."""
    pair = {"reference": "bf16", "other": "fp8", "again": False, "differs": [], "schedule": schedule, "shapes": rows,
            "quality": quality, **more.pop("pair", {})}  # fmt: skip
    return verdict.pair(pair, arms(**more))


@pytest.mark.parametrize("known", list(SAYS))
def test_an_interval_decides_by_where_it_lies(known: tuple[float, float, float]) -> None:
    assert verdict.shape(shape(1, known), TURNS)[0] == SAYS[known]


@pytest.mark.parametrize(
    ("low", "high", "says"),
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
def test_the_edges_of_the_rule(low: float, high: float, says: str) -> None:
    assert verdict.shape(shape(1, (math.sqrt(low * high), low, high)), RELOADED)[0] == says


@pytest.mark.parametrize(
    ("schedule", "allowed"),
    [
        ({**TURNS, "mode": "sequential"}, 1.03),
        ({**TURNS, "one_run": False}, 1.05),
        ({**TURNS, "mode": "sequential", "one_run": False}, 1.05),
        ({**TURNS, "blocks": 1}, 1.03),
    ],
)
@pytest.mark.parametrize(
    ("beyond", "says"),
    [(1.4, "pays"), (1.001, "pays"), (0.999, "inconclusive"), (0.985, "inconclusive"), (0.965, "inconclusive"),
     (0.5, "does not pay")],
)  # fmt: skip
def test_without_drift_in_an_interval_some_percent_have_to_be_passed(
    schedule: dict[str, Any], allowed: float, beyond: float, says: str
) -> None:
    value = allowed * beyond
    found, reason = verdict.shape(shape(1, (value, None, None)), schedule)
    assert found == says
    assert f"{100 * allowed - 100:.0f} % of drift allowed for" in reason
    assert re.search("no interval|in no interval", reason)
    sentence = decide([shape(1, (value, None, None))], schedule)["sentence"]
    assert f"{value:.2f}"[:3] in sentence
    assert "no interval" in sentence


def test_two_processes_side_by_side_may_differ_by_half_a_percent() -> None:
    """BF16 against itself on an H100, two processes in turns: 1.0024, 1.0003 to 1.0045."""
    same = (1.0024, 1.0003, 1.0045)
    found, reason = verdict.shape(shape(1, same), TURNS)
    assert found == "does not pay"
    assert "0.5 % of difference between two processes allowed for, may be 1" in reason
    assert verdict.shape(shape(1, same), RELOADED)[0] == "pays"  # there every block is a process of its own
    assert verdict.shape(shape(1, (1.0064, 1.0051, 1.0077)), TURNS)[0] == "pays"
    assert verdict.shape(shape(1, (0.9936, 0.992, 0.9949)), TURNS)[0] == "does not pay"


@pytest.mark.parametrize("schedule", [TURNS, {**TURNS, "one_run": False}])
def test_an_interval_with_one_wide_end_does_not_become_an_allowance(schedule: dict[str, Any]) -> None:
    """How wide the interval is by itself is nothing that was allowed for."""
    percent = "0.5" if schedule["one_run"] else "5"
    for known, says in (((1.2, 1.05, 1.203), "lies above 1"), ((0.8, 0.798, 0.95), "lies below 1")):
        assert f"the ratio, {percent} % of " in verdict.shape(shape(1, known), schedule)[1]
        assert says in verdict.shape(shape(1, known), schedule)[1]
    assert "the interval holds 1" in verdict.shape(shape(1, (1.003, 0.9, 1.004)), schedule)[1]


def test_an_interval_that_drift_is_not_in_still_counts() -> None:
    """A ratio beyond drift whose own interval holds 1 decides nothing."""
    schedule = {**TURNS, "one_run": False}
    assert verdict.shape(shape(1, (1.07, 0.98, 1.17)), schedule)[0] == "inconclusive"
    assert verdict.shape(shape(1, (1.07, 1.06, 1.08)), schedule)[0] == "pays"
    assert verdict.shape(shape(1, (1.015, 1.01, 1.02)), schedule)[0] == "inconclusive"
    assert verdict.shape(shape(1, (1.015, 1.01, 1.02)), TURNS)[0] == "pays"


def test_fairness_comes_before_speed() -> None:
    assert verdict.shape(shape(1, ABOVE, fair=False), TURNS) == (
        "not comparable",
        "bf16 reads 50.0 experts and fp8 40.0",
    )
    found, reason = verdict.shape(shape(1, ABOVE, fair=None), TURNS)
    assert found == "pays"
    assert "not checked (bf16: not measured)" in reason
    assert verdict.shape(shape(1, None), TURNS)[0] == "inconclusive"


KINDS = {**{name: (name, True) for name in SAYS}, "unfair": (BELOW, False), "untimed": (None, True)}


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
        found = decide(rows)
        assert found["verdict"] == expected(kinds), kinds
        assert (found["settled_by"] is None) == (found["verdict"] == "not comparable" or not (
            WIDE in kinds or set(kinds) == {"untimed"}
        )), kinds  # fmt: skip
        if found["verdict"] in ("pays", "does not pay"):
            # no number without its interval: every ratio that is told is followed by one
            for number in re.findall(r"\d+\.\d+x.{12}", found["sentence"]):
                assert re.match(r"\d+\.\d+x, \d\.\d+ to", number), found["sentence"]
            assert "+0.40 % perplexity (+0.10 to +0.70)" in found["sentence"]
        for batch, kind in zip((1, 8, 32), kinds, strict=False):
            # every batch size that does not pay is named with what it is
            word = {BELOW: "slower", NONE_TO_GAIN: "does not", WIDE: "is open", "unfair": "no verdict"}.get(kind)
            if word and found["verdict"] != "not comparable":
                assert re.search(rf"at batch {batch} [a-z ]*{word}", found["sentence"]), found["sentence"]


def test_what_cannot_be_compared_says_what_differs() -> None:
    found = decide([shape(1, ABOVE)], pair={"differs": ["other prompts", "another GPU"]}, fp8={"emulated": True})
    assert (found["verdict"], found["settled_by"], found["because"]) == ("not comparable", None, "")
    assert found["sentence"].endswith("other prompts; another GPU")
    unfair = decide([shape(1, ABOVE, fair=False)])
    assert unfair["differs"] == ["bf16 reads 50.0 experts and fp8 40.0"]


def test_an_arm_against_itself_has_to_come_out_as_one() -> None:
    again = {"pair": {"again": True}}
    assert decide([shape(1, NONE_TO_GAIN)], **again)["verdict"] == "does not pay"
    for known in (ABOVE, BELOW):
        found = decide([shape(1, NONE_TO_GAIN), shape(8, known)], pair={"again": True})
        assert found["verdict"] == "inconclusive"
        assert "not 1 at batch 8, so something disturbs the measurement" in found["sentence"]


@pytest.mark.parametrize("blocks", [2, 3, 4, 10])
@pytest.mark.parametrize(("value", "half"), [(1.04, 0.06), (1.0, 0.2), (1.01, 0.06), (1.03, 0.5)])
def test_as_many_blocks_are_asked_for_as_decide_it(blocks: int, value: float, half: float) -> None:
    """Blocks that scatter alike give, in that number, an interval that decides, and it is the least such number."""
    known = (value, value * math.exp(-half), value * math.exp(half))
    row = shape(1, known)
    row["speed"]["e2e_ms"] = ratio(*known, blocks=blocks)
    text = decide([row], RELOADED)["settled_by"]
    deviation = half * math.sqrt(blocks) / scipy_stats.t.ppf(0.975, blocks - 1)

    def decides(count: int) -> bool:
        reach = scipy_stats.t.ppf(0.975, count - 1) * deviation / math.sqrt(count)
        return bool(
            verdict.shape(shape(1, (value, value * math.exp(-reach), value * math.exp(reach))), RELOADED)[0]
            != "inconclusive"
        )

    if "more than 64" in text:
        assert not decides(64)
        return
    asked = int(re.fullmatch(r"more blocks: give --blocks (\d+)", text)[1])  # type: ignore[index]
    assert decides(asked)
    assert asked == 2 * blocks or not decides(asked - 1)
    turns = decide([row], TURNS)["settled_by"]
    assert turns == f"more iterations: give --num_iterations {asked * 2}"


@pytest.mark.parametrize("known", [ABOVE, BELOW, NONE_TO_GAIN, WIDE, (1.3, None, None)])
def test_no_verdict_pays_both_ways(known: tuple[float, float | None, float | None]) -> None:
    value, low, high = known
    back = (1 / value, high and 1 / high, low and 1 / low)
    for schedule in (TURNS, {**TURNS, "mode": "sequential"}):
        ways = [decide([shape(1, each)], schedule)["verdict"] for each in (known, back)]
        assert ways != ["pays", "pays"]
        assert (ways[0] == "inconclusive") == (ways[1] == "inconclusive")
        bounds = [ratios.bounds(ratio(*each), schedule) for each in (known, back)]
        assert bounds[0] == pytest.approx([1 / bounds[1][1], 1 / bounds[1][0]])
