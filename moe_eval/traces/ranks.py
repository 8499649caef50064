"""The traces of a run's ranks as one, with the clocks of their files put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from moe_eval.errors import UsageError
from moe_eval.traces import collectives
from moe_eval.traces.kernel_table import KERNEL, NONE, Ints, Kernels, Ranges, Trace, kernels, ranges
from moe_eval.traces.medians import median_of
from moe_eval.traces.taxonomy import classify

_SHIFTS, _SAMPLES = 1000, 2000  # orders that are tried, and collectives that are compared
_CLEARLY = 2.0  # times that collectives end closer together in another order: then the clock is wrong
_FITTING = 0.95  # of the compared collectives, the part whose names agree, or that overlap
_COLUMNS = tuple(field.name for field in fields(Kernels) if field.name != "names")


def together(traces: Sequence[Trace], names: Sequence[str]) -> Trace:
    """One trace of several files, each of one rank or more, whose ranks follow each other.

    Clocks of one host are kept as they are if collectives end together by them. Others are moved so that they do, by
    the order of collectives.

    Args:
        names: of the files, for sentences.

    Raises:
        UsageError: a file is a summary, which has no times.
    """
    for trace, name in zip(traces, names, strict=True):
        if not trace.timed:
            raise UsageError(f"{name} is a summary without times. Give the export that it was made of to --ranks.")
    first, *others = traces
    parts, notes = [first], list(first.notes)
    for trace, name in zip(others, names[1:], strict=True):
        # the first of the files before with which it shares collectives, else the first
        clocks = (_clock(part, trace, part_name, name) for part, part_name in zip(parts, names, strict=False))
        unrelated = offset, sentence, related = next(clocks)
        if not related:
            offset, sentence, _ = next((clock for clock in clocks if clock[2]), unrelated)
        notes += [note for note in (*trace.notes, sentence) if note and note not in notes]
        parts.append(replace(_moved(trace, offset), clock_ns=first.clock_ns))
    sources = [trace.source for trace in traces]
    gpus = tuple(gpu for source in sources for gpu in source.gpus)
    merged, marks = _rows(parts)
    return replace(first, kernels=merged, ranges=marks, notes=tuple(notes), source=replace(sources[0], gpus=gpus))


def _clock(first: Trace, second: Trace, first_name: str, name: str) -> tuple[int, str | None, bool]:
    """Nanoseconds to add to the second trace's times, and a sentence where its clock is not the first one's.

    Also whether the two share collectives.
    """
    shared = None if first.clock_ns is None or second.clock_ns is None else second.clock_ns - first.clock_ns
    rows, second_rows = _collectives(first.kernels), _collectives(second.kernels)
    spread = _by_time(first.kernels, second.kernels, rows, second_rows, shared or 0)
    aligned = _by_order(first.kernels, second.kernels, rows, second_rows)
    if shared is not None and aligned is None:  # ranks that do not wait for each other
        return shared, None, spread is not None
    if spread is not None and (aligned is None or spread <= _CLEARLY * aligned[0]):
        return shared or 0, None, True
    alone = f"{name} and {first_name} do not share a clock"
    if aligned is None:
        return 0, f"{alone}, and no collectives in both relate their times. Only the order of steps does.", False
    _, offset, count = aligned
    return offset, f"{alone}. The times of {name} are moved so that {count:,} collectives end together.", True


def _collectives(table: Kernels) -> Ints:
    """The collectives of a trace's first rank, by end."""
    is_collective = np.array([classify(name).category == "allreduce" for name in table.names] or [False])
    rows = np.flatnonzero(is_collective[table.name] & (table.kind == KERNEL))
    if len(rows):
        rows = rows[(table.process[rows] == table.process[rows[0]]) & (table.device[rows] == table.device[rows[0]])]
    return rows[np.argsort(table.end_ns[rows], kind="stable")]


def _by_time(first: Kernels, second: Kernels, rows: Ints, second_rows: Ints, offset: int) -> float | None:
    """The mean deviation of the ends of collectives that fall together, in ns. None where most do not."""
    starts = first.start_ns[rows], second.start_ns[second_rows] + offset
    ends = first.end_ns[rows], second.end_ns[second_rows] + offset
    partner = collectives.partners(starts, ends)
    if not collectives.simultaneous(*ends, partner):
        return None
    paired = partner != NONE
    (start, own_start), (end, own_end) = ((column[0][partner[paired]], column[1][paired]) for column in (starts, ends))
    if np.mean(np.minimum(end, own_end) > np.maximum(start, own_start)) < _FITTING:
        return None
    return _spread(end - own_end)


def _spread(apart: Ints) -> float:
    """The mean deviation from the median.

    Not the median of deviations: layers repeat, and only a few gaps between steps tell them apart.
    """
    return float(np.mean(np.abs(apart - median_of(apart))))


def _by_order(first: Kernels, second: Kernels, rows: Ints, second_rows: Ints) -> tuple[float, int, int] | None:
    """How the k-th collectives of two ranks end together best: mean deviation and offset in ns, and how many there are.

    Either may lack some at both ends of the recording. None where no order fits.
    """
    code = {name: at for at, name in enumerate(first.names)}
    names = (
        first.name[rows],
        np.array([code.get(name, NONE) for name in second.names] or [NONE])[second.name[second_rows]],
    )
    ends = first.end_ns[rows], second.end_ns[second_rows]
    widest = min(_SHIFTS, (max(len(rows), len(second_rows)) + 1) // 2)
    best = None
    for shift in sorted(range(-widest, widest + 1), key=abs):
        begin, end = max(0, -shift), min(len(second_rows), len(rows) - shift)
        if end - begin < max(1, min(len(rows), len(second_rows)) / 2):
            continue
        stride = 1 + (end - begin) // _SAMPLES
        ahead, behind = slice(begin + shift, end + shift, stride), slice(begin, end, stride)
        if np.mean(names[0][ahead] == names[1][behind]) < _FITTING:
            continue
        apart = ends[0][ahead] - ends[1][behind]
        spread = _spread(apart)
        if (best is None or spread < best[0]) and collectives.ends_together(apart, ends[0]):
            best = (spread, int(median_of(apart)), end - begin)
    return best


def _moved(trace: Trace, offset: int) -> Trace:
    """The trace with its times moved by so many nanoseconds."""
    if not offset:
        return trace
    rows, marks = trace.kernels, trace.ranges
    launch, captured = (
        np.where(column == NONE, NONE, column + offset) for column in (rows.launch_ns, rows.captured_ns)
    )
    moved = replace(marks, start_ns=marks.start_ns + offset, end_ns=marks.end_ns + offset)
    return replace(
        trace,
        kernels=replace(rows, start_ns=rows.start_ns + offset, launch_ns=launch, captured_ns=captured),
        ranges=moved,
    )


def _rows(traces: Sequence[Trace]) -> tuple[Kernels, Ranges]:
    """The rows of all, with numbers of processes and threads that no two files share."""
    tables, marks = [trace.kernels for trace in traces], [trace.ranges for trace in traces]
    columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in _COLUMNS}
    spans = {name: np.concatenate([getattr(mark, name) for mark in marks]) for name in ("start_ns", "end_ns")}
    names, columns["name"] = _named([(table.names, table.name) for table in tables])
    texts, spans["name"] = _named([(mark.names, mark.name) for mark in marks])
    # a process that is not known is one of its file
    (columns["process"],) = _numbered([(table.process - table.process.min(initial=0),) for table in tables])
    threads = [
        (mark.thread, table.launch_thread, table.captured_thread) for mark, table in zip(marks, tables, strict=True)
    ]
    spans["thread"], columns["launch_thread"], columns["captured_thread"] = _numbered(threads)
    return kernels(names, **columns), ranges(texts, **spans)


def _named(tables: Sequence[tuple[tuple[str, ...], Ints]]) -> tuple[list[str], Ints]:
    """Distinct names of several tables, and every row's index into them."""
    index: dict[str, int] = {}
    codes = [np.array([index.setdefault(name, len(index)) for name in names], np.int64)[rows] for names, rows in tables]
    return list(index), np.concatenate(codes)


def _numbered(files: Sequence[tuple[Ints, ...]]) -> list[Ints]:
    """Columns of ids, joined over files. Ids of different files get different numbers, and NONE stays."""
    numbers: list[list[Ints]] = [[] for _ in files[0]]
    start = 0
    for columns in files:
        ids = np.unique(np.concatenate(columns))
        ids = ids[ids != NONE]
        for joined, column in zip(numbers, columns, strict=True):
            joined.append(np.where(column == NONE, NONE, start + np.searchsorted(ids, column)))
        start += len(ids)
    return [np.concatenate(joined) for joined in numbers]
