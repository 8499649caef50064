"""Keeps a trace beside a record: what a breakdown needs of it, and nothing that tells of the machine or the user."""

from __future__ import annotations

import tempfile
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.traces import ranges
from moe_eval.traces.readers import nsys_export, scrub, sources, torch_profiler
from moe_eval.traces.readers.sources import TraceKind


def keep(source: Path, folder: Path, name: str, *, cpu: bool = False) -> Path:
    """Write a trace again without secrets, as FOLDER/NAME.json.gz or NAME.sqlite. A file of that name is replaced.

    Ranges that name steps and modules stay. The source is never changed.

    Args:
        cpu: the rows that count are operators of the CPU.

    Raises:
        UsageError: the source cannot be read, or is a summary, which needs no copy.
    """
    kind = sources.kind(source)
    if kind is TraceKind.TORCH_PROFILER:
        trace = folder / f"{name}.json.gz"
        torch_profiler.scrub(source, trace, ranges.is_known, cpu=cpu)
        return trace
    if kind is TraceKind.NSYS_CSV:
        raise UsageError(f"{source} is a summary. Keep the export that it was made of.")
    trace = folder / f"{name}.sqlite"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as scratch:
        export = nsys_export.to_sqlite(source, Path(scratch)) if kind is TraceKind.NSYS_REPORT else source
        copy = Path(scratch) / trace.name
        if copy.exists():  # the export of a report of that name
            copy = copy.with_suffix(".kept")
        scrub.copy(export, copy, ranges.is_known)
        copy.replace(trace)
    return trace
