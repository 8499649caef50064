"""Conditions on a comparison for use in CI: what holds, what fails for sure, and what is not decided."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from moe_eval.comparison import allowances, wording
from moe_eval.errors import UsageError
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.records.comparison import ComparisonRecord, Pair, Verdict
from moe_eval.records.labels import Status

_OF_SPEED = {"speed": "e2e_ms", "ttft": "ttft_ms", "tpot": "tpot_ms"}
_OF_QUALITY = ("ln_ppl", "kld", "top1")
_NUMBER = re.compile(
    r"(?P<name>[a-z0-9_]+)(?:\[b(?P<batch>[0-9]{1,9})\])?\s*(?P<sign>>=|<=)\s*"
    r"(?P<bound>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
)
_VERDICT = re.compile(r"verdict\s*==\s*pays")
_ALLOWED = (
    "A gate is a list such as speed>=1.2,ln_ppl<=0.01. Figures are speed, ttft and tpot (how many times faster), "
    "ln_ppl, kld and top1, each with >= or <= and a number. A figure of speed is for every shape, or for one batch "
    "size as speed[b8]. The verdict is verdict==pays."
)


class GateResult(IntEnum):
    """What a gate comes to. Its value is the exit code."""

    HOLDS = 0
    FAILS = 1
    UNDECIDED = 2

    @property
    def text(self) -> str:
        """Such as "not decided"."""
        return ("holds", "fails", "not decided")[self]

    @staticmethod
    def worst(results: Iterable[GateResult]) -> GateResult:
        """FAILS where one fails, else UNDECIDED where one is not decided."""
        order = (GateResult.HOLDS, GateResult.UNDECIDED, GateResult.FAILS)
        return max(results, key=order.index, default=GateResult.HOLDS)


@dataclass(frozen=True)
class Condition:
    """One condition of a gate.

    Attributes:
        name: speed, ttft or tpot (ratios reference / other), ln_ppl, kld (mean, in nats), top1 (0 to 1), or verdict.
        batch_size: of the shapes that it is about. None for all.
        sign, bound: what the figure has to be. Meaningless for verdict, which has to be `pays`.
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
    match = _NUMBER.fullmatch(part)
    if match is None or match["name"] not in (*_OF_SPEED, *_OF_QUALITY):
        raise UsageError(f"--gate has {part!r}. {_ALLOWED}")
    if match["batch"] and match["name"] not in _OF_SPEED:
        raise UsageError(f"--gate has {part!r}, and {match['name']} has no batch size. {_ALLOWED}")
    bound = float(match["bound"])
    if not math.isfinite(bound):
        raise UsageError(f"--gate has {part!r}, whose bound is not a number. {_ALLOWED}")
    if match["name"] == "top1" and not 0 <= bound <= 1:
        raise UsageError(f"--gate has {part!r}, and top1 is a share from 0 to 1. {_ALLOWED}")
    sign: Literal[">=", "<="] = ">=" if match["sign"] == ">=" else "<="
    batch_size = int(match["batch"]) if match["batch"] else None
    return Condition("".join(part.split()), match["name"], batch_size, sign, bound)


def check(
    comparison: ComparisonRecord, conditions: Sequence[Condition], failed_tasks: int = 0
) -> tuple[GateResult, list[str]]:
    """Hold every pair of a comparison against every condition.

    A bound holds where the worse end of the figure's interval holds it, and fails where the better end does not. In
    between it is not decided, and neither is a figure that is missing or not comparable. A speed ratio is known no
    better than allowances.bounds. Divergence and agreement are of every token, and count as they are. An arm that was
    measured a second time is left out, and no score of random weights decides anything. Where an arm was skipped or did
    not finish, or a task of the run failed, nothing holds: what is missing may be what would fail.

    Returns:
        The worst result, and a line for every condition and pair, and for everything that is missing.
    """
    # of one run it shows how well that measures. Of two it is what a change is to be held against
    pairs = [pair for pair in comparison.pairs if not pair.other.endswith(REPEAT_SUFFIX)]
    results, lines = [], []
    for pair in pairs:
        for condition in conditions:
            result, why = _check(pair, condition)
            results.append(result)
            head = f"{condition.text} {result.text} for {pair.other} against {pair.reference}"
            lines.append(wording.ended(f"{head}: {why}"))
    missing = [f"{why}, so the gate cannot hold." for why in _missing(comparison, failed_tasks)]
    if not pairs:
        missing.append("Nothing was compared with the reference, so the gate is not decided.")
    return GateResult.worst([*results, *([GateResult.UNDECIDED] * len(missing))]), [*lines, *missing]


def _missing(comparison: ComparisonRecord, failed_tasks: int) -> Iterator[str]:
    """Every arm that was asked for and has not all of its figures, with the reason, and tasks that failed."""
    for arm in comparison.arms:
        if arm.status is not Status.FINISHED:
            yield wording.unfinished(arm)
    # an arm that only some evaluators left out has pairs, which say what is missing
    recorded = {arm.name for arm in comparison.arms}
    reasons: dict[str, list[str]] = {}
    for skipped in comparison.skipped:
        if skipped.arm not in recorded:
            reasons.setdefault(skipped.arm, []).append(skipped.reason.rstrip("."))
    for name, texts in reasons.items():
        yield f"{name} was left out ({', '.join(dict.fromkeys(texts))})"
    if failed_tasks:
        yield f"{failed_tasks} {'task' if failed_tasks == 1 else 'tasks'} of the run failed"


def _check(pair: Pair, condition: Condition) -> tuple[GateResult, str]:
    if condition.name == "verdict":
        of_verdict = {Verdict.PAYS: GateResult.HOLDS, Verdict.DOES_NOT_PAY: GateResult.FAILS}
        return of_verdict.get(pair.verdict, GateResult.UNDECIDED), f"the verdict is {pair.verdict.value!r}"
    # where tokens spread over other experts the speeds cannot be compared, and the scores can
    unfair = {shape.fairness.reason for shape in pair.shapes} if condition.name in _OF_QUALITY else set()
    differs = [reason for reason in pair.differs if reason not in unfair]
    if differs:
        return GateResult.UNDECIDED, f"not comparable. {' '.join(differs)}"
    checked = list(_shapes(pair, condition) if condition.name in _OF_SPEED else _quality(pair, condition))
    worst = GateResult.worst(result for result, _ in checked)
    # what decided it. Where everything holds, all of it
    return worst, ", ".join(why for result, why in checked if result is worst)


def _shapes(pair: Pair, condition: Condition) -> Iterator[tuple[GateResult, str]]:
    """Every shape of the condition: what holds of it, and its figure in words."""
    # a shape that was traced and not timed is none of speed's
    shapes = [shape for shape in pair.shapes if shape.figures and condition.batch_size in (None, shape.batch_size)]
    for shape in shapes:
        ratio = getattr(shape.speed, _OF_SPEED[condition.name])
        if shape.fairness.is_fair is False:
            yield GateResult.UNDECIDED, f"{shape.name} is not comparable. {shape.fairness.reason}"
        elif ratio is None:
            yield GateResult.UNDECIDED, f"{shape.name} has no such time"
        else:
            drift = allowances.drift(ratio, pair.schedule).rstrip(".")
            why = f"{shape.name} {wording.ratio_text(ratio, pair.schedule)}" + (f" ({drift})" if drift else "")
            yield _bounded(*allowances.bounds(ratio, pair.schedule), condition), why
    if not shapes:
        where = f" at batch {condition.batch_size}" if condition.batch_size is not None else ""
        yield GateResult.UNDECIDED, f"speed was not measured on both sides{where}"


def _quality(pair: Pair, condition: Condition) -> Iterator[tuple[GateResult, str]]:
    quality = pair.quality
    if quality is None:
        yield GateResult.UNDECIDED, "quality was not measured on both sides"
    elif quality.random_weights:
        yield GateResult.UNDECIDED, "the weights are random, so no score says anything of the checkpoint"
    elif condition.name != "ln_ppl":
        divergence = quality.divergence
        if divergence is None:
            yield GateResult.UNDECIDED, f"there is no such figure. {quality.no_interval or ''}"
        else:
            value = divergence.mean if condition.name == "kld" else divergence.same_top1
            yield _bounded(value, value, condition), f"it is {value:.5g}"
    elif quality.ln_ppl_ratio is None:
        yield GateResult.UNDECIDED, f"there is no interval. {quality.no_interval}"
    else:
        ratio = quality.ln_ppl_ratio
        why = f"it is {ratio.value:+.5f}, {ratio.low:+.5f} to {ratio.high:+.5f}"
        yield _bounded(ratio.low, ratio.high, condition), why


def _bounded(low: float, high: float, condition: Condition) -> GateResult:
    worse, better = (low, high) if condition.sign == ">=" else (-high, -low)
    bound = condition.bound if condition.sign == ">=" else -condition.bound
    return GateResult.HOLDS if worse >= bound else GateResult.FAILS if better < bound else GateResult.UNDECIDED
