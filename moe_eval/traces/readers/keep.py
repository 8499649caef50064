"""Keeps a trace beside a record: what a breakdown needs of it, and nothing that tells of the machine or the user."""

from __future__ import annotations

import tempfile
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.traces import ranges
from moe_eval.traces.readers import files, nsys_export, scrub, torch_profiler


def keep(source: Path, folder: Path, name: str, *, cpu: bool = False) -> Path:
    """Write a trace again without secrets, as FOLDER/NAME.json.gz or NAME.sqlite; one of that name is replaced.

    Of the ranges those are kept that name steps and modules. The source is never changed.

    Args:
        cpu: the rows that count are operators of the CPU.

    Raises:
        UsageError: the source cannot be read, or is a summary, which needs no copy.
    """
    kind = files.kind(source)
    if kind == "torch profiler":
        kept = folder / f"{name}.json.gz"
        torch_profiler.scrub(source, kept, ranges.known, cpu=cpu)
        return kept
    if kind == "nsys csv":
        raise UsageError(f"{source} is a summary; keep the export that it was made of.")
    kept = folder / f"{name}.sqlite"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as scratch:
        export = nsys_export.to_sqlite(source, Path(scratch)) if kind == "nsys report" else source
        made = Path(scratch) / kept.name
        if made.exists():  # the export of a report of that name
            made = made.with_suffix(".kept")
        scrub.copy(export, made, ranges.known)
        made.replace(kept)
    return kept
