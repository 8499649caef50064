"""Conditions on a comparison for use in CI: what holds, what fails for sure, and what is not decided."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moe_eval.comparison import ratios
from moe_eval.comparison import wording as words
from moe_eval.errors import UsageError
from moe_eval.records.by_arm import AGAIN

HOLDS, FAILS, UNDECIDED = 0, 1, 2
_OF_SPEED = {"speed": "e2e_ms", "ttft": "ttft_ms", "tpot": "tpot_ms"}
_OF_QUALITY = ("ln_ppl", "kld", "top1")
_NUMBER = re.compile(
    r"(?P<name>[a-z0-9_]+)(?:\[b(?P<batch>[0-9]{1,9})\])?\s*(?P<sign>>=|<=)\s*"
    r"(?P<bound>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
)
_VERDICT = re.compile(r"verdict\s*==\s*pays")
_ALLOWED = (
    "a gate is a list such as speed>=1.2,ln_ppl<=0.01: speed, ttft and tpot (how many times faster, at every shape, or "
    "at one batch size as speed[b8]), ln_ppl, kld and top1, each with >= or <= and a number, or verdict==pays"
)
_Dict = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """One condition of a gate.

    Attributes:
        text: as it was given.
        name: speed, ttft or tpot (ratios reference / other), ln_ppl, kld (mean, in nats), top1 (0 to 1), or verdict.
        batch_size: of the shapes that it is about; None for all.
        sign, bound: what the figure has to be; meaningless for verdict, which has to be `pays`.
    """

    text: str
    name: str
    batch_size: int | None = None
    sign: Literal[">=", "<="] = ">="
    bound: float = 0.0


def parse(text: str) -> tuple[Condition, ...]:
    """Read a gate such as "speed>=1.2,ln_ppl<=0.01".

    Raises:
        UsageError: with what is allowed.
    """
    return tuple(_condition(part.strip()) for part in text.split(","))


def _condition(part: str) -> Condition:
    if _VERDICT.fullmatch(part):
        return Condition("verdict==pays", "verdict")
    found = _NUMBER.fullmatch(part)
    if found is None or found["name"] not in (*_OF_SPEED, *_OF_QUALITY):
        raise UsageError(f"--gate has {part!r}; {_ALLOWED}.")
    if found["batch"] and found["name"] not in _OF_SPEED:
        raise UsageError(f"--gate has {part!r}, and {found['name']} has no batch size; {_ALLOWED}.")
    bound = float(found["bound"])
    if not math.isfinite(bound):
        raise UsageError(f"--gate has {part!r}, whose bound is not a number; {_ALLOWED}.")
    if found["name"] == "top1" and not 0 <= bound <= 1:
        raise UsageError(f"--gate has {part!r}, and top1 is a share from 0 to 1; {_ALLOWED}.")
    sign: Literal[">=", "<="] = ">=" if found["sign"] == ">=" else "<="
    batch = int(found["batch"]) if found["batch"] else None
    return Condition("".join(part.split()), found["name"], batch, sign, bound)


def check(comparison: _Dict, conditions: Sequence[Condition]) -> tuple[int, list[str]]:
    """Hold every pair of a comparison against every condition.

    A bound holds where the worse end of the figure's interval holds it, and fails where the better end does not; in
    between it is not decided, and neither is a figure that is missing or not comparable. A speed ratio is
    known no better than ratios.bounds; divergence and agreement are of every token, and count as they are. An arm that
    was measured a second time is left out, and no score of random weights decides anything. Where an arm that was
    asked for was skipped or did not finish, nothing holds: what is missing may be what would fail.

    Args:
        comparison: of compare.make, with `skipped` as write.conclude adds it.

    Returns:
        HOLDS where every condition does, FAILS where one fails, else UNDECIDED; and a line for every condition and
        pair, and for every arm that is missing.
    """
    # of one run it shows how well that measures; of two it is what a change is to be held against
    pairs = [pair for pair in comparison["pairs"] if not pair["other"].endswith(AGAIN)]
    codes, lines = [], []
    for pair in pairs:
        for condition in conditions:
            code, why = _check(pair, condition)
            codes.append(code)
            head = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "not decided"}[code]
            lines.append(f"{condition.text} {head} for {pair['other']} against {pair['reference']}: {why}")
    missing = [f"{why}, so the gate cannot hold" for why in _missing(comparison)]
    if not pairs:
        missing.append("nothing was compared with the reference, so the gate is not decided")
    lines += missing
    codes += [UNDECIDED] * len(missing)
    return next((code for code in (FAILS, UNDECIDED) if code in codes), HOLDS), lines


def _missing(comparison: _Dict) -> Iterator[str]:
    """Every arm that was asked for and has not all of its figures, with the reason."""
    arms = comparison.get("arms") or ()
    for arm in arms:
        if arm["status"] != "finished":
            yield words.unfinished(arm)
    # an arm that only some evaluators left out has pairs, which say what is missing
    there = {arm["name"] for arm in arms}
    reasons: dict[str, list[str]] = {}
    for each in comparison.get("skipped") or ():
        if each["arm"] not in there:
            reasons.setdefault(each["arm"], []).append(each["reason"])
    for name, why in reasons.items():
        yield f"{name} was left out ({'; '.join(dict.fromkeys(each.rstrip('.') for each in why))})"


def _check(pair: _Dict, condition: Condition) -> tuple[int, str]:
    if condition.name == "verdict":
        code = {"pays": HOLDS, "does not pay": FAILS}.get(pair["verdict"], UNDECIDED)
        return code, f"the verdict is {pair['verdict']!r}"
    # where tokens spread over other experts the speeds cannot be compared, and the scores can
    unfair = {row["fair_reason"] for row in pair["shapes"]} if condition.name in _OF_QUALITY else set()
    differs = [each for each in pair["differs"] if each not in unfair]
    if differs:
        return UNDECIDED, "not comparable, " + "; ".join(differs)
    found = list(_shapes(pair, condition) if condition.name in _OF_SPEED else _quality(pair, condition))
    worst = next(code for code in (FAILS, UNDECIDED, HOLDS) if any(code == each for each, _ in found))
    # what decided it; where everything holds, all of it
    return worst, "; ".join(why for code, why in found if code == worst)


def _shapes(pair: _Dict, condition: Condition) -> Iterator[tuple[int, str]]:
    """Every shape of the condition: what holds of it, and its figure in words."""
    metric, told = _OF_SPEED[condition.name], 0
    # a shape that was traced and not timed is none of speed's
    timed = [row for row in pair["shapes"] if row["medians"]]
    for row in timed:
        if condition.batch_size not in (None, row["batch_size"]):
            continue
        told += 1
        ratio = row["speed"][metric]
        if row["fair"] is False:
            yield UNDECIDED, f"{row['name']} is not comparable, {row['fair_reason']}"
        elif ratio is None:
            yield UNDECIDED, f"{row['name']} has no such time"
        else:
            low, high = ratios.bounds(ratio, pair["schedule"])
            loose = ratios.loose(ratio, pair["schedule"])
            why = f"{row['name']} {ratios.told(ratio, pair['schedule'])}" + (f" ({loose})" if loose else "")
            yield _bounded(low, high, condition), why
    if not told:
        where = f" at batch {condition.batch_size}" if condition.batch_size is not None else ""
        yield UNDECIDED, f"speed was not measured on both sides{where}"


def _quality(pair: _Dict, condition: Condition) -> Iterator[tuple[int, str]]:
    quality = pair["quality"]
    if quality is None:
        yield UNDECIDED, "quality was not measured on both sides"
    elif quality["random_weights"]:
        yield UNDECIDED, quality["flag"]
    elif condition.name != "ln_ppl":
        value = quality[{"kld": "kld_mean", "top1": "same_top1"}[condition.name]]
        known = value is not None
        code = _bounded(value, value, condition) if known else UNDECIDED
        yield code, f"it is {value:.5g}" if known else (quality["no_interval"] or "it is no number").rstrip(".")
    elif quality["ln_ppl_ratio"] is None:
        yield UNDECIDED, f"there is no interval; {quality['no_interval']}".rstrip(".")
    else:
        ratio = quality["ln_ppl_ratio"]
        why = f"it is {ratio['value']:+.5f}, {ratio['low']:+.5f} to {ratio['high']:+.5f}"
        yield _bounded(ratio["low"], ratio["high"], condition), why


def _bounded(low: float, high: float, condition: Condition) -> int:
    worse, better = (low, high) if condition.sign == ">=" else (-high, -low)
    bound = condition.bound if condition.sign == ">=" else -condition.bound
    return HOLDS if worse >= bound else FAILS if better < bound else UNDECIDED
