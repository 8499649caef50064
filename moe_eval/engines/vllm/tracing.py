"""Traces of vLLM's kernels by its own profiler."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from moe_eval.errors import EngineError, UsageError

_BASE = "baseTimeNanoseconds"


class Profiled(Protocol):
    """What has vLLM's profiler."""

    def profiled(self) -> AbstractContextManager[None]: ...


@contextmanager
def by_library(session: Profiled, folder: Path | None, target: Path) -> Iterator[None]:
    """vLLM's profiler in its workers. The traces of several ranks become one.

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
    with gzip.open(target, "wb") if target.suffix == ".gz" else target.open("wb") as content:
        content.write(merged(traces))


def merged(traces: Sequence[Path]) -> bytes:
    """One Chrome trace of all ranks, in order. Processes of several have a label, as SGLang merges: `[rank 0] 4711`.

    Kineto subtracts the same base from the times of all processes since torch 2.3. A file with another one is moved.

    Raises:
        EngineError: a file is no Chrome trace.
    """
    packed = [gzip.decompress(trace.read_bytes()) if trace.suffix == ".gz" else trace.read_bytes() for trace in traces]
    if len(packed) == 1:
        return packed[0]
    try:
        files = [json.loads(content) for content in packed]
    except ValueError as error:
        raise EngineError(f"vLLM's profiler left no Chrome trace in {traces[0].parent} ({error}).") from None
    first = files[0]
    for rank, file in enumerate(files):
        moved = (file.get(_BASE, 0) - first.get(_BASE, 0)) / 1000
        for event in file["traceEvents"]:
            event["pid"] = f"[rank {rank}] {event.get('pid', '')}"
            if moved and "ts" in event:
                event["ts"] += moved
    events = [event for file in files for event in file["traceEvents"]]
    return json.dumps({**first, "traceEvents": events}).encode()


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
