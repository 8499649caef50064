"""Traces of vLLM's kernels by its own profiler."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from moe_eval.errors import EngineError, UsageError


class Profiled(Protocol):
    """What has vLLM's profiler."""

    def profiled(self) -> AbstractContextManager[None]: ...


@contextmanager
def by_library(session: Profiled, folder: Path | None, target: Path) -> Iterator[None]:
    """vLLM's profiler in its workers. With several workers, the trace is the first one's.

    Args:
        folder: where the profiler was configured to write.
        target: the file of the trace.
    """
    if folder is None:
        raise UsageError(
            "vLLM's profiler is not configured, so a spawned worker cannot be traced. Give worker=in_process, trace by "
            'nsys, or give profiler_config=\'{"profiler": "torch", "torch_profiler_dir": FOLDER}\'.'
        )
    before = _written(folder)
    with session.profiled():
        yield
    traces = sorted(path for path, _ in _written(folder) - before)
    if not traces:
        raise EngineError(f"vLLM's profiler left no trace in {folder}.")
    if traces[0].suffix == ".gz" and target.suffix != ".gz":
        with gzip.open(traces[0]) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    else:
        shutil.copyfile(traces[0], target)


@contextmanager
def captured(session: Profiled, is_configured: bool) -> Iterator[None]:
    """Nsight Systems' capture range, opened by vLLM in all of its workers."""
    if not is_configured:
        raise UsageError(
            "vLLM's profiler is not configured, so its workers open no capture. Give "
            'profiler_config=\'{"profiler": "cuda"}\'.'
        )
    with session.profiled():
        yield


def _written(folder: Path) -> set[tuple[Path, int]]:
    """Traces and when they were written. A later trace may have the name of an earlier one."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*.json*")} if folder.is_dir() else set()
