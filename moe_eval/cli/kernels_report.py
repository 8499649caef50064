"""Reads one or two traces for `moe-eval kernels`: their records, their difference, and what is printed of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from moe_eval.comparison import kernels
from moe_eval.comparison.kernels import KernelsReport
from moe_eval.evaluators import kernels_record
from moe_eval.report import kernels_table
from moe_eval.traces.readers import files


def make(
    paths: Sequence[Path], labels: Sequence[str | None], tpot_ms: Sequence[float] | None
) -> tuple[KernelsReport, list[RenderableType]]:
    """Break traces down, and compare them where there are two, the first being the reference.

    Args:
        labels: the precision that each is meant to run, None where nobody named one.
        tpot_ms: of both, measured without the profiler.

    Returns:
        The report, and its paragraphs.

    Raises:
        UsageError: a file is no trace.
    """
    records = [
        kernels_record.make(path.name, files.read(path), label) for path, label in zip(paths, labels, strict=True)
    ]
    short = tuple(map(kernels_record.shortened, records))
    parts = [kernels_table.trace(record) for record in short]
    if len(records) < 2:
        return KernelsReport(short), parts
    before, after = records
    names = _names(paths, labels)
    measured = {"decode": tpot_ms[0] / tpot_ms[1]} if tpot_ms else {}
    changes = kernels.changes(before, after, names, measured)
    if changes:
        parts.append(kernels_table.difference(changes, names))
    else:
        parts.append("The traces have no phase in common, so there is no difference to show.")
    if tpot_ms and "decode" not in changes:
        parts.append("--tpot_ms is not used, as decode was not found in both traces.")
    return KernelsReport(short, changes), parts


def _names(paths: Sequence[Path], labels: Sequence[str | None]) -> tuple[str, str]:
    before, after = (label or path.name for path, label in zip(paths, labels, strict=True))
    return (before, after) if before != after else (f"{before} (1)", f"{after} (2)")
