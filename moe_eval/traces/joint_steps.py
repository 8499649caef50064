"""Joins the steps of ranks: a step is one event on all of them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np

from moe_eval.frozen import frozen
from moe_eval.traces.collectives import Matches
from moe_eval.traces.kernel_table import NONE, Ints
from moe_eval.traces.medians import median_of
from moe_eval.traces.roles import Roles
from moe_eval.traces.steps import OUTSIDE, UNKNOWN, WHOLE, Step

# a step whose kernels take this many times longer or shorter than the phase's median is warming up, or was disturbed
_FAR = 1.5


@frozen
class JointStep:
    """One forward step on all ranks.

    Attributes:
        phase: as that of a Step, `mixed` where ranks are in different ones.
        rows: of the trace's kernels, rank by rank, by start, shape (n,).
        span_ns: from the first rank's first kernel to the end of the last rank's last.
        wall_ns: from its begin to the next one's, None for the last.
        aside: why it does not count, None where it does.
    """

    phase: str
    rows: Ints
    span_ns: int
    wall_ns: int | None
    aside: str | None = None


def join(steps: Sequence[Step], rank: Ints, matches: Matches) -> list[JointStep]:
    """Join the steps of ranks.

    Ranks that share collectives run in step: their steps with the same collectives are one. Others do not wait for
    each other: the k-th steps of a phase are put side by side, and the slowest one's times count.

    Args:
        steps: by rank and start.
        rank: of every row.
    """
    by_rank: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        by_rank[int(rank[step.rows[0]])].append(step)
    sides: dict[str, list[list[JointStep]]] = defaultdict(list)
    for group in _groups(list(by_rank), matches):
        by_phase: dict[str, list[JointStep]] = defaultdict(list)
        for parts in _in_step({number: by_rank[number] for number in group}, matches, len(rank)):
            by_phase[_phase(parts)].append(_joint(parts))
        for phase, joint in by_phase.items():
            sides[phase].append(joint)
    return [
        _beside([step for step in row if step is not None]) for groups in sides.values() for row in zip_longest(*groups)
    ]


def _groups(ranks: Sequence[int], matches: Matches) -> list[list[int]]:
    """Ranks that are connected by collectives."""
    group = {rank: rank for rank in ranks}
    for present in matches.communicators()[0]:
        joined = {group[rank] for rank in np.flatnonzero(present).tolist() if rank in group}
        group.update({rank: min(joined) for rank, number in group.items() if number in joined})
    return [[rank for rank in ranks if group[rank] == number] for number in sorted(set(group.values()))]


def _in_step(by_rank: dict[int, list[Step]], matches: Matches, rows: int) -> list[list[Step]]:
    """The parts of every step of ranks that share collectives, by start."""
    first, *others = sorted(by_rank, key=lambda rank: (-len(by_rank[rank]), rank))
    joint = [[step] for step in by_rank[first]]
    event = np.full(rows, NONE, np.int64)  # of every row, the step that it is part of
    for rank in others:
        joint.sort(key=_start)
        for at, parts in enumerate(joint):
            event[np.concatenate([step.rows for step in parts])] = at
        starts = list(map(_start, joint))
        number_of_event = np.where(matches.members == NONE, NONE, event[matches.members]).max(axis=1, initial=NONE)
        shared = (number_of_event != NONE) & (matches.members[:, rank] != NONE)
        place = _by_votes(by_rank[rank], event, number_of_event[shared], matches.members[shared, rank])
        taken = set(place.values())
        for at, step in enumerate(by_rank[rank]):
            number = place.get(at)
            if number is None:  # a step without collectives, or one that the other ranks' recording lacks
                number = bisect_right(starts, (step.start_ns + step.end_ns) // 2) - 1
                if number < 0 or number in taken or not _meet(step, joint[number]):
                    number = len(joint)
                    joint.append([])
                taken.add(number)
            joint[number].append(step)
    return sorted(joint, key=_start)


def _by_votes(steps: Sequence[Step], event: Ints, joint: Ints, rows: Ints) -> dict[int, int]:
    """For a rank's steps the joint steps with which they share the most collectives, each at most once.

    Args:
        joint: joint steps of collectives. `rows`: the rank's rows of the same.
    """
    step_of_row = np.full(len(event), NONE, np.int64)
    for at, step in enumerate(steps):
        step_of_row[step.rows] = at
    voting = step_of_row[rows] != NONE
    size = int(joint.max(initial=0)) + 1
    pairs, counts = np.unique(step_of_row[rows][voting] * size + joint[voting], return_counts=True)
    place: dict[int, int] = {}
    taken: set[int] = set()
    for at in np.argsort(-counts, kind="stable").tolist():
        step_number, joint_number = divmod(int(pairs[at]), size)
        if step_number not in place and joint_number not in taken:
            place[step_number] = joint_number
            taken.add(joint_number)
    return place


def _start(parts: Sequence[Step]) -> int:
    return min(step.start_ns for step in parts)


def _meet(step: Step, parts: Sequence[Step]) -> bool:
    """Whether the middle of a step lies in another one. What is outside of steps meets its like alone."""
    first, middle = parts[0], (step.start_ns + step.end_ns) // 2
    return (step.phase == OUTSIDE) == (first.phase == OUTSIDE) and middle < first.end_ns


def _phase(parts: Iterable[Step]) -> str:
    phases = {step.phase for step in parts}
    telling = phases - {OUTSIDE, UNKNOWN, WHOLE} or phases - {OUTSIDE} or phases
    return telling.pop() if len(telling) == 1 else "mixed"


def _joint(parts: Sequence[Step]) -> JointStep:
    start = _start(parts)
    following = [step.next_ns for step in parts if step.next_ns is not None]
    rows = np.concatenate([step.rows for step in parts])
    span = max(step.end_ns for step in parts) - start
    return JointStep(_phase(parts), rows, span, min(following) - start if following else None)


def _beside(steps: Sequence[JointStep]) -> JointStep:
    """Steps of ranks that do not wait for each other. Their times are the longest."""
    if len(steps) == 1:
        return steps[0]
    walls = [step.wall_ns for step in steps if step.wall_ns is not None]
    rows = np.concatenate([step.rows for step in steps])
    return JointStep(steps[0].phase, rows, max(step.span_ns for step in steps), max(walls, default=None))


def set_aside(steps: Sequence[JointStep], roles: Roles, rank: Ints, spent: Ints) -> list[JointStep]:
    """Set steps aside that have another number of layer kernels than most of their phase's time, or take far longer.

    A step that one rank's recording lacks, or has a part of, has fewer of them.

    Args:
        spent: the ns that count of every row, without waiting in collectives.
    """
    ranks = int(rank.max(initial=0)) + 1
    marked = list(steps)
    for phase in {step.phase for step in steps}:
        members = [at for at, step in enumerate(steps) if step.phase == phase]
        counts = {at: int(np.count_nonzero(roles.in_layer[steps[at].rows])) for at in members}
        # of the rank that works the longest
        times = {at: float(np.bincount(rank[steps[at].rows], spent[steps[at].rows], ranks).max()) for at in members}
        totals: Counter[int] = Counter()
        for at in members:  # drafts of a speculating engine are more than the steps that verify them, and far shorter
            totals[counts[at]] += int(times[at])
        usual = max(totals.items(), key=lambda item: (item[1], item[0]))[0]
        whole = [at for at in members if counts[at] == usual]
        median = float(median_of([times[at] for at in whole]))
        far = [at for at in whole if not median / _FAR <= times[at] <= median * _FAR]
        for at in members:
            if counts[at] != usual:
                marked[at] = replace(steps[at], aside="ragged")
            elif at in far and len(far) <= len(whole) / 4:  # more of them are no exception
                marked[at] = replace(steps[at], aside="far from the others")
    return marked
