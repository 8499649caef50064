"""Conditions on a comparison for use in CI: what holds, what fails for sure, and what is not decided."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum

from moe_eval import stats
from moe_eval.comparison import ratio_wording, serving_gate, serving_wording, task_gate, verdict, wording
from moe_eval.comparison.gate_text import OF_SCORES, OF_SPEED, Condition
from moe_eval.frozen import frozen
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Ratio
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import ERROR_RATE, LEAST_LOADS

_OF_QUALITY = (*OF_SCORES, "task", "flips")


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
        return [_quality(pair, condition)] if condition.name in OF_SCORES else _tasks(pair, condition)
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
    ratio: Ratio | None = getattr(shape.speed, OF_SPEED[condition.name])
    if ratio is None:
        return _Bounded(condition, pair, f"{shape.name} has no such figure")
    if shape.verdict is Verdict.NOT_COMPARABLE:
        return _Bounded(condition, pair, f"{shape.name} is not comparable. {shape.reason}")
    why = f"{shape.name} {ratio_wording.ratio_text(ratio, Rules())}"
    if ratio.loads < LEAST_LOADS or ratio.low is None or ratio.high is None:
        return _Bounded(condition, pair, f"{why} is a quick look")
    if shape.fairness.is_fair is None:
        return _Bounded(condition, pair, f"{why}, {serving_gate.UNCHECKED}")
    ratios = [ratio]
    unthrottled: Ratio | None = getattr(shape.unthrottled, OF_SPEED[condition.name], None)
    if unthrottled:
        ratios.append(unthrottled)
        why = f"{why}, without iterations at a low clock {ratio_wording.ratio_text(unthrottled, Rules())}"
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
    digits = ratio_wording.interval_digits(estimate.low, estimate.high)
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
