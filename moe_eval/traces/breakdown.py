"""Where the time of a trace goes, by phase, category and kernel, and the most that a faster expert GEMM could win."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import numpy as np

from moe_eval.frozen import frozen
from moe_eval.records.kernels import PhaseTime, TracedTime
from moe_eval.traces import collectives, joint_steps, lateness, phases, roles, row_times, steps
from moe_eval.traces.collectives import SHOWN_CATEGORIES, TIMED_CATEGORIES, WAIT
from moe_eval.traces.entries import Recording
from moe_eval.traces.joint_steps import JointStep
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.observed_precision import ObservedPrecision, observe
from moe_eval.traces.roles import Roles
from moe_eval.traces.row_times import RowTimes

_MS = 1e6
_PHASE_ORDER = ("prefill", "mixed", "decode", steps.UNKNOWN, steps.WHOLE, steps.OUTSIDE)


@frozen
class Breakdown:
    """A trace by phases, each with all its kernels.

    `whole`: by category, inside and outside of steps, on all ranks. `transfer_ms`: all ranks are in the same
    collective, each counted once. None for one rank. `roles`, `steps`: what the phases were made of.
    """

    phases: Mapping[str, PhaseTime]
    steps_source: str
    gates_source: str
    devices: int
    rows: int
    whole: Mapping[str, TracedTime]
    transfer_ms: float | None
    observed: ObservedPrecision
    roles: Roles = field(repr=False, compare=False)
    steps: tuple[JointStep, ...] = field(repr=False, compare=False)


def make(trace: Trace) -> Breakdown:
    """Break a trace down. Every device of a process is a rank, and a step is one event on all ranks."""
    assigned = roles.assign(trace)
    # those that run layers have the first numbers: a process that only copies is no rank
    ranks = sorted(trace.kernels.by_device, key=lambda rows: not assigned.in_layer[rows].any())
    kernels = trace.kernels
    rank = np.zeros(len(kernels), np.int64)
    for number, rows in enumerate(ranks):
        rank[rows] = number
    matches = collectives.match(trace, assigned, ranks)
    times = row_times.find(trace, assigned, ranks, matches)
    late = lateness.find(matches, ranks, times, kernels.start_ns)
    recording = Recording(trace, assigned, tuple(ranks), rank, matches, times, late)
    cut = steps.find(trace, assigned, ranks)
    worked = kernels.duration_ns - times.wait_ns
    joint = joint_steps.set_aside(joint_steps.join(cut.steps, rank, matches), assigned, rank, worked)
    by_phase: dict[str, list[JointStep]] = {}
    for step in joint:
        by_phase.setdefault(step.phase, []).append(step)
    return Breakdown(
        {name: phases.make(recording, by_phase[name]) for name in sorted(by_phase, key=_PHASE_ORDER.index)},
        cut.source,
        assigned.gates,
        cut.devices,
        len(kernels),
        whole(trace, times),
        float((matches.end_ns - matches.begin_ns).sum()) / _MS if len(ranks) > 1 else None,
        observe(trace, assigned),
        assigned,
        tuple(joint),
    )


def whole(trace: Trace, times: RowTimes) -> dict[str, TracedTime]:
    """The time of every category that ran, of all rows of a trace, in ms."""
    width = len(TIMED_CATEGORIES)
    sums = np.bincount(times.category, trace.kernels.duration_ns - times.wait_ns, width) / _MS
    sums[WAIT] += times.wait_ns.sum() / _MS
    counts, total = np.bincount(times.category, trace.kernels.count, width), float(sums.sum())
    return {
        name: TracedTime(float(sums[at]), float(sums[at]) / total if total else 0.0, int(counts[at]))
        for name in SHOWN_CATEGORIES
        if counts[at := TIMED_CATEGORIES.index(name)] or sums[at]
    }
