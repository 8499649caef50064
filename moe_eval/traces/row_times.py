"""What the time of every row of a trace goes to: its category, waiting for other ranks, and time that it runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_eval.traces.collectives import TRANSFER, Matches
from moe_eval.traces.kernel_table import Bytes, Ints, Trace
from moe_eval.traces.roles import NUMBER, Roles

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
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
    busy, work, alone = (np.zeros(len(kernels)) for _ in range(3))
    if trace.timed:
        for rows in ranks:
            busy[rows] = _added(start, end, rows)
    rows, event = matches.rows()
    is_matched = len(rows) > 0
    if is_matched:
        category, start, end = category.copy(), start.copy(), end.copy()
        category[rows], start[rows], end[rows] = TRANSFER, matches.begin_ns[event], matches.end_ns[event]
        wait = kernels.duration_ns - (end - start)
    if trace.timed:
        for rows in ranks:
            by_start = rows[np.argsort(start[rows], kind="stable")] if is_matched else rows
            work[by_start] = _added(start, end, by_start) if is_matched else busy[rows]
            others = by_start[category[by_start] != NUMBER["expert_gemm"]]
            alone[others] = _added(start, end, others)
    return RowTimes(category, wait, busy, work, alone)


def _added(start: Ints, end: Ints, rows: Ints) -> Ints:
    """For every row of a rank, by start, the nanoseconds that it adds to the union of the intervals before it."""
    begin, end = start[rows], end[rows]
    np.maximum(begin[1:], np.maximum.accumulate(end)[:-1], out=begin[1:])
    end -= begin
    return np.maximum(end, 0, out=end)
