"""Where the time of a trace goes: per phase, category and function, and what a faster expert GEMM could win at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.traces import phases, roles
from moe_eval.traces.figures import TOP, Breakdown, Function, Phase, Share, ceiling
from moe_eval.traces.kernel_table import NONE, Ints, Kernels, Trace
from moe_eval.traces.phases import Step
from moe_eval.traces.precision_seen import observe
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.taxonomy import CATEGORIES

_EXPERT, _OTHER = NUMBER["expert_gemm"], NUMBER["other"]
_PHASE_ORDER = ("prefill", "mixed", "decode", phases.UNKNOWN, phases.WHOLE, phases.OUTSIDE)
_MS = 1e6


def make(trace: Trace) -> Breakdown:
    """Break a trace down."""
    found = roles.assign(trace)
    devices = roles.devices(trace)
    steps = phases.find(trace, found, devices)
    busy, alone = np.zeros(len(trace.kernels)), np.zeros(len(trace.kernels))
    if trace.timed:
        for rows in devices:
            busy[rows] = _new(trace.kernels, rows)
            others = rows[found.category[rows] != _EXPERT]
            alone[others] = _new(trace.kernels, others)
    by_phase: dict[str, list[Step]] = {}
    for step in steps.steps:
        by_phase.setdefault(step.phase, []).append(step)
    return Breakdown(
        tuple(
            _phase(name, by_phase[name], trace, found, busy=busy, alone=alone)
            for name in sorted(by_phase, key=_PHASE_ORDER.index)
        ),
        steps.found_by,
        found.gates,
        steps.devices,
        len(trace.kernels),
        int(trace.kernels.duration_ns.sum()),
        observe(trace, found),
    )


def _new(kernels: Kernels, rows: Ints) -> npt.NDArray[np.float64]:
    """For every row of a device, by start, the nanoseconds that it adds to the union of the intervals before it."""
    start = kernels.start_ns[rows]
    end = start + kernels.duration_ns[rows]
    before = np.maximum.accumulate(end)
    before = np.concatenate([start[:1], before[:-1]]) if len(rows) else before
    added: npt.NDArray[np.float64] = np.maximum(0, end - np.maximum(start, before)).astype(np.float64)
    return added


def _phase(
    name: str,
    steps: Sequence[Step],
    trace: Trace,
    found: Roles,
    *,
    busy: npt.NDArray[np.float64],
    alone: npt.NDArray[np.float64],
) -> Phase:
    counted = [step for step in steps if step.aside is None]
    size, width = len(counted), len(CATEGORIES)
    rows = np.concatenate([step.rows for step in counted])
    owner = np.repeat(np.arange(size), [len(step.rows) for step in counted])
    kernels = trace.kernels
    cell = owner * width + found.category[rows]
    durations = kernels.duration_ns[rows].astype(np.float64)
    times = np.bincount(cell, durations, size * width).reshape(size, width) / _MS
    counts = np.bincount(cell, minlength=size * width).reshape(size, width)
    median_ms, launches = np.median(times, axis=0), np.median(counts, axis=0)
    total = float(median_ms.sum())
    layers = _moe_layers(counted, found)
    shares = [
        Share(
            CATEGORIES[at],
            float(median_ms[at]),
            float(median_ms[at]) / total if total else 0.0,
            float(launches[at]),
            float(launches[at]) / layers if layers else None,
        )
        for at in range(width)
        if counts[:, at].any()
    ]
    functions = _functions(trace, found, rows, size)
    unclassified = tuple(each for each in functions if each.category == CATEGORIES[_OTHER])
    all_ms = float(durations.sum()) / _MS / size
    per_step = [np.bincount(owner, each[rows], size) / _MS for each in (busy, alone)]
    return Phase(
        name=name,
        steps=size,
        aside={reason: sum(step.aside == reason for step in steps) for reason in {s.aside for s in steps if s.aside}},
        shares=tuple(shares),
        functions=functions,
        kernel_ms=total,
        classified=1 - sum(each.ms for each in unclassified) / all_ms if all_ms else 1.0,
        unclassified=unclassified[:TOP],
        moe_layers=layers,
        layers=_layers(kernels, found, rows, size),
        **(_times(counted, times, *per_step) if trace.timed else _untimed(times)),
    )


def _times(
    steps: Sequence[Step],
    times: npt.NDArray[np.float64],
    busy: npt.NDArray[np.float64],
    alone: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """The times of a phase that are no category's, and its ceilings.

    Args:
        times: ms by step and category, shape (steps, categories).
        busy, alone: ms by step of the union of all kernels, and of all but expert GEMMs, shape (steps,).
    """
    span = np.array([step.end_ns - step.start_ns for step in steps]) / _MS
    busy = np.minimum(busy, span)  # inputs that began beside the step before may end between the two
    alone = np.minimum(alone, busy)
    wall = np.array([math.nan if each.next_ns is None else (each.next_ns - each.start_ns) / _MS for each in steps])
    experts = float(np.median(busy - alone))
    wall_ms = None if np.isnan(wall).all() else float(np.nanmedian(wall))
    busy_ms = float(np.median(busy))
    return {
        "busy_ms": busy_ms,
        "overlap_ms": float(np.median(np.maximum(0, times.sum(axis=1) - busy))),
        "span_ms": float(np.median(span)),
        "idle_ms": float(np.median(np.maximum(0, span - busy))),
        "wall_ms": wall_ms,
        "gap_ms": None if wall_ms is None else float(np.nanmedian(np.maximum(0, wall - span))),
        "busy_ceiling": ceiling(experts / busy_ms if busy_ms else 0.0),
        "wall_ceiling": ceiling(experts / wall_ms) if wall_ms else None,
    }


def _untimed(times: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The same of a summary, which has durations alone."""
    share = float(times[:, _EXPERT].sum() / times.sum()) if times.sum() else 0.0
    nothing = dict.fromkeys(("busy_ms", "overlap_ms", "span_ms", "idle_ms", "wall_ms", "gap_ms"))
    return {**nothing, "busy_ceiling": ceiling(share), "wall_ceiling": None}


def _functions(trace: Trace, found: Roles, rows: Ints, steps: int) -> tuple[Function, ...]:
    """Kernels by name and category, those that take the most first."""
    kernels, width = trace.kernels, len(CATEGORIES)
    cells = kernels.name[rows] * width + found.category[rows]
    counts = np.bincount(cells)
    keys = np.flatnonzero(counts)
    times, counts = np.bincount(cells, kernels.duration_ns[rows])[keys], counts[keys]
    functions = [
        Function(
            kernels.names[key // width],
            CATEGORIES[key % width],
            found.labels[key // width].fused_with,
            float(time) / _MS / steps,
            int(count) / steps,
        )
        for key, time, count in zip(keys.tolist(), times.tolist(), counts.tolist(), strict=True)
    ]
    return tuple(sorted(functions, key=lambda each: (-each.ms, each.name, each.category)))


def _moe_layers(steps: Sequence[Step], found: Roles) -> int | None:
    counts: list[int] = []
    for rows in (step.rows for step in steps):
        ids = found.block[rows[found.category[rows] == _EXPERT]]  # copies of another step run within a block as well
        known = ids[ids != NONE]  # numbered in the order of rows
        counts.append(int(np.count_nonzero(np.diff(known))) + 1 if len(known) else 0)
    return int(np.median(counts)) or None


def _layers(kernels: Kernels, found: Roles, rows: Ints, steps: int) -> dict[int, float]:
    known = rows[found.layer[rows] != NONE]
    times = np.bincount(found.layer[known], kernels.duration_ns[known].astype(np.float64)) if len(known) else ()
    return {layer: float(time) / _MS / steps for layer, time in enumerate(times) if time}
