"""Where the time of a trace goes, by phase, category and kernel, and the most that a faster expert GEMM could win."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from moe_eval.records.kernels import CategoryTime, Ceiling, KernelTime, PhaseTime, TracedTime
from moe_eval.traces import roles, steps
from moe_eval.traces.kernel_table import NONE, Ints, Kernels, Trace
from moe_eval.traces.observed_precision import ObservedPrecision, observe
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.steps import Step
from moe_eval.traces.taxonomy import CATEGORIES

Floats = npt.NDArray[np.float64]

_EXPERT, _OTHER = NUMBER["expert_gemm"], NUMBER["other"]
_PHASE_ORDER = ("prefill", "mixed", "decode", steps.UNKNOWN, steps.WHOLE, steps.OUTSIDE)
_MS = 1e6
_UNCLASSIFIED = 15  # kernels without a category that are listed
# the fields of a phase that a summary, which has durations alone, leaves empty
_TIMED = ("busy_ms", "overlap_ms", "span_ms", "idle_ms", "wall_ms", "gap_ms", "wall_ceiling")


@dataclass(frozen=True)
class Breakdown:
    """A trace by phases, each with all its kernels.

    `whole`: by category, inside and outside of steps. `roles`, `steps`: what the phases were made of.
    """

    phases: Mapping[str, PhaseTime]
    steps_source: str
    gates_source: str
    devices: int
    rows: int
    whole: Mapping[str, TracedTime]
    observed: ObservedPrecision
    roles: Roles = field(repr=False, compare=False)
    steps: tuple[Step, ...] = field(repr=False, compare=False)


def make(trace: Trace) -> Breakdown:
    """Break a trace down."""
    assigned = roles.assign(trace)
    devices = roles.devices(trace)
    cut = steps.find(trace, assigned, devices)
    busy, alone = np.zeros(len(trace.kernels)), np.zeros(len(trace.kernels))
    if trace.timed:
        is_whole = [step.phase for step in cut.steps] == [steps.WHOLE]
        for rows in [cut.steps[0].rows] if is_whole else devices:
            busy[rows] = _added(trace.kernels, rows)
            others = rows[assigned.category[rows] != _EXPERT]
            alone[others] = _added(trace.kernels, others)
    by_phase: dict[str, list[Step]] = {}
    for step in cut.steps:
        by_phase.setdefault(step.phase, []).append(step)
    phases = sorted(by_phase, key=_PHASE_ORDER.index)
    return Breakdown(
        {name: _phase(by_phase[name], trace, assigned, busy=busy, alone=alone) for name in phases},
        cut.source,
        assigned.gates,
        cut.devices,
        len(trace.kernels),
        whole(trace, assigned),
        observe(trace, assigned),
        assigned,
        cut.steps,
    )


def whole(trace: Trace, assigned: Roles) -> dict[str, TracedTime]:
    """The time of every category that ran, of all rows of a trace, in ms."""
    width = len(CATEGORIES)
    times = np.bincount(assigned.category, trace.kernels.duration_ns, width) / _MS
    counts, total = np.bincount(assigned.category, trace.kernels.count, width), float(times.sum())
    return {
        CATEGORIES[at]: TracedTime(float(times[at]), float(times[at]) / total if total else 0.0, int(counts[at]))
        for at in np.flatnonzero(counts).tolist()
    }


def ceiling(share: float) -> Ceiling:
    """The ceiling for a share of a step, 0 to 1."""
    share = min(1.0, max(0.0, share))
    return Ceiling(share, 1 / (1 - share) if share < 1 else None, 1 / (1 - share / 2))


def _added(kernels: Kernels, rows: Ints) -> Floats:
    """For every row of a device, by start, the nanoseconds that it adds to the union of the intervals before it."""
    start = kernels.start_ns[rows]
    end = start + kernels.duration_ns[rows]
    before = np.append(start[:1], np.maximum.accumulate(end)[:-1])
    added: Floats = np.maximum(0, end - np.maximum(start, before)).astype(np.float64)
    return added


def _phase(phase_steps: Sequence[Step], trace: Trace, assigned: Roles, *, busy: Floats, alone: Floats) -> PhaseTime:
    """One phase. `busy`, `alone`: what `_added` gives of all rows of the trace, and of all but expert GEMMs."""
    counted = [step for step in phase_steps if step.aside is None]
    size = len(counted)
    rows = np.concatenate([step.rows for step in counted])
    owner = np.repeat(np.arange(size), [len(step.rows) for step in counted])
    width = len(CATEGORIES)
    cell = owner * width + assigned.category[rows]
    durations = trace.kernels.duration_ns[rows].astype(np.float64)
    times = np.bincount(cell, durations, size * width).reshape(size, width) / _MS
    counts = np.bincount(cell, trace.kernels.count[rows], size * width).reshape(size, width).astype(np.float64)
    layers = _moe_layers(counted, assigned)
    categories = _categories(times, counts, layers)
    functions = _functions(trace, assigned, rows, owner, size)
    unclassified = tuple(kernel for kernel in functions if kernel.category == CATEGORIES[_OTHER])
    phase = PhaseTime(
        steps=size,
        set_aside=dict(Counter(step.aside for step in phase_steps if step.aside)),
        moe_layers=layers,
        categories=categories,
        total_ms=float(np.median(times, axis=0).sum()),
        total_launches=sum(category.launches for category in categories.values()),
        **dict.fromkeys(_TIMED),
        ceiling=ceiling(float(times[:, _EXPERT].sum() / times.sum()) if times.sum() else 0.0),
        classified=1 - float(times[:, _OTHER].sum() / times.sum()) if times.sum() else 1.0,
        unclassified=unclassified[:_UNCLASSIFIED],
        functions=functions,
        layers_ms=_layers(trace.kernels, assigned, rows, size),
    )
    if not trace.timed:
        return phase
    busy_ms, alone_ms = (np.bincount(owner, column[rows], size) / _MS for column in (busy, alone))
    return _with_times(phase, counted, times.sum(axis=1), busy_ms, alone_ms)


def _categories(times: Floats, counts: Floats, layers: int | None) -> dict[str, CategoryTime]:
    """Medians over the steps of the categories that ran."""
    median_ms, launches = np.median(times, axis=0), np.median(counts, axis=0)
    total = float(median_ms.sum())
    return {
        category: CategoryTime(
            float(median_ms[at]),
            float(median_ms[at]) / total if total else 0.0,
            float(launches[at]),
            float(launches[at]) / layers if layers else None,
        )
        for at, category in enumerate(CATEGORIES)
        if counts[:, at].any()
    }


def _with_times(phase: PhaseTime, counted: Sequence[Step], total: Floats, busy: Floats, alone: Floats) -> PhaseTime:
    """A phase with the times of its steps.

    `total`, `busy` and `alone`, of shape (steps,), are the ms of all kernels, of their union, and of that of all but
    expert GEMMs.
    """
    span = np.array([step.end_ns - step.start_ns for step in counted]) / _MS
    busy = np.minimum(busy, span)  # inputs that began beside the step before may end between the two
    alone = np.minimum(alone, busy)
    wall = np.array([math.nan if step.next_ns is None else (step.next_ns - step.start_ns) / _MS for step in counted])
    experts = float(np.median(busy - alone))
    wall_ms = None if np.isnan(wall).all() else float(np.nanmedian(wall))
    busy_ms = float(np.median(busy))
    return replace(
        phase,
        busy_ms=busy_ms,
        overlap_ms=float(np.median(np.maximum(0, total - busy))),
        span_ms=float(np.median(span)),
        idle_ms=float(np.median(np.maximum(0, span - busy))),
        wall_ms=wall_ms,
        gap_ms=None if wall_ms is None else float(np.nanmedian(np.maximum(0, wall - span))),
        ceiling=ceiling(experts / busy_ms if busy_ms else 0.0),
        wall_ceiling=ceiling(experts / wall_ms) if wall_ms else None,
    )


def _functions(trace: Trace, assigned: Roles, rows: Ints, owner: Ints, size: int) -> tuple[KernelTime, ...]:
    """Kernels by name and category, medians over the steps, longest first. `owner`: which of `size` steps a row is of.

    What has fewer launches than half the steps is missing in most of them, so its medians are 0. The others fill at
    most two cells per row of the trace.
    """
    kernels, width = trace.kernels, len(CATEGORIES)
    keys = kernels.name[rows] * width + assigned.category[rows]
    launches = np.bincount(keys, kernels.count[rows])
    common = np.flatnonzero(2 * launches >= size)
    place = np.full(len(launches), NONE)
    place[common] = np.arange(len(common))
    kept_rows = np.flatnonzero(place[keys] != NONE)
    cell = place[keys[kept_rows]] * size + owner[kept_rows]
    times, counts = np.zeros(len(launches)), np.zeros(len(launches))
    kept = rows[kept_rows]
    for medians, weights in ((times, kernels.duration_ns[kept] / _MS), (counts, kernels.count[kept])):
        cells = np.bincount(cell, weights, len(common) * size)
        medians[common] = np.median(cells.reshape(len(common), size), axis=1)
    functions = [
        KernelTime(
            kernels.names[key // width],
            CATEGORIES[key % width],
            assigned.labels[key // width].fused_with,
            float(times[key]),
            float(counts[key]),
        )
        for key in np.flatnonzero(launches).tolist()
    ]
    return tuple(sorted(functions, key=lambda kernel: (-kernel.ms, kernel.name, kernel.category)))


def _moe_layers(counted: Sequence[Step], assigned: Roles) -> int | None:
    counts: list[int] = []
    for step in counted:
        # copies of another step run within a block as well
        ids = assigned.block[step.rows[assigned.category[step.rows] == _EXPERT]]
        blocks = ids[ids != NONE]
        counts.append(int(np.count_nonzero(np.bincount(blocks - blocks.min()))) if len(blocks) else 0)
    return int(np.median(counts)) or None


def _layers(kernels: Kernels, assigned: Roles, rows: Ints, size: int) -> dict[int, float]:
    in_layer = rows[assigned.layer[rows] != NONE]
    if not len(in_layer):
        return {}
    times = np.bincount(assigned.layer[in_layer], kernels.duration_ns[in_layer].astype(np.float64))
    return {layer: float(time) / _MS / size for layer, time in enumerate(times) if time}
