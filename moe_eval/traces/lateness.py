"""Which rank was the last to enter a collective, by how much, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.records.kernels import LateRank
from moe_eval.traces.collectives import TIMED_CATEGORIES, WAIT, Matches
from moe_eval.traces.kernel_table import NONE, Ints, distinct
from moe_eval.traces.row_times import RowTimes

Floats = npt.NDArray[np.float64]
GAPS = "launch gaps"
_MS = 1e6


@frozen
class Lateness:
    """The last rank of every collective, shape (e,), and what made it late.

    Attributes:
        row: of the kernel by which the last rank entered.
        late_ns: after the rank before it.
        work_ns: of `late_ns`, by category, shape (e, categories): what the last rank ran since the collective before,
            less what the rank before it ran. The rest of `late_ns` are gaps in which it ran nothing.
    """

    rank: Ints
    row: Ints
    late_ns: Ints
    work_ns: Floats


def find(matches: Matches, ranks: Sequence[Ints], times: RowTimes, start_ns: Ints) -> Lateness:
    """Compare the last two ranks of every collective since the collective before it.

    Args:
        ranks: the rows of every rank, by start. `start_ns`: of every row.
    """
    members = matches.members
    enters = np.where(members == NONE, np.iinfo(np.int64).min, start_ns[members])
    every = np.arange(len(members))
    by_entry = np.argsort(enters, axis=1, kind="stable")[:, -2:]
    before, last = by_entry.T if len(members) else np.zeros((2, 0), np.int64)
    work = np.zeros((len(members), len(TIMED_CATEGORIES)))
    # collectives of the same ranks follow each other. Others between them are work like any kernel's
    communicators, communicator = matches.communicators()
    for number, is_member in enumerate(communicators):
        events = every[communicator == number]
        for rank in np.flatnonzero(is_member).tolist():
            ran = _since(members[events, rank], ranks[rank], times)
            sign = np.subtract(last[events] == rank, before[events] == rank, dtype=np.int64)
            work[events] += ran * sign[:, None]
    return Lateness(last, members[every, last], enters[every, last] - enters[every, before], work)


def _since(members: Ints, rows: Ints, times: RowTimes) -> Floats:
    """What a rank ran since the collective before each of these, in ns, shape (e, categories)."""
    size, width = len(members), len(TIMED_CATEGORIES)
    place = np.maximum.accumulate(np.searchsorted(rows, members))  # rows are numbered by start
    ends = np.bincount(place, minlength=len(rows))
    event = np.cumsum(ends) - ends  # how many collectives there are before every row
    between = event < size
    between[place] = False
    event, rows = event[between], rows[between]
    cells = event * width + times.category[rows]
    ran = np.bincount(cells, times.work_ns[rows], size * width).reshape(size, width).astype(np.float64)
    ran[:, WAIT] += np.bincount(event, times.wait_ns[rows], size)
    return ran


def late_ranks(lateness: Lateness, events: Ints, steps: int) -> tuple[LateRank, ...]:
    """The ranks that were last at some collectives, per step, the one with the most time first."""
    ranks = []
    events = events[lateness.late_ns[events] > 0]
    for rank in distinct(lateness.rank[events]).tolist():
        last_at = events[lateness.rank[events] == rank]
        work = lateness.work_ns[last_at].sum(axis=0)
        late = float(lateness.late_ns[last_at].sum())
        because = dict(zip((*TIMED_CATEGORIES, GAPS), [*work.tolist(), late - float(work.sum())], strict=True))
        longest = sorted(because.items(), key=lambda part: -part[1])
        parts = {name: ns / _MS / steps for name, ns in longest if ns}
        ranks.append(LateRank(rank, len(last_at) / steps, late / _MS / steps, parts))
    return tuple(sorted(ranks, key=lambda rank: (-rank.late_ms, rank.rank)))
