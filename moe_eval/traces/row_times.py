"""What the time of every row of a trace goes to: its category, waiting for other ranks, and time that it runs alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.traces.collectives import TRANSFER, Matches
from moe_eval.traces.kernel_table import Bytes, Ints, Trace
from moe_eval.traces.roles import NUMBER, Roles

Floats = npt.NDArray[np.float64]


@frozen
class RowTimes:
    """Columns of shape (n,), times in ns.

    Attributes:
        category: an index into TIMED_CATEGORIES. A matched collective's is that of its transfer.
        wait_ns: of its duration, waiting in a collective. The rest is the category's.
        busy_ns: what it adds to the union of the intervals of its rank's rows before it. `work_ns`: likewise, where
            waiting does not count. `alone_ns`: that of all rows but expert GEMMs.
    """

    category: Bytes
    wait_ns: Ints
    busy_ns: Floats
    work_ns: Floats
    alone_ns: Floats


def find(trace: Trace, assigned: Roles, ranks: Sequence[Ints], matches: Matches) -> RowTimes:
    """The times of all rows.

    Args:
        ranks: the rows of every rank, by start.
    """
    kernels = trace.kernels
    category, start, end = assigned.category, kernels.start_ns, kernels.end_ns
    wait = np.zeros(len(kernels), np.int64)
    busy, alone = np.zeros(len(kernels)), np.zeros(len(kernels))
    if trace.timed:
        for members in ranks:
            busy[members] = _added(start[members], end[members])
    work = busy
    rows, event = matches.rows()
    if len(rows):
        category, start, end, work = category.copy(), start.copy(), end.copy(), busy.copy()
        category[rows], start[rows], end[rows] = TRANSFER, matches.begin_ns[event], matches.end_ns[event]
        wait[rows] = kernels.duration_ns[rows] - (end[rows] - start[rows])
        ranks = [members[np.argsort(start[members], kind="stable")] for members in ranks]
        for members in ranks:
            work[members] = _added(start[members], end[members])
    if trace.timed:
        for members in ranks:
            others = members[category[members] != NUMBER["expert_gemm"]]
            alone[others] = _added(start[others], end[others])
    return RowTimes(category, wait, busy, work, alone)


def _added(start: Ints, end: Ints) -> Ints:
    """For every interval of several, by start, the nanoseconds that it adds to the union of those before it."""
    until = np.maximum.accumulate(end)
    np.maximum(start[1:], until[:-1], out=until[1:])
    until[:1] = start[:1]
    added: Ints = np.maximum(end - until, 0)
    return added
