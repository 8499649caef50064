"""Finds the forward steps of a trace, and whether each is prefill or decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_eval.traces import step_boundaries
from moe_eval.traces.kernel_table import KERNEL, NONE, Ints, Trace
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.step_boundaries import IN_LAYER, OUTSIDE, WHOLE

__all__ = ["OUTSIDE", "UNKNOWN", "WHOLE", "Step", "Steps", "find"]

UNKNOWN = "step"

# kernels whose grid grows with the tokens of a step and with nothing else
_PER_TOKEN = [NUMBER[name] for name in ("norm", "rope_kv", "activation", "elementwise", "quant_dequant")]
# one step holds as many times the tokens of another: then it is prefill and the other decode
_PREFILL_RATIO = 4.0
# a step whose kernels take this many times longer or shorter than the phase's median is warming up, or was disturbed
_FAR = 1.5


@dataclass(frozen=True)
class Step:
    """One forward step on one device.

    Attributes:
        phase: `prefill`, `decode` or `mixed`. UNKNOWN where nothing shows it. OUTSIDE before the first step that a
            range names. WHOLE for a trace without steps.
        rows: of the trace's kernels, by start, shape (n,).
        start_ns, end_ns: of its first and last kernel's edges.
        next_ns: when the next step of the device begins, None for the last.
        aside: why it does not count, None where it does.
    """

    phase: str
    rows: Ints
    start_ns: int
    end_ns: int
    next_ns: int | None
    aside: str | None = None


@dataclass(frozen=True)
class Steps:
    """All steps, by device and start, and how they were found (`source`). `devices`: how many ran some."""

    steps: tuple[Step, ...]
    source: str
    devices: int


def find(trace: Trace, roles: Roles, devices: Sequence[Ints]) -> Steps:
    """Cut a trace into forward steps: by an engine's step ranges, else by sampling, else by graph launches.

    Args:
        devices: the rows of every device, by start.
    """
    steps: list[Step] = []
    sources: set[str] = set()
    running = [rows for rows in devices if IN_LAYER[roles.category[rows]].any()] or list(devices)
    for device in running:
        early = _before(trace, roles, device)
        if early:
            steps += [replace(step, phase=OUTSIDE) for step in _steps(trace, device[:early], np.zeros(1, np.int64))]
        rows, cuts, phases, source = step_boundaries.find(trace, roles, device[early:])
        sources.add(source)
        cut = _steps(trace, rows, cuts)
        if phases is None:
            phases = _phases(trace, roles, cut)
        steps += _aside([replace(step, phase=phase) for step, phase in zip(cut, phases, strict=True)], trace, roles)
    return Steps(tuple(steps), " and ".join(sorted(sources)), len(running))


def _before(trace: Trace, roles: Roles, rows: Ints) -> int:
    """How many rows ran first, launched before the recording began, unless they lead to a layer that was as well."""
    launched = trace.kernels.launch_ns[rows] != NONE
    if not trace.timed or not launched.any():
        return 0
    lead = int(np.argmax(launched | IN_LAYER[roles.category[rows]]))
    return lead if launched[lead] else 0


def _steps(trace: Trace, rows: Ints, cuts: Ints) -> list[Step]:
    """A step begins with its first row, or with its first kernel where copies of it ran beside the step before."""
    kernels, ends = trace.kernels, trace.kernels.end_ns
    steps: list[Step] = []
    parts = np.split(rows, cuts[1:])
    starts, computed = [], 0
    for part in parts:
        computing = part[kernels.kind[part] == KERNEL]
        early = len(computing) and kernels.start_ns[part[0]] < computed
        starts.append(int(kernels.start_ns[computing[0] if early else part[0]]))
        computed = max(computed, int(ends[computing].max(initial=0)))
    for at, part in enumerate(parts):
        following = starts[at + 1] if at + 1 < len(parts) else None
        steps.append(Step(UNKNOWN, part, starts[at], int(ends[part].max()), following))
    return steps


def _phases(trace: Trace, roles: Roles, steps: Sequence[Step]) -> list[str]:
    """Prefill or decode without ranges.

    Engines replay a graph that holds attention in decode alone. Where nothing is replayed, a step of many more tokens
    than the smallest one is prefill. Where all steps are alike the phase is unknown.
    """
    kernels = trace.kernels
    attention = [step.rows[roles.category[step.rows] == NUMBER["attention"]] for step in steps]
    replayed = [bool(kernels.replayed[rows].any()) for rows in attention]
    if any(replayed):
        # what was launched before the recording began may have come from a graph as well
        untold = [not (kernels.launch_ns[rows] != NONE).any() for rows in attention]
        return [
            "decode" if graph else UNKNOWN if nothing else "prefill"
            for graph, nothing in zip(replayed, untold, strict=True)
        ]
    sizes = np.array([_size(trace, roles, step) for step in steps])
    smallest = sizes[sizes > 0].min(initial=np.inf)
    if not np.isfinite(smallest) or sizes.max() < _PREFILL_RATIO * smallest:
        return [UNKNOWN] * len(steps)
    return ["prefill" if size >= _PREFILL_RATIO * smallest else "decode" for size in sizes]


def _size(trace: Trace, roles: Roles, step: Step) -> float:
    """What grows with a step's tokens and not with its layers, as the first and the last step may be cut off: the
    mean blocks of kernels that work token by token, else the mean time of kernels. 0 where no layer ran."""
    if not IN_LAYER[roles.category[step.rows]].any():
        return 0.0
    rows = step.rows[np.isin(roles.category[step.rows], _PER_TOKEN)]
    blocks = trace.kernels.blocks[rows]
    return float(blocks.mean() if blocks.any() else trace.kernels.duration_ns[step.rows].mean())


def _aside(steps: Sequence[Step], trace: Trace, roles: Roles) -> list[Step]:
    """Set steps aside that have another number of layer kernels than most of their phase's time, or take far longer."""
    marked = list(steps)
    for phase in {step.phase for step in steps}:
        members = [at for at, step in enumerate(steps) if step.phase == phase]
        counts = {at: int(np.count_nonzero(IN_LAYER[roles.category[steps[at].rows]])) for at in members}
        spent: Counter[int] = Counter()
        for at in members:  # drafts of a speculating engine are more than the steps that verify them, and far shorter
            spent[counts[at]] += int(trace.kernels.duration_ns[steps[at].rows].sum())
        usual = max(spent.items(), key=lambda item: (item[1], item[0]))[0]
        whole = [at for at in members if counts[at] == usual]
        times = {at: int(trace.kernels.duration_ns[steps[at].rows].sum()) for at in whole}
        median = float(np.median(list(times.values())))
        far = [at for at in whole if not median / _FAR <= times[at] <= median * _FAR]
        for at in members:
            if counts[at] != usual:
                marked[at] = replace(steps[at], aside="ragged")
            elif at in far and len(far) <= len(whole) / 4:  # more of them are no exception
                marked[at] = replace(steps[at], aside="far from the others")
    return marked
