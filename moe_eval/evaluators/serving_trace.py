"""A short trace of a server in steady state, beside the requests in its steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_eval.engines.serving import Served
from moe_eval.errors import EngineError
from moe_eval.evaluators import kernels, load_generator
from moe_eval.evaluators.load_generator import Drive
from moe_eval.records.kernels import KernelsRecord

CAPTURED_SECONDS = 0.5
_BEGIN_SECONDS, _LOOK_SECONDS = 120.0, 0.05


def measure(
    served: Served, drive: Drive, folder: Path, tokenizer: Any, *, settle_s: float, trace_folder: Path, name: str
) -> KernelsRecord:
    """Trace a server while it is driven, and break the trace down as any other.

    Args:
        folder: of what the generator writes.
        settle_s: seconds from the first request on after which users are out of step with each other.
        trace_folder, name: where the trace stays.

    Raises:
        EngineError: nothing ran, the trace holds nothing that can be read, or the generator failed.
    """
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(dir=trace_folder, prefix=".trace-") as scratch:
        driven = pool.submit(load_generator.run, drive, folder, tokenizer)
        _await(served, driven)
        time.sleep(settle_s)
        if driven.done():
            raise EngineError(f"{drive.point.place} the load ended before it was traced. Give more --num_requests.")
        raw = Path(scratch) / "trace.json"
        with served.profiled(raw):
            sizes = _watch(served.running, CAPTURED_SECONDS)
        problem = driven.result()
        served.check()
        if problem is not None:
            raise EngineError(problem)
        record = kernels.of_trace(raw, served.facts, trace_folder, name)
    return replace(record, notes=(*record.notes, _steps(sizes)))


def _await(served: Served, driven: Future[str | None]) -> None:
    """Wait until requests run. A server that does not tell is taken to need as long as the generator starts."""
    limit = time.monotonic() + _BEGIN_SECONDS
    while not driven.done():
        running = served.running()
        if running:
            return
        if time.monotonic() > limit:
            raise EngineError(f"No request ran within {_BEGIN_SECONDS:g} s. Read the output of the load generator.")
        time.sleep(_LOOK_SECONDS)


def _watch(running: Callable[[], float | None], seconds: float) -> list[float]:
    """The requests in a step, over and over."""
    sizes: list[float] = []
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if (size := running()) is not None:
            sizes.append(size)
        time.sleep(_LOOK_SECONDS)
    return sizes


def _steps(sizes: list[float]) -> str:
    if not sizes:
        return "The server does not tell how many requests were in its steps."
    return (
        f"Steps had {statistics.fmean(sizes):.1f} requests in the mean, {min(sizes):g} to {max(sizes):g}, by the "
        "server's own count while it was traced."
    )
