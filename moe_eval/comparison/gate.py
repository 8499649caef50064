"""Conditions on a comparison for use in CI: what holds, what fails for sure, and what is not decided."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Literal

from moe_eval import stats
from moe_eval.comparison import serving_gate, serving_wording, task_gate, verdict, wording
from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Ratio
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import ERROR_RATE, LEAST_LOADS

_OF_SPEED = {"speed": "e2e_ms", "ttft": "ttft_ms", "tpot": "tpot_ms", "energy": "j_per_tok"}
_OF_SCORES = ("ln_ppl", "kld", "top1")
_OF_QUALITY = (*_OF_SCORES, "task", "flips")
_SYNONYMS = {"e2e": "speed", "ppl": "ln_ppl", "perplexity": "ln_ppl", "kl": "kld", "accuracy": "top1"}
_BOUND = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NUMBER = re.compile(
    r"(?:(?P<arm>[^:\s]+):)?(?P<name>[A-Za-z0-9_]+)(?:\[b(?P<batch>[0-9]{1,9})\])?\s*(?P<sign>>=|<=)\s*"
    rf"(?P<bound>{_BOUND})"
)
_TASK = re.compile(rf"(?:(?P<arm>[^:\s]+):)?task:(?P<task>[^:\s<>=]+)\s*(?P<sign>>=|<=)\s*(?P<bound>{_BOUND})")
_SERVING = re.compile(
    r"(?:(?P<arm>[^:\s]+):)?serving:(?P<name>[A-Za-z0-9_]+)(?:\[(?P<point>[cr][0-9.]{1,12})\])?\s*"
    rf"(?P<sign>>=|<=)\s*(?P<bound>{_BOUND})"
)
_VERDICT = re.compile(r"(?:(?P<arm>[^:\s]+):)?verdict\s*==\s*pays")
_ALLOWED = (
    "A gate is a list such as speed>=1.2,ln_ppl<=0.01. Figures are speed, ttft and tpot (how many times faster), "
    "energy (how many times less), ln_ppl, kld and top1, each with >= or <= and a number. A figure of speed is for "
    "every shape, or for one batch size as speed[b8]. task:gsm8k>=-0.01 bounds the gain in a task of lm-eval, and "
    "flips<=0.02 the share of answers that flip in every task. serving:goodput>=1.1 bounds the most requests in time, "
    "and serving:output[c8]>=1.2 the throughput of 8 users. The verdict is verdict==pays. A condition is for every "
    "arm, or for one as fp8:speed>=1.2."
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


@frozen
class Condition:
    """One condition of a gate.

    Attributes:
        name: speed, ttft, tpot or energy (ratios reference / other), ln_ppl, kld (mean, in nats), top1 (0 to 1), task
            (the gain), flips (0 to 1), or verdict.
        task: that it is about. None for every task.
        point: the load point of a figure of servers. None for every one. `is_serving`: it is such a figure.
        arm: that it is about. None for every arm but the reference.
        batch_size: of the shapes that it is about. None for all.
        sign, bound: what the figure has to be. Meaningless for verdict, which has to be `pays`.
    """

    text: str
    name: str
    arm: str | None = None
    batch_size: int | None = None
    sign: Literal[">=", "<="] = ">="
    bound: float = 0.0
    task: str | None = None
    point: str | None = None
    is_serving: bool = False


def parse(text: str) -> tuple[Condition, ...]:
    """Read a gate such as "speed>=1.2,ln_ppl<=0.01".

    Raises:
        UsageError: with what is allowed.
    """
    return tuple(_condition(part.strip()) for part in text.split(","))


def _condition(part: str) -> Condition:
    pays = _VERDICT.fullmatch(part)
    if pays:
        return Condition("".join(part.split()), "verdict", pays["arm"])
    served = _SERVING.fullmatch(part)
    if served and served["name"] in serving_gate.FIGURES and math.isfinite(float(served["bound"])):
        side: Literal[">=", "<="] = ">=" if served["sign"] == ">=" else "<="
        text, bound = "".join(part.split()), float(served["bound"])
        return Condition(text, served["name"], served["arm"], None, side, bound, point=served["point"], is_serving=True)
    if served:
        fix = mended(served["name"], tuple(serving_gate.FIGURES), _ALLOWED)
        raise UsageError(f"--gate has {part!r}, and servers have no figure {served['name']}. {fix}")
    of_task = _TASK.fullmatch(part)
    match = of_task or _NUMBER.fullmatch(part)
    figures = (*_OF_SPEED, *_OF_SCORES, "flips")
    if match is None:
        raise UsageError(f"--gate has {part!r}. {mended(part, ('verdict==pays',), _ALLOWED)}")
    name = "task" if of_task else match["name"]
    if not of_task and name not in figures:
        meant = mended(_SYNONYMS.get(name, name), figures, _ALLOWED)
        raise UsageError(f"--gate has {part!r}, and there is no figure {name}. {meant}")
    batch = None if of_task else match["batch"]
    if batch and name not in _OF_SPEED:
        raise UsageError(f"--gate has {part!r}, and {name} has no batch size. {_ALLOWED}")
    bound = float(match["bound"])
    if not math.isfinite(bound):
        raise UsageError(f"--gate has {part!r}, whose bound is not a number. {_ALLOWED}")
    if name in ("top1", "flips") and not 0 <= bound <= 1:
        raise UsageError(f"--gate has {part!r}, and {name} is a share from 0 to 1. {_ALLOWED}")
    sign: Literal[">=", "<="] = ">=" if match["sign"] == ">=" else "<="
    task = of_task["task"] if of_task else None
    return Condition("".join(part.split()), name, match["arm"], int(batch) if batch else None, sign, bound, task)


def check_arms(conditions: Sequence[Condition], arms: Collection[str]) -> None:
    """Refuse conditions on arms that there are none of.

    Raises:
        UsageError: with the arms that there are.
    """
    for condition in conditions:
        if condition.arm is not None and condition.arm not in arms:
            fix = mended(condition.arm, arms, "Name one of these.")
            raise UsageError(f"--gate has {condition.text!r}, and the arms are {', '.join(arms)}. {fix}")


@frozen
class _Bounded:
    """A figure that a condition bounds.

    Attributes:
        why: the figure in words. `holds`: whether its whole interval does.
        p_value: of an interval as bad as this, where the truth is at the bound. None where nothing is to be decided.
    """

    condition: Condition
    pair: Pair
    why: str
    holds: bool = False
    p_value: float | None = None


def check(
    comparison: ComparisonRecord, conditions: Sequence[Condition], failed_tasks: int = 0
) -> tuple[GateResult, list[str]]:
    """Hold every pair of a comparison against every condition.

    A bound holds where the whole interval of the figure holds it. It fails where the interval lies beyond it, by Holm's
    procedure over all bounds of the gate: one at the truth fails in at most ERROR_RATE of runs. In between it is not
    decided, and neither is a figure that is missing, of a quick look, of routing that nobody checked, or not
    comparable. Where one arm alone had iterations at a low clock, the ratio without them has to hold or fail as well.
    No speed of an emulated or broken arm holds, and no `<=` by a lower bound. An arm that was measured a second time is
    left out, and no score of random weights decides anything. Where an arm was skipped or did not finish, or a task of
    the run failed, nothing holds: what is missing may be what would fail.

    Returns:
        The worst result, and a line for every condition and pair, and for everything that is missing.
    """
    # of one run it shows how well that measures. Of two it is what a change is to be held against
    pairs = [pair for pair in comparison.pairs if not pair.other.endswith(REPEAT_SUFFIX)]
    emulated = {arm.name for arm in comparison.arms if arm.emulated}
    checks = [
        (condition, pair, _served(pair, condition) if condition.is_serving else _figures(pair, condition, emulated))
        for pair in pairs
        for condition in conditions
        if condition.arm in (None, pair.other)
    ]
    bounded = [figure for _, _, figures in checks for figure in figures if figure.p_value is not None]
    rejected = stats.holm([figure.p_value or 0.0 for figure in bounded], ERROR_RATE)
    failed = {id(figure) for figure, is_rejected in zip(bounded, rejected, strict=True) if is_rejected}
    results, lines = [], []
    for condition, pair, figures in checks:
        of_figures = [_result(figure, failed) for figure in figures]
        result = _of_verdict(pair, emulated) if condition.name == "verdict" else GateResult.worst(of_figures)
        # what decided it. Where everything holds, all of it
        whys = [figure.why for figure, of_figure in zip(figures, of_figures, strict=True) if of_figure is result]
        why = f"the verdict is {pair.verdict.value!r}" if condition.name == "verdict" else ", ".join(whys)
        results.append(result)
        head = f"{condition.text} {result.text} for {pair.other} against {pair.reference}"
        lines.append(wording.ended(f"{head}: {why}"))
    missing = [f"{why}, so the gate cannot hold." for why in _missing(comparison, failed_tasks)]
    unmatched = [condition.text for condition in conditions if condition not in [checked for checked, _, _ in checks]]
    if unmatched or not pairs:
        missing.append(
            f"Nothing was compared with the reference for {', '.join(unmatched)}, so the gate is not decided."
        )
    return GateResult.worst([*results, *([GateResult.UNDECIDED] * len(missing))]), [*lines, *missing]


def _result(figure: _Bounded, failed: Collection[int]) -> GateResult:
    if figure.holds:
        return GateResult.HOLDS
    return GateResult.FAILS if id(figure) in failed else GateResult.UNDECIDED


def _of_verdict(pair: Pair, emulated: set[str]) -> GateResult:
    timed = [shape for shape in pair.shapes if shape.figures]
    is_unsure = any(shape.fairness.is_fair is None or shape.verdict is Verdict.NOT_COMPARABLE for shape in timed)
    is_unsure |= pair.serving is not None and not serving_wording.is_checked(pair)
    if is_unsure or emulated & {pair.reference, pair.other}:
        return GateResult.UNDECIDED
    if pair.verdict in (Verdict.SLOWER, Verdict.NO_DIFFERENCE):
        return GateResult.FAILS
    return GateResult.HOLDS if pair.verdict is Verdict.PAYS else GateResult.UNDECIDED


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


def _figures(pair: Pair, condition: Condition, emulated: set[str]) -> list[_Bounded]:
    """What a condition bounds. Figures that cannot be decided say why."""
    if condition.name == "verdict":
        return []
    # where tokens spread over other experts the speeds cannot be compared, and the scores can
    unfair = {shape.fairness.reason for shape in pair.shapes} if condition.name in _OF_QUALITY else set()
    differs = [reason for reason in pair.differs if reason not in unfair]
    if differs:
        return [_Bounded(condition, pair, f"not comparable. {' '.join(differs)}")]
    if condition.name in _OF_QUALITY:
        return [_quality(pair, condition)] if condition.name in _OF_SCORES else _tasks(pair, condition)
    if emulated & {pair.reference, pair.other}:
        return [_Bounded(condition, pair, "an emulated arm has no speed")]
    if pair.verdict is Verdict.BROKEN:
        return [_Bounded(condition, pair, "a broken arm has no speed")]
    # a shape that was traced and not timed is none of speed's
    shapes = [shape for shape in pair.shapes if shape.figures and condition.batch_size in (None, shape.batch_size)]
    where = f" at batch {condition.batch_size}" if condition.batch_size is not None else ""
    nothing = [_Bounded(condition, pair, f"speed was not measured on both sides{where}")]
    return [_speed(pair, shape, condition) for shape in shapes] or nothing


def _speed(pair: Pair, shape: ShapeComparison, condition: Condition) -> _Bounded:
    ratio: Ratio | None = getattr(shape.speed, _OF_SPEED[condition.name])
    if ratio is None:
        return _Bounded(condition, pair, f"{shape.name} has no such figure")
    if shape.verdict is Verdict.NOT_COMPARABLE:
        return _Bounded(condition, pair, f"{shape.name} is not comparable. {shape.reason}")
    why = f"{shape.name} {wording.ratio_text(ratio, Rules())}"
    if ratio.loads < LEAST_LOADS or ratio.low is None or ratio.high is None:
        return _Bounded(condition, pair, f"{why} is a quick look")
    if shape.fairness.is_fair is None:
        return _Bounded(condition, pair, f"{why}, {serving_gate.UNCHECKED}")
    ratios = [ratio]
    unthrottled: Ratio | None = getattr(shape.unthrottled, _OF_SPEED[condition.name], None)
    if unthrottled:
        ratios.append(unthrottled)
        why = f"{why}, without iterations at a low clock {wording.ratio_text(unthrottled, Rules())}"
    p_values = [verdict.p_value(entry, condition.bound, is_above=condition.sign == "<=") for entry in ratios]
    return _Bounded(condition, pair, why, all(_holds(entry, condition) for entry in ratios), max(p_values))


def _holds(ratio: Ratio, condition: Condition) -> bool:
    """Whether the whole interval does."""
    if condition.sign == ">=":
        return ratio.low is not None and ratio.low >= condition.bound
    return ratio.high is not None and ratio.high <= condition.bound


def _quality(pair: Pair, condition: Condition) -> _Bounded:
    quality = pair.quality
    if quality is None:
        return _Bounded(condition, pair, "quality was not measured on both sides")
    if quality.random_weights:
        return _Bounded(condition, pair, "the weights are random, so no score says anything of the checkpoint")
    divergence, estimate = quality.divergence, quality.ln_ppl_ratio
    if condition.name != "ln_ppl":
        estimate = None if divergence is None else divergence.kld if condition.name == "kld" else divergence.top1
    if estimate is None:
        return _Bounded(condition, pair, f"there is no interval. {quality.no_interval or ''}")
    digits = wording.interval_digits(estimate.low, estimate.high)
    why = f"it is {estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"
    is_least = condition.sign == ">="
    sign = 1 if is_least else -1
    p_value = stats.p_above(-sign * estimate.value, estimate.error, estimate.df, -sign * condition.bound)
    holds = estimate.low >= condition.bound if is_least else estimate.high <= condition.bound
    if condition.name == "kld" and divergence and divergence.is_lower_bound and not is_least:
        holds, why = False, f"{why}, which is a lower bound"
    return _Bounded(condition, pair, why, holds, p_value)


def _served(pair: Pair, condition: Condition) -> list[_Bounded]:
    figures = serving_gate.figures(pair, condition.name, condition.point, condition.sign, condition.bound)
    return [_Bounded(condition, pair, *figure) for figure in figures]


def _tasks(pair: Pair, condition: Condition) -> list[_Bounded]:
    figures = task_gate.figures(pair.tasks, condition.task, condition.sign, condition.bound)
    return [_Bounded(condition, pair, *figure) for figure in figures]
