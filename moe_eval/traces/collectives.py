"""Collectives matched over ranks: when all ranks are in one, and how long each of them waits for the last.

The k-th collective of a communicator is one event on all its ranks, and it ends on all of them at nearly the same time.
All ranks are in it from the last one's begin to the first one's end: that is the transfer. The rest of a rank's
duration is waiting.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import KERNEL, NONE, Ints, Kernels, Trace, distinct, places
from moe_eval.traces.medians import median_of
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.taxonomy import CATEGORIES

COLLECTIVE = NUMBER["allreduce"]
TRANSFER, WAIT = len(CATEGORIES), len(CATEGORIES) + 1
# of a breakdown: a matched collective's time is split into the two at the end
TIMED_CATEGORIES = (*CATEGORIES, "collective_transfer", "collective_wait")
# categories in the order in which tables and charts have them
SHOWN_CATEGORIES = tuple(
    shown for name in CATEGORIES for shown in ((name, *TIMED_CATEGORIES[TRANSFER:]) if name == "allreduce" else (name,))
)

_NEVER = np.iinfo(np.int64)
_WINDOW = 9  # neighbours whose shift of order is compared: up to four that are missing or paired wrongly do not count
_SKEW_NS = 20_000  # by which clocks of two GPUs may differ
_APART = 8  # ends on two ranks differ by less than this part of the time between two collectives


@frozen
class Matches:
    """Collectives of several ranks, e of them, by the order in which their last ranks enter.

    Attributes:
        members: rows of kernels by rank, shape (e, ranks), NONE for a rank that is not of the communicator.
        begin_ns, end_ns: of the transfer, shape (e,).
        unmatched: rows of collectives that another rank of their communicator lacks, or that no other rank has.
    """

    members: Ints
    begin_ns: Ints
    end_ns: Ints
    unmatched: Ints

    def rows(self) -> tuple[Ints, Ints]:
        """All members' rows, and the collective of each."""
        event, rank = np.nonzero(self.members != NONE)
        return self.members[event, rank], event

    def communicators(self) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Which ranks are in one, of every distinct set of ranks, shape (c, ranks). Which set a collective has."""
        code = np.zeros(len(self.members), np.int64)
        for is_member in (self.members != NONE).T:
            code = places(2 * code + is_member)[1]
        first = np.zeros(int(code.max(initial=NONE)) + 1, np.int64)
        first[code] = np.arange(len(code))
        return self.members[first] != NONE, code


def match(trace: Trace, assigned: Roles, ranks: Sequence[Ints]) -> Matches:
    """Match the collectives of ranks.

    Args:
        ranks: the rows of every rank, by start. For a single rank nothing is matched.
    """
    kernels = trace.kernels
    by_rank = [rows[(assigned.category[rows] == COLLECTIVE) & (kernels.kind[rows] == KERNEL)] for rows in ranks]
    everything = np.concatenate([*by_rank, np.zeros(0, np.int64)])
    tables = [np.zeros((0, len(ranks)), np.int64)]
    if trace.timed and len(ranks) > 1:
        # communicators have 32 bits
        keys = [(kernels.communicator[rows] + 1) * len(kernels.names) + kernels.name[rows] for rows in by_rank]
        for key in distinct(np.concatenate(keys)).tolist():
            tables += _of_communicator(
                kernels, {rank: rows[keys[rank] == key] for rank, rows in enumerate(by_rank)}, len(ranks)
            )
    members = np.concatenate(tables)
    absent = members == NONE
    begin = np.where(absent, _NEVER.min, kernels.start_ns[members]).max(axis=1, initial=_NEVER.min)
    end = np.where(absent, _NEVER.max, kernels.end_ns[members]).min(axis=1, initial=_NEVER.max)
    order = np.argsort(begin, kind="stable")
    matched = np.zeros(len(kernels), np.bool_)
    matched[members[~absent]] = True
    unmatched = everything[~matched[everything]]
    return Matches(members[order], begin[order], np.maximum(begin, end)[order], unmatched)


def partners(start: tuple[Ints, Ints], end: tuple[Ints, Ints]) -> Ints:
    """For every collective of a second rank the index of the first rank's that is the same event, NONE where none is.

    The nearest end tells how far the two are apart in their order, which changes only where a rank lacks some: so a
    clock that is a little off does not mislead. Partners have to overlap, but for what the clocks differ usually.

    Args:
        start, end: of the first and the second rank's, both by end, in ns.
    """
    first, second = end
    if not len(first) or not len(second):
        return np.full(len(second), NONE, np.int64)
    near = _nearest(first, second)
    off = int(median_of(second - first[near]))
    begin, second = start[1] - off, second - off
    near = _nearest(first, second)
    place = np.arange(len(second))
    half = _WINDOW // 2
    shifts = np.pad(near - place, half, mode="symmetric")
    usual = median_of(np.lib.stride_tricks.sliding_window_view(shifts, _WINDOW), axis=1).astype(np.int64)
    tolerance = min(_SKEW_NS, _spacing(first) // _APART)

    def overlap(at: Ints) -> npt.NDArray[np.bool_]:
        inside = np.clip(at, 0, len(first) - 1)
        apart = np.maximum(start[0][inside], begin) - np.minimum(first[inside], second)
        overlaps: npt.NDArray[np.bool_] = (inside == at) & (apart <= tolerance)
        return overlaps

    by_order = overlap(place + usual)
    partner = np.where(by_order, place + usual, NONE)
    partner = np.where(~by_order & overlap(near) & ~np.isin(near, partner), near, partner)
    # of two that have the same partner the nearer one keeps it
    order = np.lexsort((np.abs(first[partner] - second), partner))
    twice = order[1:][partner[order[1:]] == partner[order[:-1]]]
    partner[twice] = NONE
    return partner


def _nearest(first: Ints, second: Ints) -> Ints:
    """For every time of the second the index of the nearest of the first. Both are in order."""
    after = np.minimum(np.searchsorted(first, second), len(first) - 1)
    before = np.maximum(after - 1, 0)
    nearest: Ints = np.where(np.abs(first[before] - second) < np.abs(first[after] - second), before, after)
    return nearest


def _of_communicator(kernels: Kernels, by_rank: dict[int, Ints], ranks: int) -> list[Ints]:
    """Tables of members, of collectives of one name and, where known, one communicator.

    Without a communicator ranks are of one if nearly all of their collectives end together.
    """
    ordered = {rank: rows[np.argsort(kernels.end_ns[rows], kind="stable")] for rank, rows in by_rank.items()}
    waiting = sorted((rank for rank, rows in ordered.items() if len(rows)), key=lambda rank: -len(ordered[rank]))
    tables = []
    while waiting:
        first = waiting.pop(0)
        table = np.full((len(ordered[first]), ranks), NONE, np.int64)
        table[:, first] = ordered[first]
        members = [first]
        for rank in list(waiting):
            partner = _same(kernels, ordered[first], ordered[rank])
            if partner is not None:
                table[partner[partner != NONE], rank] = ordered[rank][partner != NONE]
                members.append(rank)
                waiting.remove(rank)
        if len(members) > 1:
            tables.append(table[(table[:, members] != NONE).all(axis=1)])
    return tables


def _same(kernels: Kernels, first: Ints, second: Ints) -> Ints | None:
    """The partners of the second rank's collectives, None where the two ranks are of different communicators."""
    numbers = kernels.sequence[first], kernels.sequence[second]
    if all((column != NONE).all() and len(distinct(column)) == len(column) for column in numbers):
        order = np.argsort(numbers[0])
        at = np.minimum(np.searchsorted(numbers[0][order], numbers[1]), len(order) - 1)
        by_number: Ints = np.where(numbers[0][order][at] == numbers[1], order[at], NONE)
        return by_number
    ends = kernels.end_ns[first], kernels.end_ns[second]
    partner = partners((kernels.start_ns[first], kernels.start_ns[second]), ends)
    if kernels.communicator[first[0]] == NONE and not simultaneous(*ends, partner):
        return None
    return partner


def simultaneous(first: Ints, second: Ints, partner: Ints) -> bool:
    """Whether most collectives of two ranks have a partner, and end with it. `first`, `second`: their ends, in ns."""
    if not (partner != NONE).any():
        return False
    apart = second - first[_nearest(first, second)]
    apart = apart[np.abs(apart) <= _spacing(first)]  # those beyond the other recording are near nothing
    if not len(apart) or np.count_nonzero(partner != NONE) < len(apart) / 2:
        return False
    return ends_together(apart, first)


def ends_together(apart: Ints, ends: Ints) -> bool:
    """Whether times between the ends of two ranks' collectives are nearly the same. `ends`: of the first rank's."""
    return bool(median_of(np.abs(apart - median_of(apart))) <= _spacing(ends) / _APART)


def _spacing(ends: Ints) -> int:
    """The usual time between two collectives."""
    return int(median_of(np.diff(ends))) if len(ends) > 1 else _SKEW_NS * _APART
