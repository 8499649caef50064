"""A short trace of a server in steady state, beside the requests in its steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval.engines.serving import Served
from moe_eval.errors import EngineError
from moe_eval.evaluators import kernels, load_generator
from moe_eval.evaluators.load_generator import Drive
from moe_eval.records.kernels import KernelsRecord
from moe_eval.traces import ranges
from moe_eval.traces.kernel_table import Ranges, Trace

CAPTURED_SECONDS = 0.5
_WARM_UP_ROUNDS = 3  # requests of a user: the later ones are read between others' tokens
_BEGIN_SECONDS, _LOOK_SECONDS = 120.0, 0.05


def measure(
    served: Served, drive: Drive, folder: Path, tokenizer: Any, *, settle_s: float, trace_folder: Path, name: str
) -> KernelsRecord:
    """Trace a server while it is driven, and break the trace down as any other.

    The generator pauses between a warm-up and what it measures, so the server is warmed up by a run of its own: kernels
    that are compiled at their first call are none of the trace.

    Args:
        folder: of what the generator writes.
        settle_s: seconds from the first request on after which users are out of step with each other.
        trace_folder, name: where the trace stays.

    Raises:
        EngineError: nothing ran, the trace holds nothing that can be read, or the generator failed.
    """
    drive = replace(drive, count=drive.warm_up + drive.count, warm_up=0)
    warm_up = replace(drive, count=min(drive.count, _WARM_UP_ROUNDS * (drive.point.concurrency or 1)))
    if (problem := load_generator.run(warm_up, folder, tokenizer)) is not None:
        raise EngineError(problem)
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(dir=trace_folder, prefix=".trace-") as scratch:
        driven = pool.submit(load_generator.run, drive, folder, tokenizer)
        _await(served, driven)
        time.sleep(settle_s)
        if driven.done():
            raise EngineError(f"The load {drive.point.place} ended before it was traced. Give more --num_requests.")
        raw = Path(scratch) / "trace.json"
        with served.profiled(raw):
            sizes = _watch(served.running, CAPTURED_SECONDS)
        problem = driven.result()
        served.check()
        if problem is not None:
            raise EngineError(problem)
        remark = partial(_steps, sizes=sizes)
        return kernels.of_trace(raw, served.facts, trace_folder, name, remark=remark)


def _await(served: Served, driven: Future[str | None]) -> None:
    """Wait until requests run, by the server's own count."""
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


def _steps(trace: Trace, sizes: Sequence[float]) -> list[str]:
    """How many requests the traced steps had: as the engine names them, else by the server's own count (`sizes`)."""
    steps = ranges.outermost(trace.ranges.take(np.isin(trace.ranges.name, _named(trace.ranges))))
    texts = [trace.ranges.names[name] for name in steps.name[steps.thread == steps.thread[:1]]]  # of one rank
    by_phase: dict[str, list[int]] = defaultdict(list)
    for text in texts:
        by_phase[ranges.step(text) or ""].append(ranges.requests(text) or 0)
    if by_phase:
        parts = [
            f"{len(counts)} {phase} step{'s' * (len(counts) != 1)} of {_spread(counts)}"
            for phase, counts in sorted(by_phase.items())
        ]
        return [f"Requests in steps, as the engine names them: {', '.join(parts)}."]
    if not sizes:
        return ["The server does not tell how many requests were in its steps."]
    return [f"Requests in steps, by the server's own count while it was traced: {_spread(sizes)}."]


def _named(steps: Ranges) -> list[int]:
    """The names that tell how many requests a step has."""
    return [at for at, text in enumerate(steps.names) if ranges.requests(text)]


def _spread(counts: Sequence[float]) -> str:
    low, high = min(counts), max(counts)
    return f"{high:g}" if low == high else f"{low:g} to {high:g} ({statistics.fmean(counts):.1f} in the mean)"
