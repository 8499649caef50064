"""Reads a trace of any kind: its content decides which reader it is handed to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.readers import nsys, nsys_export, nsys_stats, sources, torch_profiler
from moe_eval.traces.readers.sources import TraceKind


def read(path: Path, *, cpu: bool = False) -> Trace:
    """Read a trace of any kind.

    Args:
        cpu: operators of the CPU instead of kernels. Only a trace of torch's profiler has them.

    Raises:
        UsageError: it cannot be read, or holds no such rows.
    """
    kind = sources.kind(path)
    if kind is TraceKind.TORCH_PROFILER:
        return torch_profiler.read(path, cpu=cpu)
    if cpu:
        raise UsageError(f"{path} is of Nsight Systems and has no operators of the CPU. Read its kernels instead.")
    if kind is TraceKind.NSYS_CSV:
        return nsys_stats.read(path)
    if kind is TraceKind.NSYS_SQLITE:
        return nsys.read(path)
    with tempfile.TemporaryDirectory(prefix="moe-eval-") as folder:
        return nsys.read(nsys_export.to_sqlite(path, Path(folder)))
