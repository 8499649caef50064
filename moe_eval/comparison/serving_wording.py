"""The sentences of a verdict on servers: the users that an arm serves in time, and from which load on it pays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from moe_eval.comparison import ratio_wording, wording
from moe_eval.records.comparison import Pair
from moe_eval.records.serving_comparison import PointComparison, ServingComparison, UsersInTime
from moe_eval.records.verdicts import Rules, Verdict

_DOES = {
    Verdict.PAYS: "it pays",
    Verdict.SLOWER: "it is slower",
    Verdict.NO_DIFFERENCE: "it makes no worthwhile difference",
    Verdict.OPEN: "the result is open",
    Verdict.QUICK_LOOK: "there is a quick look, no verdict",
}


def sentence(pair: Pair, serving: ServingComparison, rules: Rules) -> str:
    """What an arm does under load, the users in time first."""
    if serving.verdict is Verdict.NOT_COMPARABLE:
        return " ".join([f"Under load {pair.other} cannot be compared with {pair.reference}.", *serving.differs])
    if not serving.points:
        return f"Under load nothing was measured of both {pair.reference} and {pair.other}."
    users = [_in_time(pair, serving, serving.users, rules)] if serving.users else []
    return " ".join([*users, *_by_load(pair, serving.points, rules), *_remarks(pair, serving)])


def is_checked(pair: Pair) -> bool:
    """Whether somebody counted the experts: in fixed batches, for servers do not tell."""
    return any(shape.fairness.is_fair for shape in pair.shapes)


def _remarks(pair: Pair, serving: ServingComparison) -> Iterator[str]:
    if not is_checked(pair):
        yield "Whether both servers went through as many experts was not checked (--evaluators latency counts them)."
    if not serving.one_run:
        yield "The servers are of two runs, so 5 % are allowed for what differs between runs."
    if pair.is_repeat:
        yield f"{pair.other} is {pair.reference} measured a second time, so every ratio has to hold 1."


def _in_time(pair: Pair, serving: ServingComparison, users: UsersInTime, rules: Rules) -> str:
    """How many users are served within the limit on a token."""
    limit, after, before = f"within {users.tpot_ms:g} ms a token", users.other, users.reference
    if users.ratio is not None:
        counts = f"{pair.other} {after:.3g}, {pair.reference} {before:.3g}"
        return f"{pair.other} serves {ratio_wording.ratio_text(users.ratio, rules)} the users {limit} ({counts})."
    fewest = min(point.point.concurrency or math.inf for point in serving.points if _is_measured(point))
    head, (is_reference_open, is_open) = wording.capitalised(limit), users.are_least
    if after is None and before is None:
        return f"{head} neither arm serves {'even ' * (fewest == 1)}{_users(fewest)}."
    if is_open and is_reference_open:
        return f"{head} both arms serve {_users(after)} or more."
    texts = [
        _users(count, fewest) + " or more" * is_least
        for count, is_least in ((after, is_open), (before, is_reference_open))
    ]
    bound = f", {'at least' if is_open else 'at most'} {after / before:.2f}x" if after and before else ""
    return f"{head} {pair.other} serves {texts[0]} and {pair.reference} {texts[1]}{bound}."


def _users(count: float | None, fewest: float = 1) -> str:
    """So many users. None where they are fewer than the fewest that were measured."""
    if count is None:
        return "none" if fewest == 1 else f"fewer than {fewest:g}"
    return f"{count:.3g} user{'s' * (count != 1)}"


def _is_measured(point: PointComparison) -> bool:
    """Whether both arms finished it."""
    return point.ratios.deciding(point.point) is not None


def _by_load(pair: Pair, points: Sequence[PointComparison], rules: Rules) -> Iterator[str]:
    """From which load on it pays, and what it does below, a sentence for every stretch of points that go alike."""
    closed = [point for point in points if point.point.concurrency is not None]
    opened = [point for point in points if point.point.concurrency is None]
    for group in (closed, opened):
        is_first = True  # of which figure the ratios are is told once
        for stretch in reversed(_stretches(group)):
            where = wording.capitalised(_where(stretch, group))
            if not _is_measured(stretch[0]):
                yield f"{where} not both arms were measured."
                continue
            does = _DOES[stretch[0].verdict]
            if is_first:
                does = f"{does.replace('it ', f'{pair.other} ')}, {_figure(stretch[0])}"
            is_first = False
            yield f"{where} {does}{_ratios(stretch, rules)}."


def _figure(point: PointComparison) -> str:
    """What decides, in words."""
    if point.point.concurrency is None:
        return "by the median time of a request"
    sides = point.figures.get("output_tok_s_per_gpu")
    return f"in output tokens per second{' and GPU' * bool(sides and sides.reference and sides.other)}"


def _stretches(points: Sequence[PointComparison]) -> list[list[PointComparison]]:
    """Neighbouring points of one verdict, by load. Those that not both arms finished are apart."""
    groups = groupby(points, key=lambda point: (point.verdict, _is_measured(point)))
    return [list(stretch) for _, stretch in groups]


def _where(stretch: Sequence[PointComparison], group: Sequence[PointComparison]) -> str:
    first, last = stretch[0], stretch[-1]
    if len(stretch) == len(group) > 1:
        return "at every load measured"
    if len(stretch) == 1:
        return first.point.place
    if last is group[-1]:
        return f"from {first.point.place.removeprefix('at ')} on"
    if first is group[0]:
        return f"up to {last.point.place.removeprefix('at ')}"
    return f"from {first.point.place.removeprefix('at ')} to {last.point.place.removeprefix('at ')}"


def _ratios(stretch: Sequence[PointComparison], rules: Rules) -> str:
    """The deciding ratio of the first and the last point."""
    ends = [stretch[0], stretch[-1]] if len(stretch) > 1 else [stretch[0]]
    texts = [
        f"{ratio_wording.ratio_text(ratio, rules)} {point.point.place}"
        for point in ends
        if (ratio := point.ratios.deciding(point.point))
    ]
    if len(texts) == 1:
        texts = [texts[0].partition(" at ")[0]]
    return f": {', '.join(texts)}" if texts else ""
