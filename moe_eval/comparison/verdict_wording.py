"""The verdicts of a comparison as a command prints them."""

from __future__ import annotations

from collections.abc import Iterator

from moe_eval.comparison.wording import capitalised, ended
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.labels import Status


def summary(comparison: ComparisonRecord, leading: ComparisonRecord | None = None) -> str:
    """The verdicts as a command prints them: for every pair, its reason, and what would settle what is open.

    Args:
        leading: the part of the comparison that has sentences, where there are too many pairs for all.
    """
    lines = []
    failure = _common_failure(comparison)
    if failure is not None:
        return f"Open: all arms failed for one reason. {failure}"
    leading = leading or comparison
    for pair in leading.pairs:
        lines.append(verdict_line(pair))
        lines += [f"  Because: {pair.because}"] if pair.because else []
        lines += [f"  Next: {pair.settled_by}"] if pair.settled_by else []
    return "\n".join([*(lines or verdict_lines(comparison)), *_costs(leading)])


def verdict_lines(comparison: ComparisonRecord) -> list[str]:
    """The verdict of every arm in a line. Of one arm alone, that there is none."""
    names = [arm.name for arm in comparison.arms]
    alone = f"{names[0]} was measured alone, and there is nothing to compare it with." if names else "No arm was run."
    return [verdict_line(pair) for pair in comparison.pairs] or [alone]


def verdict_line(pair: Pair) -> str:
    """The verdict of a pair in a line that begins with the arm's name."""
    is_named = pair.sentence.startswith(f"{pair.other} ")
    return pair.sentence if is_named else f"{pair.other}: {pair.sentence}"


def _common_failure(comparison: ComparisonRecord) -> str | None:
    """The one reason why all of several arms failed before anything was measured."""
    if any(arm.speed or arm.token_ppl for arm in comparison.arms):
        return None
    errors = {arm.error if arm.status is Status.FAILED else None for arm in comparison.arms}
    error = next(iter(errors)) if len(errors) == 1 and len(comparison.arms) > 1 else None
    return ended(capitalised(error)) if error else None


def _costs(comparison: ComparisonRecord) -> Iterator[str]:
    """What a million output tokens cost, a line for every shape."""
    for shape in dict.fromkeys(shape for arm in comparison.arms for shape in arm.cost):
        costs = ", ".join(f"{arm.name} {arm.cost[shape].median:.4g}" for arm in comparison.arms if shape in arm.cost)
        price = f"{comparison.rules.price_per_gpu_hour:g} per GPU and hour"
        yield f"Cost of a million output tokens at {shape}, for {price}: {costs}."
