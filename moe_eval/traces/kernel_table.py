"""A trace as columns: kernels of the devices, when they were launched, and ranges of the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.records.kernels import TraceSource

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.int8]  # small numbers of rows, of which a cache holds eight times as many

KERNEL, COPY, SET = 0, 1, 2
SPREAD = 16  # values that are spread over fewer numbers than this for each are marked in an array and not sorted
_LOW = (1 << 32) - 1  # of an id, the lower half of its bits
NONE = -1  # a time, a correlation id or a graph node that the trace does not have


@frozen
class Kernels:
    """Kernels, copies and sets of n rows, by start. Every column but `names` has shape (n,).

    A row of a summary stands for all launches of a kernel: `count` of them, which take `duration_ns` together.

    Attributes:
        names: distinct names. `name`: an index into them.
        kind: KERNEL, COPY or SET. `count`: launches, 1 but in a summary.
        start_ns, duration_ns: on the device's clock as the profiler aligned it with the host's.
        device, stream, process: as the profiler numbers them. `stream` is unique within a device and process.
        correlation: which launch it came from, unique within a process. All nodes of a graph's launch share one.
        graph_node: its node where a CUDA graph was replayed and the profiler recorded nodes.
        replayed: whether it ran from a CUDA graph, also where nodes have no numbers.
        bytes: moved by a copy or set, or a collective's message, 0 where not known. `blocks`: thread blocks of a
            kernel's grid, likewise.
        communicator: of a collective, the same number on all ranks. `sequence`: its place among those of its
            communicator. NONE where the trace does not tell them.
        launch_ns, launch_thread: when and on which thread of the host the launch began, NONE where the launch is not in
            the trace. `captured_ns`, `captured_thread`: the same of a graph's node when the graph was captured.
    """

    names: tuple[str, ...]
    name: Ints
    kind: Bytes
    count: Ints
    start_ns: Ints
    duration_ns: Ints
    device: Ints
    stream: Ints
    process: Ints
    correlation: Ints
    graph_node: Ints
    replayed: npt.NDArray[np.bool_]
    bytes: Ints
    blocks: Ints
    communicator: Ints
    sequence: Ints
    launch_ns: Ints
    launch_thread: Ints
    captured_ns: Ints
    captured_thread: Ints

    def __len__(self) -> int:
        return len(self.name)

    @cached_property
    def end_ns(self) -> Ints:
        return self.start_ns + self.duration_ns

    @cached_property
    def by_device(self) -> list[Ints]:
        """The rows of every device of every process, by start."""
        rows_by_device = []
        for process in distinct(self.process).tolist():
            of_process = np.flatnonzero(self.process == process)
            number = self.device[of_process]
            rows_by_device += [of_process[number == device] for device in distinct(number).tolist()]
        return rows_by_device

    def take(self, rows: npt.NDArray[Any]) -> Kernels:
        """The rows of a mask or of indices."""
        return Kernels(self.names, **{column: getattr(self, column)[rows] for column in _COLUMNS})


_COLUMNS = tuple(field_.name for field_ in fields(Kernels) if field_.name != "names")
_KINDS: dict[str, type[np.generic]] = {"replayed": np.bool_, "kind": np.int8}
_ZEROS = ("kind", "device", "stream", "process", "replayed", "bytes", "blocks")


@frozen
class Ranges:
    """Named ranges of the host (NVTX, the profiler's annotations), by start. Columns have shape (n,).

    `thread` is unique across processes and means the same as `launch_thread` of Kernels.
    """

    names: tuple[str, ...]
    name: Ints
    start_ns: Ints
    end_ns: Ints
    thread: Ints

    def __len__(self) -> int:
        return len(self.name)

    def take(self, rows: npt.NDArray[Any]) -> Ranges:
        """The rows of a mask or of indices."""
        return Ranges(self.names, self.name[rows], self.start_ns[rows], self.end_ns[rows], self.thread[rows])


@frozen
class Launches:
    """Calls of the host that launch kernels. Columns have shape (n,).

    `thread` and `start_ns` mean the same as `launch_thread` and `launch_ns` of Kernels. `graph`: whether it launches a
    CUDA graph.
    """

    start_ns: Ints
    thread: Ints
    graph: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start_ns)


def no_launches() -> Launches:
    """A table without rows."""
    return Launches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


@frozen
class Trace:
    """What a file holds.

    Attributes:
        unanswered: launches of which the file has no row of a device. Those of a graph's capture are none.
        notes: sentences on parts of the file that were left out or are missing.
        timed: False for a summary, whose rows have durations and counts but neither times nor order.
        clock_ns: what its times are counted from, on a clock that all files of one host have. None where not known.
    """

    kernels: Kernels
    ranges: Ranges
    source: TraceSource
    notes: tuple[str, ...] = field(default=())
    timed: bool = True
    unanswered: Launches = field(default_factory=no_launches)
    clock_ns: int | None = None


def kernels(names: Sequence[str], **columns: npt.ArrayLike) -> Kernels:
    """A table of some columns (at least name, start_ns and duration_ns), the others empty, put in order.

    Rows that start at once are ordered by device, stream and name, so that their order in a file does not matter.
    """
    size = len(np.asarray(columns["name"]))
    full: dict[str, npt.NDArray[Any]] = {}
    for key in _COLUMNS:
        kind = _KINDS.get(key, np.int64)
        column = columns.get(key)
        empty = kind(1 if key == "count" else 0 if key in _ZEROS else NONE)
        full[key] = np.broadcast_to(empty, size) if column is None else np.asarray(column, kind)
    start = full["start_ns"]
    if np.any(start[1:] < start[:-1]):
        order = np.argsort(start, kind="stable")
        full = {key: column[order] for key, column in full.items()}
    _order_ties(names, full)
    return Kernels(tuple(names), **full)


def _order_ties(names: Sequence[str], columns: dict[str, npt.NDArray[Any]]) -> None:
    """Put rows that start at once in order. Few do, so the others are left where they are."""
    start = columns["start_ns"]
    is_tie = np.append(start[1:] == start[:-1], False)
    rows = np.flatnonzero(is_tie | np.append(False, is_tie[:-1]))
    if len(rows):
        alphabet = np.argsort(np.argsort(np.array(names, dtype=object), kind="stable"))
        tied = {key: column[rows] for key, column in columns.items()}
        keys = (tied["duration_ns"], alphabet[tied["name"]], tied["stream"], tied["device"], tied["start_ns"])
        order = np.lexsort(keys)
        for key, column in tied.items():
            if not np.array_equal(column, column[order]):
                columns[key] = columns[key].copy()  # it may be the caller's
                columns[key][rows] = column[order]


def ranges(names: Sequence[str], **columns: npt.ArrayLike) -> Ranges:
    """A table of ranges, put in order: by start, the outer one of two that begin together first."""
    full = {key: np.asarray(columns.get(key, ()), np.int64) for key in ("name", "start_ns", "end_ns", "thread")}
    order = np.lexsort((-full["end_ns"], full["start_ns"]))
    return Ranges(tuple(names), **{key: column[order] for key, column in full.items()})


def index_in(numbers: Ints, values: Ints) -> Ints:
    """For every value its index among distinct ascending numbers, NONE where it is not among them."""
    if not len(numbers):
        return np.full(len(values), NONE, np.int64)
    low, span = int(numbers[0]), int(numbers[-1]) - int(numbers[0]) + 1
    if span < SPREAD * (len(numbers) + len(values)):
        table = np.full(span + 1, NONE, np.int64)
        table[numbers - low] = np.arange(len(numbers))
        # a value below the lowest number is a huge one without its sign
        return table[np.minimum((values - low).view(np.uint64), span).view(np.int64)]
    high, width = distinct(numbers >> 32), int((numbers & _LOW).max()) + 1
    if len(high) * width < SPREAD * (len(numbers) + len(values)):  # CUPTI numbers nodes so, graph by graph

        def folded(ids: Ints) -> Ints:
            at, low = index_in(high, ids >> 32), ids & _LOW
            return np.where((at >= 0) & (low < width), at * width + low, NONE)

        return index_in(folded(numbers), folded(values))
    nearest = np.minimum(np.searchsorted(numbers, values), len(numbers) - 1)
    index: Ints = np.where(numbers[nearest] == values, nearest, NONE)
    return index


def distinct(values: Ints) -> Ints:
    """The distinct values in ascending order. np.unique sorts or hashes all of them, and imports numpy.ma."""
    if not len(values):
        return values
    low, high = int(values.min()), int(values.max())
    if high - low < SPREAD * len(values):
        present = np.zeros(high - low + 1, np.bool_)
        present[values - low] = True
        return np.flatnonzero(present) + low
    ordered = np.sort(values)
    first: Ints = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return first


def places(values: Ints) -> tuple[Ints, Ints]:
    """The distinct values, and every value's index into them."""
    numbers = distinct(values)
    return numbers, index_in(numbers, values)


def pick(column: npt.NDArray[Any], rows: Ints, absent: int | bool) -> npt.NDArray[Any]:
    """The column at the rows, `absent` where a row is NONE, which is -1 and so the last."""
    return np.append(column, np.array(absent, column.dtype))[rows]
