"""The sentences of a verdict on servers: the users that an arm serves in time, and from which load on it pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_eval.comparison import wording
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
    users = [_in_time(pair, serving.users, rules)] if serving.users else []
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


def _in_time(pair: Pair, users: UsersInTime, rules: Rules) -> str:
    """How many users are served within the limit on a token."""
    limit = f"within {users.tpot_ms:g} ms a token"
    texts = [
        "none" if number is None else f"{number:.3g} or more" if is_least else f"{number:.3g}"
        for number, is_least in zip((users.reference, users.other), users.are_least, strict=True)
    ]
    counts = f"{pair.other} {texts[1]}, {pair.reference} {texts[0]}"
    if users.ratio is None:
        return f"{wording.capitalised(limit)} the arms serve so many users: {counts}."
    return f"{pair.other} serves {wording.ratio_text(users.ratio, rules)} the users {limit} ({counts})."


def _by_load(pair: Pair, points: Sequence[PointComparison], rules: Rules) -> Iterator[str]:
    """From which load on it pays, and what it does below, a sentence for every stretch of points that go alike."""
    closed = [point for point in points if point.point.concurrency is not None]
    opened = [point for point in points if point.point.concurrency is None]
    first = True
    for group in (closed, opened):
        for stretch in reversed(_stretches(group)):
            does = _DOES[stretch[0].verdict].replace("it ", f"{pair.other} ") if first else _DOES[stretch[0].verdict]
            first = False
            yield f"{wording.capitalised(_where(stretch, group))} {does}{_ratios(stretch, rules)}."


def _stretches(points: Sequence[PointComparison]) -> list[list[PointComparison]]:
    """Neighbouring points of one verdict, by load."""
    stretches: list[list[PointComparison]] = []
    for point in points:
        if stretches and stretches[-1][0].verdict is point.verdict:
            stretches[-1].append(point)
        else:
            stretches.append([point])
    return stretches


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
        f"{wording.ratio_text(ratio, rules)} {point.point.place}"
        for point in ends
        if (ratio := point.ratios.deciding(point.point))
    ]
    if len(texts) == 1:
        texts = [texts[0].partition(" at ")[0]]
    return f": {', '.join(texts)}" if texts else ""
