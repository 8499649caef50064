"""Where the time of a trace goes: per phase, category and function, and what a faster expert GEMM could win at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.traces import phases, roles
from moe_eval.traces.phases import Step
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.seen import Seen, observe
from moe_eval.traces.table import NONE, Ints, Kernels, Trace
from moe_eval.traces.taxonomy import CATEGORIES

_TOP = 15
_EXPERT, _OTHER = NUMBER["expert_gemm"], NUMBER["other"]
_PHASE_ORDER = ("prefill", "mixed", "decode", phases.UNKNOWN, phases.WHOLE, phases.OUTSIDE)
_MS = 1e6


@dataclass(frozen=True)
class Share:
    """A category's part of a step: medians over the steps. `share`: of the sum of all categories' times, 0 to 1."""

    category: str
    ms: float
    share: float
    launches: float
    launches_per_layer: float | None


@dataclass(frozen=True)
class Function:
    """One kernel of a phase, by its name: means over the steps."""

    name: str
    category: str
    fused_with: tuple[str, ...]
    ms: float
    launches: float


@dataclass(frozen=True)
class Ceiling:
    """How many times faster a step could become if its expert GEMMs took no time, or ran twice as fast.

    With f the part of the step in which nothing but expert GEMMs run: 1 / (1 - f) and 1 / (1 - f + f / s) (Amdahl's
    law). None where f is 1.

    Attributes:
        share: f. `free`: of 1 / (1 - f). `twice`: for s = 2.
    """

    share: float
    free: float | None
    twice: float

    def at(self, speed_up: float) -> float:
        """For expert GEMMs that are faster by this factor."""
        return 1 / (1 - self.share + self.share / speed_up)


@dataclass(frozen=True)
class Phase:
    """One phase of a trace; times in ms, medians over the steps of all devices that are not set aside.

    Attributes:
        kernel_ms: the categories' times together. `busy_ms`: with at least one kernel running (the union of their
            intervals). `overlap_ms`: more than one. `span_ms`: from the first kernel to the end of the last.
            `idle_ms`: of the span, nothing running. `wall_ms`: from a step's begin to the next one's; `gap_ms`: of it,
            between the two. None where the trace has no times or no next step.
        aside: reasons and counts of steps that were set aside.
        classified: the share of kernel time that has a category other than `other`; `unclassified`: the names of the
            rest that take the most.
        layers: by layer of the model, its kernels' ms per step, where ranges name layers.
        moe_layers: MoE blocks of a step as the order of launches tells.
    """

    name: str
    steps: int
    aside: dict[str, int]
    shares: tuple[Share, ...]
    functions: tuple[Function, ...]
    kernel_ms: float
    busy_ms: float | None
    overlap_ms: float | None
    span_ms: float | None
    idle_ms: float | None
    wall_ms: float | None
    gap_ms: float | None
    classified: float
    unclassified: tuple[Function, ...]
    busy_ceiling: Ceiling
    wall_ceiling: Ceiling | None
    moe_layers: int | None
    layers: dict[int, float]

    def share(self, category: str) -> Share:
        """A category's part; an empty one where none of it ran."""
        found = next((each for each in self.shares if each.category == category), None)
        return found or Share(category, 0.0, 0.0, 0.0, None)

    @property
    def top(self) -> tuple[Function, ...]:
        """The functions that take the most."""
        return self.functions[:_TOP]


@dataclass(frozen=True)
class Breakdown:
    """A trace by phases, how they were found, and what the experts ran in."""

    phases: tuple[Phase, ...]
    found_by: str
    gates: str
    devices: int
    rows: int
    total_ns: int
    seen: Seen

    def phase(self, name: str) -> Phase | None:
        return next((each for each in self.phases if each.name == name), None)


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
        unclassified=unclassified[:_TOP],
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


def ceiling(share: float) -> Ceiling:
    """The ceiling for a share of a step, 0 to 1."""
    share = min(1.0, max(0.0, share))
    return Ceiling(share, 1 / (1 - share) if share < 1 else None, 1 / (1 - share / 2))


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
