"""The kernels evaluator: one short run of a loaded arm under a profiler, and where its time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from moe_eval.data.workload import Shape
from moe_eval.engines.base import Engine, TokenIds
from moe_eval.errors import EngineError
from moe_eval.evaluators import kernels_record, latency
from moe_eval.frozen import frozen
from moe_eval.machine.nvml import Nvml
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import EngineFacts
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.readers import files

WARM_UPS, UNPROFILED = 2, 5


@frozen
class CapturedRun:
    """One run of a shape that Nsight Systems recorded. Its report is whole when the process has ended.

    Attributes:
        label: the precision that the arm is meant to run.
        unprofiled_ms: times of the same run while nothing was recorded.
        profiled_ms: the time of the run that was.
    """

    label: str | None
    unprofiled_ms: tuple[float, ...]
    profiled_ms: float


def capture(engine: Engine, prompts: Sequence[TokenIds], shape: Shape) -> CapturedRun:
    """Run a shape in a capture of Nsight Systems, which this process runs under.

    Raises:
        UsageError: the engine's workers open no capture the way it is loaded.
    """
    latency.check(engine, shape)
    clock = latency.Clock(engine, Nvml.open(()))
    plain_ms = [1000 * clock.time(prompts, shape.output_len)[0]["host"] for _ in range(WARM_UPS + UNPROFILED)]
    latency.mark_traced(engine)
    with engine.capture(f"moe_eval {engine.facts.precision} {shape.name}"):
        profiled = clock.time(prompts, shape.output_len)[0]["host"]
    return CapturedRun(engine.facts.precision, tuple(plain_ms[WARM_UPS:]), 1000 * profiled)


def of_export(export: Path, run: CapturedRun, shape: Shape, folder: Path, name: str) -> KernelsRecord:
    """Break the export of a capture down, and keep it in `folder` under that name, without secrets.

    Raises:
        UsageError: it holds nothing that can be read.
    """
    trace = files.read(export)
    file = files.keep(export, folder, name)
    record = kernels_record.make(
        file.name, trace, run.label, unprofiled_ms=run.unprofiled_ms, profiled_ms=run.profiled_ms
    )
    return replace(kernels_record.shortened(record), shape=shape.name)


def measure(engine: Engine, prompts: Sequence[TokenIds], shape: Shape, folder: Path, name: str) -> KernelsRecord:
    """Trace one run of a shape, break it down, and keep the trace in `folder` under that name.

    The same run is timed without the profiler right before, so that the record has the profiler's overhead. The record
    lacks the arm and its origin, which the caller fills in.

    Raises:
        UsageError: the engine cannot be traced the way it is loaded.
        EngineError: the trace holds nothing that can be read.
    """
    latency.check(engine, shape)
    latency.refuse_profiler()
    clock = latency.Clock(engine, Nvml.open(()))
    for _ in range(WARM_UPS):
        clock.time(prompts, shape.output_len)
    plain = [clock.time(prompts, shape.output_len)[0]["host"] for _ in range(UNPROFILED)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as scratch:
        raw = Path(scratch) / "trace.json"
        latency.mark_traced(engine)
        with engine.trace(raw):
            profiled = clock.time(prompts, shape.output_len)[0]["host"]
        plain_ms = [1000 * seconds for seconds in plain]
        record = of_trace(raw, engine.facts, folder, name, unprofiled_ms=plain_ms, profiled_ms=1000 * profiled)
    return replace(record, shape=shape.name)


def of_trace(
    raw: Path,
    facts: EngineFacts,
    folder: Path,
    name: str,
    *,
    unprofiled_ms: Sequence[float] = (),
    profiled_ms: float | None = None,
    remark: Callable[[Trace], Sequence[str]] = lambda _: (),
) -> KernelsRecord:
    """Break a trace of torch's profiler down, and keep it in `folder` under that name, without secrets.

    Args:
        remark: further notes on it.

    Raises:
        EngineError: there is none, or it holds nothing that can be read.
    """
    if not raw.is_file():
        raise EngineError(f"{facts.name} left no trace.")
    cpu = facts.device == "cpu"
    trace = files.read(raw, cpu=cpu)
    file = files.keep(raw, folder, name, cpu=cpu)
    label = None if facts.emulated else facts.precision
    record = kernels_record.make(file.name, trace, label, unprofiled_ms=unprofiled_ms, profiled_ms=profiled_ms)
    return kernels_record.shortened(replace(record, notes=(*record.notes, *remark(trace))))
