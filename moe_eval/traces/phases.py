"""The figures of one phase: its steps by rank, category and kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_eval.records.kernels import CategoryTime, Ceiling, KernelTime, PhaseTime
from moe_eval.traces.collectives import SHOWN_CATEGORIES, TIMED_CATEGORIES
from moe_eval.traces.entries import Entries, Recording, entries_of
from moe_eval.traces.joint_steps import JointStep
from moe_eval.traces.kernel_table import NONE, distinct
from moe_eval.traces.medians import median_of
from moe_eval.traces.rank_times import collectives_of, imbalance, rank_times
from moe_eval.traces.roles import NUMBER

_EXPERT, _OTHER = NUMBER["expert_gemm"], NUMBER["other"]
_MS = 1e6
_UNCLASSIFIED = 15  # kernels without a category that are listed


def ceiling(share: float) -> Ceiling:
    """The ceiling for a share of a step, 0 to 1."""
    share = min(1.0, max(0.0, share))
    return Ceiling(share, 1 / (1 - share) if share < 1 else None, 1 / (1 - share / 2))


def make(recording: Recording, steps: Sequence[JointStep]) -> PhaseTime:
    """One phase of its steps."""
    counted = [step for step in steps if step.aside is None]
    entries = entries_of(recording, counted)
    layers = _moe_layers(recording, entries)
    categories = _categories(entries, layers)
    functions = _functions(recording, entries, categories)
    sums = entries.times.sum(axis=(0, 1))
    total = float(sums.sum())
    phase = PhaseTime(
        steps=len(counted),
        set_aside=dict(Counter(step.aside for step in steps if step.aside)),
        moe_layers=layers,
        categories=categories,
        total_ms=sum(category.ms for category in categories.values()),
        total_launches=sum(category.launches for category in categories.values()),
        busy_ms=None,
        overlap_ms=None,
        span_ms=None,
        idle_ms=None,
        wall_ms=None,
        gap_ms=None,
        ceiling=ceiling(float(sums[_EXPERT]) / total if total else 0.0),
        wall_ceiling=None,
        classified=1 - float(sums[_OTHER]) / total if total else 1.0,
        unclassified=tuple(kernel for kernel in functions if kernel.category == "other")[:_UNCLASSIFIED],
        functions=functions,
        layers_ms=_layers(recording, entries),
    )
    return _with_times(phase, recording, entries, counted) if recording.trace.timed else phase


def _categories(entries: Entries, layers: int | None) -> dict[str, CategoryTime]:
    """Of the categories that ran, medians over the steps of the slowest rank."""
    present = entries.counts.sum(axis=2) > 0
    ran = (entries.counts + entries.times).sum(axis=(0, 1)) > 0
    times = np.take_along_axis(entries.times, entries.slowest[:, None], axis=1)[:, 0]
    launches = median_of(np.take_along_axis(entries.counts, entries.slowest[:, None], axis=1)[:, 0], axis=0)
    fastest = np.where(present[:, :, None], entries.times, np.inf).min(axis=1)
    median_ms, spread_ms = median_of(times, axis=0), median_of(times - fastest, axis=0)
    total, is_one = float(median_ms.sum()), np.count_nonzero(present.sum(axis=0)) == 1
    return {
        name: CategoryTime(
            float(median_ms[at]),
            float(median_ms[at]) / total if total else 0.0,
            float(launches[at]),
            float(launches[at]) / layers if layers else None,
            None if is_one else float(spread_ms[at]),
        )
        for name in SHOWN_CATEGORIES
        if ran[at := TIMED_CATEGORIES.index(name)]
    }


def _functions(recording: Recording, entries: Entries, categories: dict[str, CategoryTime]) -> tuple[KernelTime, ...]:
    """Kernels by name and category, longest first.

    A category's time and launches are divided as its kernels divide them on its slowest ranks in all steps.
    """
    kernels, width = recording.trace.kernels, len(TIMED_CATEGORIES)
    is_slowest = entries.slowest[:, None] == np.arange(entries.times.shape[1])[:, None]
    counts = is_slowest.reshape(-1)[entries.cell * width + entries.category]
    cells = kernels.name[entries.row] * width + entries.category
    keys = np.flatnonzero(np.bincount(cells))
    size = len(kernels.names) * width
    parts = []
    for values in (entries.ns, entries.launches):
        sums = np.bincount(cells, values * counts, size)[keys]
        of_category = np.bincount(keys % width, sums, width)[keys % width]
        parts.append(np.divide(sums, of_category, out=np.zeros(len(keys)), where=of_category > 0).tolist())
    functions = []
    for key, time, launches in zip(keys.tolist(), *parts, strict=True):
        name, category = key // width, TIMED_CATEGORIES[key % width]
        whole = categories[category]
        fused_with = recording.assigned.labels[name].fused_with
        functions.append(
            KernelTime(kernels.names[name], category, fused_with, time * whole.ms, launches * whole.launches)
        )
    return tuple(sorted(functions, key=lambda kernel: (-kernel.ms, kernel.name, kernel.category)))


def _with_times(phase: PhaseTime, recording: Recording, entries: Entries, counted: Sequence[JointStep]) -> PhaseTime:
    """A phase with the times of its steps: those of the rank that works the longest, waiting not counted."""
    span = np.array([step.span_ns for step in counted]) / _MS
    wall = np.array([np.nan if step.wall_ns is None else step.wall_ns / _MS for step in counted])
    times = recording.times
    busy, work, alone = map(entries.per_rank, (times.busy_ns, times.work_ns, times.alone_ns))
    # inputs that began beside the step before may end between the two
    busy = np.minimum(busy, span[:, None])
    work = np.minimum(work, busy)
    alone = np.minimum(alone, work)
    every, longest = np.arange(len(span)), work.argmax(axis=1)
    total = entries.times.sum(axis=2)[every, longest]
    experts, worked = (float(median_of(part[every, longest])) for part in (work - alone, work))
    wall_ms = None if np.isnan(wall).all() else float(median_of(wall[~np.isnan(wall)]))
    ran = busy[every, longest]
    return replace(
        phase,
        busy_ms=float(median_of(ran)),
        overlap_ms=float(median_of(np.maximum(0, total - ran))),
        span_ms=float(median_of(span)),
        idle_ms=float(median_of(np.maximum(0, span - ran))),
        wall_ms=wall_ms,
        gap_ms=None if wall_ms is None else float(median_of(np.maximum(0, wall - span)[~np.isnan(wall)])),
        ceiling=ceiling(experts / worked if worked else 0.0),
        wall_ceiling=ceiling(experts / wall_ms) if wall_ms else None,
        ranks=rank_times(recording, entries, busy),
        collectives=collectives_of(recording, entries),
        expert_imbalance=imbalance(entries),
    )


def _moe_layers(recording: Recording, entries: Entries) -> int | None:
    """MoE blocks of a step. Copies of another step run within a block as well, so expert GEMMs count alone."""
    steps, ranks, _ = entries.times.shape
    experts = np.flatnonzero(entries.category == _EXPERT)
    block = recording.assigned.block[entries.row[experts]]
    size = int(block.max(initial=NONE)) + 1
    pairs = (entries.cell[experts] * size + block)[block != NONE]
    blocks = distinct(pairs[np.flatnonzero(np.diff(pairs, prepend=NONE))])
    counts = np.bincount(blocks // size, minlength=steps * ranks).reshape(steps, ranks)
    return int(median_of(counts.max(axis=1))) or None


def _layers(recording: Recording, entries: Entries) -> dict[int, float]:
    """By layer, the ms per step of the rank that spends the most on it."""
    layer = recording.assigned.layer[entries.row[: entries.rows]]
    inside = layer != NONE
    if not inside.any():
        return {}
    steps, ranks, _ = entries.times.shape
    cell = layer[inside] * ranks + entries.rank[: entries.rows][inside]
    sums = np.bincount(cell, entries.ns[: entries.rows][inside], (int(layer.max()) + 1) * ranks)
    times = sums.reshape(-1, ranks).max(axis=1)
    return {number: float(time) / _MS / steps for number, time in enumerate(times) if time}
