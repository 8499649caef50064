"""What a capture may have got wrong, and the figures that are withheld for it.

A profiler loses events, slows a run down and, on some stacks, writes durations that no GPU can have. Such a trace still
gives figures, and they look as sound as any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moe_eval.records.kernels import CaptureFault, CaptureWarning, PhaseTime
from moe_eval.traces import dropped_events
from moe_eval.traces.breakdown import Breakdown
from moe_eval.traces.dropped_events import DroppedEvents
from moe_eval.traces.kernel_table import KERNEL, NONE, Ints, Trace, distinct
from moe_eval.traces.medians import median_of
from moe_eval.traces.moe_block import in_moe_block
from moe_eval.traces.roles import NUMBER

# the share of launches, kernels or kernel time that a median over steps bears: below it the figures stay
BORNE = 0.01
# profilers read clocks that tick up to once a microsecond, so ends that differ by less are equal
CLOCK_TICK_NS = 1000
# of the MoE blocks' time. If all of it were expert GEMMs, a ceiling of 2x would be 2.1x, for blocks of half a step
UNCLASSIFIED = 0.05
# of the unprofiled time. A wall ceiling of 2x is seen as 1.83x then
OVERHEAD = 0.10
# of the unprofiled time, by which two runs of a shape differ without a cause
RUNS_DIFFER = 0.02
# of the time in which nothing runs, which the profiler may have made
IDLE_MADE = 0.10

_IDLE = ("idle_ms", "gap_ms", "wall_ceiling")
_WALL = ("span_ms", "wall_ms", *_IDLE)
_BUSY = ("busy_ms", "overlap_ms", "span_ms", *_IDLE, "ceiling")
_CEILINGS = ("ceiling", "wall_ceiling")
_MS = 1e6


def check(
    trace: Trace, parts: Breakdown, unprofiled_ms: Sequence[float] = (), profiled_ms: float | None = None
) -> tuple[dict[str, PhaseTime], tuple[CaptureWarning, ...]]:
    """The phases of a breakdown without the figures that faults of its capture spoil, and the faults.

    Args:
        unprofiled_ms: times of the same run without a profiler, none where they are not known. `profiled_ms`: its time
            with it.
    """
    warnings = (*(_capture(trace, parts) if trace.timed else ()), *_overhead(unprofiled_ms, profiled_ms))
    if not any("busy_ms" in warning.withheld for warning in warnings):
        warnings = (*warnings, *_idle(parts.phases, unprofiled_ms))
    return {name: _without(name, phase, warnings) for name, phase in parts.phases.items()}, warnings


def _without(name: str, phase: PhaseTime, warnings: Sequence[CaptureWarning]) -> PhaseTime:
    withheld = {field for warning in warnings if warning.phase in (None, name) for field in warning.withheld}

    def kept(field: str) -> Any:
        return None if field in withheld else getattr(phase, field)

    return replace(
        phase,
        busy_ms=kept("busy_ms"),
        overlap_ms=kept("overlap_ms"),
        span_ms=kept("span_ms"),
        idle_ms=kept("idle_ms"),
        wall_ms=kept("wall_ms"),
        gap_ms=kept("gap_ms"),
        ceiling=kept("ceiling"),
        wall_ceiling=kept("wall_ceiling"),
        ranks=tuple(replace(rank, busy_ms=None) for rank in phase.ranks) if "busy_ms" in withheld else phase.ranks,
    )


def _capture(trace: Trace, parts: Breakdown) -> Iterator[CaptureWarning]:
    """Faults that the trace shows by itself."""
    streams = _streams(trace)
    dropped = dropped_events.count(trace, streams)
    yield from _graphs(dropped)
    yield from _launches(dropped)
    yield from _too_long(trace, streams)
    yield from _unclassified(trace, parts)


def _streams(trace: Trace) -> list[Ints]:
    """The kernels of every stream, by start."""
    stream, is_kernel = trace.kernels.stream, trace.kernels.kind == KERNEL
    running = [device[is_kernel[device]] for device in trace.kernels.by_device]
    return [rows[stream[rows] == number] for rows in running for number in distinct(stream[rows])]


def _graphs(dropped: DroppedEvents) -> Iterator[CaptureWarning]:
    if dropped.graphs and dropped.kernels < dropped.graphs:  # else the kernels are there and lack their launch
        yield CaptureWarning(
            CaptureFault.GRAPHS_WITHOUT_KERNELS,
            f"{dropped.graphs:,} of {dropped.of_graphs:,} launches of CUDA graphs have no kernels in the trace, so "
            "their time looks idle. Record graphs by node (nsys profile --cuda-graph-trace=node), or run without them.",
            withheld=_BUSY if dropped.graphs > BORNE * dropped.of_graphs else (),
        )


def _launches(dropped: DroppedEvents) -> Iterator[CaptureWarning]:
    parts = []
    if dropped.kernels:
        parts.append(f"{dropped.kernels:,} of {dropped.of_kernels:,} kernels have no launch in the trace")
    if dropped.plain:
        parts.append(f"{dropped.plain:,} of {dropped.of_plain:,} launches of kernels have no kernel in it")
    if parts:
        yield CaptureWarning(
            CaptureFault.LAUNCHES_MISSING,
            f"{', and '.join(parts)}, which the edges of the recording do not explain. The profiler dropped events: "
            "record fewer steps.",
            withheld=_BUSY if dropped.plain > BORNE * dropped.of_plain else (),
        )


def _too_long(trace: Trace, streams: Sequence[Ints]) -> Iterator[CaptureWarning]:
    """Kernels that end after a later one of their stream has ended.

    A stream runs in order. With programmatic dependent launch a kernel starts some microseconds before the one ahead of
    it has ended, and still waits for its results: starts may overlap, ends keep their order. Branches of one graph may
    run side by side under one number of a stream, so there the kernels of a launch are held against later launches.
    """
    kernels = trace.kernels
    count, excess_ns = 0, 0
    for rows in streams:
        end = kernels.end_ns[rows]
        if (np.maximum.accumulate(end) - end).max(initial=0) <= CLOCK_TICK_NS:
            continue
        launch = np.where(kernels.replayed[rows], kernels.correlation[rows], NONE)
        is_last = np.append((launch[1:] != launch[:-1]) | (launch[1:] == NONE), True)
        last = np.flatnonzero(is_last)
        following = last[np.cumsum(is_last) - is_last] + 1
        earliest = np.append(np.minimum.accumulate(end[::-1])[::-1], end.max(initial=0))[following]
        late_ns = end - earliest
        late_ns = late_ns[late_ns > CLOCK_TICK_NS]
        count, excess_ns = count + len(late_ns), excess_ns + int(late_ns.sum())
    total_ns = int(kernels.duration_ns[kernels.kind == KERNEL].sum())
    if excess_ns > BORNE * total_ns:
        yield CaptureWarning(
            CaptureFault.LONGER_THAN_STREAM,
            f"{count:,} of {np.sum(kernels.kind == KERNEL):,} kernels end after later kernels of their own stream, by "
            f"{excess_ns / _MS:.3f} ms in all. A stream runs its kernels in order, so their durations are wrong, also "
            "in the times of categories. Record it again with another version of the profiler.",
            withheld=_BUSY,
        )


def _unclassified(trace: Trace, parts: Breakdown) -> Iterator[CaptureWarning]:
    unknown = parts.roles.category == NUMBER["other"]
    if not unknown.any():
        return
    inside = in_moe_block(trace, parts.roles)
    unknown &= inside
    duration = trace.kernels.duration_ns
    for name in parts.phases:
        rows = np.concatenate([step.rows for step in parts.steps if step.phase == name and step.aside is None])
        unknown_rows = rows[unknown[rows]]
        share = float(duration[unknown_rows].sum() / max(1, duration[rows[inside[rows]]].sum()))
        if share > BORNE:
            times = np.bincount(trace.kernels.name[unknown_rows], duration[unknown_rows])
            longest = trace.kernels.names[int(np.argmax(times))]
            yield CaptureWarning(
                CaptureFault.UNCLASSIFIED_IN_MOE,
                f"{100 * share:.1f} % of the time of the MoE blocks is in kernels of unknown kind, most of it in "
                f"{longest[:80]}. Expert GEMMs may be among them.",
                phase=name,
                withheld=_CEILINGS if share > UNCLASSIFIED else (),
            )


def _overhead(unprofiled_ms: Sequence[float], profiled_ms: float | None) -> Iterator[CaptureWarning]:
    if not unprofiled_ms or profiled_ms is None:
        return
    plain = float(median_of(unprofiled_ms))
    if profiled_ms > (1 + OVERHEAD) * plain:
        yield CaptureWarning(
            CaptureFault.PROFILER_OVERHEAD,
            f"The run takes {profiled_ms:.3f} ms under the profiler and {plain:.3f} ms without it, "
            f"{100 * (profiled_ms / plain - 1):.0f} % more. The times between kernels are not those of a plain run.",
            withheld=_WALL,
        )


def _idle(phases: Mapping[str, PhaseTime], unprofiled_ms: Sequence[float]) -> Iterator[CaptureWarning]:
    """Idle time that the run cannot have without a profiler: its kernels and that time take longer than the run.

    Steps that are set aside do not count, so what is compared is the least that the trace shows.
    """
    if not unprofiled_ms or any(phase.busy_ms is None for phase in phases.values()):
        return

    def total(figure: Callable[[PhaseTime], float]) -> float:
        return sum(phase.steps * figure(phase) for phase in phases.values())

    plain = max(unprofiled_ms)
    busy = total(lambda phase: phase.busy_ms or 0.0)
    idle = total(lambda phase: (phase.idle_ms or 0.0) + (phase.gap_ms or 0.0))
    excess = busy + idle - plain
    if excess > RUNS_DIFFER * plain and excess > IDLE_MADE * idle:
        yield CaptureWarning(
            CaptureFault.PROFILER_IDLE,
            f"Nothing runs for {idle:.3f} ms of the trace. The run without the profiler takes {plain:.3f} ms, which "
            f"leaves at most {max(0.0, plain - busy):.3f} ms beside its kernels.",
            withheld=_WALL,
        )
