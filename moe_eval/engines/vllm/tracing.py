"""Kernels of what runs: by torch's profiler where the engine is in this process, else by vLLM's own."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# the same profiler: it sees every thread of this process
from moe_eval.engines.trtllm.tracing import in_process
from moe_eval.errors import EngineError, UsageError

__all__ = ["by_library", "in_process"]


@contextmanager
def by_library(llm: Any, folder: Path | None) -> Iterator[Callable[[Path], None]]:
    """vLLM's profiler in its workers; of several the first one's trace.

    Args:
        folder: where it was configured to write.

    Raises:
        UsageError: it was not configured when the engine was loaded.
        EngineError: it left no trace.
    """
    if folder is None:
        raise UsageError(
            "The kernels of a spawned worker cannot be seen from here; give worker=in_process, or profiler_config="
            '\'{"profiler": "torch", "torch_profiler_dir": FOLDER}\'.'
        )
    before = _written(folder)
    traces: list[Path] = []

    def export(target: Path) -> None:
        if not traces:
            raise EngineError(f"vLLM's profiler left no trace in {folder}.")
        if traces[0].suffix == ".gz" and target.suffix != ".gz":
            with gzip.open(traces[0]) as packed, target.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        else:
            shutil.copyfile(traces[0], target)

    llm.start_profile()
    try:
        yield export
    finally:
        llm.stop_profile()
    traces += sorted(path for path, _ in _written(folder) - before)


def _written(folder: Path) -> set[tuple[Path, int]]:
    """Traces and when they were written: a later one may have the name of an earlier one."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*.json*")} if folder.is_dir() else set()
