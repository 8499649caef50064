"""What the steps of a phase spend their time on, by step, rank and category."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_eval.frozen import frozen
from moe_eval.traces.collectives import TIMED_CATEGORIES, WAIT, Matches
from moe_eval.traces.joint_steps import JointStep
from moe_eval.traces.kernel_table import Bytes, Ints, Trace
from moe_eval.traces.lateness import Lateness
from moe_eval.traces.roles import Roles
from moe_eval.traces.row_times import Floats, RowTimes

_MS = 1e6


@frozen
class Recording:
    """A trace with all that is known of its rows.

    Attributes:
        ranks: the rows of every rank, by start. `rank`: that of every row, shape (n,).
    """

    trace: Trace
    assigned: Roles
    ranks: tuple[Ints, ...]
    rank: Ints
    matches: Matches
    times: RowTimes
    late: Lateness


@frozen
class Entries:
    """What the steps of a phase spend time on: an entry for every row, and one more for a row's waiting.

    Attributes:
        rows: how many entries are of rows. Those of waiting follow them.
        row, step, rank, category, ns, launches: of every entry. Waiting launches nothing.
        cell: step and rank in one, as of an array of shape (steps, ranks).
        times: ms by step, rank and category. `counts`: launches. Shape (steps, ranks, categories).
        slowest: the rank that takes the most time, shape (steps, categories).
    """

    rows: int
    row: Ints
    step: Ints
    rank: Ints
    cell: Ints
    category: Bytes
    ns: Floats
    launches: Floats
    times: Floats
    counts: Ints
    slowest: Ints

    def per_rank(self, values: Floats | Ints) -> Floats:
        """The sums of a value of the trace's rows, in millions, shape (steps, ranks)."""
        steps, ranks, _ = self.times.shape
        cell, row = self.cell[: self.rows], self.row[: self.rows]
        sums: Floats = np.bincount(cell, values[row], steps * ranks).reshape(steps, ranks) / _MS
        return sums


def entries_of(recording: Recording, counted: Sequence[JointStep]) -> Entries:
    """The entries of a phase's steps."""
    size, ranks, width = len(counted), len(recording.ranks), len(TIMED_CATEGORIES)
    row = np.concatenate([step.rows for step in counted])
    step = np.repeat(np.arange(size), [len(step.rows) for step in counted])
    wait, rows = recording.times.wait_ns[row], len(row)
    waiting = np.flatnonzero(wait)
    if len(waiting):
        row, step = np.append(row, row[waiting]), np.append(step, step[waiting])
    category = recording.times.category[row]
    ns = recording.trace.kernels.duration_ns[row].astype(np.float64)
    launches = recording.trace.kernels.count[row].astype(np.float64)
    ns[:rows] -= wait
    category[rows:], ns[rows:], launches[rows:] = WAIT, wait[waiting], 0
    rank = recording.rank[row]
    cell, shape = step * ranks + rank, (size, ranks, width)
    cells = cell * width + category
    times = np.bincount(cells, ns, size * ranks * width).reshape(shape) / _MS
    counts = np.bincount(cells, launches, size * ranks * width).reshape(shape).astype(np.int64)
    return Entries(rows, row, step, rank, cell, category, ns, launches, times, counts, times.argmax(axis=1))
