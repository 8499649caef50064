"""Finds the forward steps of a trace, where each begins, and whether it is prefill or decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_eval.frozen import frozen
from moe_eval.traces import ranges, training
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, Ints, Trace, distinct
from moe_eval.traces.medians import median_of
from moe_eval.traces.roles import NUMBER, Roles

WHOLE, OUTSIDE, UNKNOWN = "whole trace", "outside steps", "step"
_NOT_FOUND = "no steps were found"
_START = np.zeros(1, np.int64)  # a single step
# a device's rows by step, where steps begin, their phases (None where kernels have to tell), and the source of all this
Boundaries = tuple[Ints, Ints, Sequence[str | None], str]
_UPLOAD = ("HtoD", "Host-to-Device", "HostToDevice")

# kernels whose grid grows with the tokens of a step and with nothing else
_PER_TOKEN = [NUMBER[name] for name in ("norm", "rope_kv", "activation", "elementwise", "quant_dequant")]
# one step holds as many times the tokens of another: then it is prefill and the other decode
_PREFILL_RATIO = 4.0


@frozen
class Step:
    """One forward step on one device.

    Attributes:
        phase: `prefill`, `decode` or `mixed`. UNKNOWN where nothing shows it. OUTSIDE before the first step that a
            range names. WHOLE for a trace without steps, of whose devices this is one step.
        rows: of the trace's kernels, by start, shape (n,).
        start_ns, end_ns: of its first and last kernel's edges.
        next_ns: when the next step of the device begins, None for the last.
    """

    phase: str
    rows: Ints
    start_ns: int
    end_ns: int
    next_ns: int | None


@frozen
class Steps:
    """All steps, by device and start, and how they were found (`source`). `devices`: how many ran some."""

    steps: tuple[Step, ...]
    source: str
    devices: int


def find(trace: Trace, roles: Roles, devices: Sequence[Ints]) -> Steps:
    """Cut a trace into forward steps: by an engine's step ranges, else by sampling, else by graph launches.

    Where no device has steps, all rows of the trace are one.

    Args:
        devices: the rows of every device, by start.
    """
    steps: list[Step] = []
    sources: set[str] = set()
    running = [rows for rows in devices if roles.in_layer[rows].any()] or list(devices)
    for device in running:
        early = _before(trace, roles, device)
        rows, cuts, phases, source = _boundaries(trace, roles, device[early:])
        sources.add(source)
        if phases == [WHOLE]:
            steps += [replace(step, phase=WHOLE) for step in _steps(trace, device, cuts)]
            continue
        if early:
            steps += [replace(step, phase=OUTSIDE) for step in _steps(trace, device[:early], _START)]
        cut = _steps(trace, rows, cuts)
        unnamed = iter(_phases(trace, roles, [step for step, phase in zip(cut, phases, strict=True) if phase is None]))
        steps += [
            Step(phase or next(unnamed), step.rows, step.start_ns, step.end_ns, step.next_ns)
            for step, phase in zip(cut, phases, strict=True)
        ]
    source = " and ".join(sorted(sources))
    if steps and all(step.phase == WHOLE for step in steps):
        (whole,) = _steps(trace, np.arange(len(trace.kernels)), _START)
        return Steps((replace(whole, phase=WHOLE),), source, len(devices))
    outside = [replace(step, phase=OUTSIDE) if step.phase == WHOLE else step for step in steps]
    return Steps(tuple(outside), source, len(running))


def _before(trace: Trace, roles: Roles, rows: Ints) -> int:
    """How many rows ran first, launched before the recording began, unless they lead to a layer that was as well."""
    launched = trace.kernels.launch_ns[rows] != NONE
    if not trace.timed or not launched.any():
        return 0
    lead = int(np.argmax(launched | roles.in_layer[rows]))
    return lead if launched[lead] else 0


def _steps(trace: Trace, rows: Ints, cuts: Ints) -> list[Step]:
    """A step begins with its first row, or with its first kernel where copies of it ran beside the step before."""
    start, end, computes = trace.kernels.start_ns[rows], trace.kernels.end_ns[rows], trace.kernels.kind[rows] == KERNEL
    computed = np.maximum.accumulate(np.maximum.reduceat(np.where(computes, end, 0), cuts))  # until a step's end
    kernel = np.minimum.reduceat(np.where(computes, np.arange(len(rows)), len(rows)), cuts)  # the first one
    is_early = (kernel < np.append(cuts[1:], len(rows))) & (start[cuts] < np.append(0, computed[:-1]))
    begins = start[np.where(is_early, kernel, cuts)].tolist()
    ends = np.maximum.reduceat(end, cuts).tolist()
    parts = zip(np.split(rows, cuts[1:]), begins, ends, [*begins[1:], None], strict=True)
    return [Step(UNKNOWN, *part) for part in parts]


def _phases(trace: Trace, roles: Roles, steps: Sequence[Step]) -> list[str]:
    """Prefill or decode without ranges.

    Engines replay a graph that holds attention in decode alone. Where nothing is replayed, a step of many more tokens
    than the smallest one is prefill. Where all steps are alike the phase is unknown.
    """
    kernels = trace.kernels
    attention = [step.rows[roles.category[step.rows] == NUMBER["attention"]] for step in steps]
    replayed = [bool(kernels.replayed[rows].any()) for rows in attention]
    if any(replayed):
        # a kernel that was launched before the recording began may have come from a graph as well
        unknown = [not (kernels.launch_ns[rows] != NONE).any() for rows in attention]
        return [
            "decode" if graph else UNKNOWN if nothing else "prefill"
            for graph, nothing in zip(replayed, unknown, strict=True)
        ]
    sizes = np.array([_size(trace, roles, step) for step in steps])
    smallest = sizes[sizes > 0].min(initial=np.inf)
    if not np.isfinite(smallest) or sizes.max() < _PREFILL_RATIO * smallest:
        return [UNKNOWN] * len(steps)
    return ["prefill" if size >= _PREFILL_RATIO * smallest else "decode" for size in sizes]


def _size(trace: Trace, roles: Roles, step: Step) -> float:
    """A figure that grows with a step's tokens and not with its layers, as the first and the last step may be cut off.

    It is the mean blocks of kernels that work token by token, else the mean time of kernels. 0 where no layer ran.
    """
    if not roles.in_layer[step.rows].any():
        return 0.0
    rows = step.rows[np.isin(roles.category[step.rows], _PER_TOKEN)]
    blocks = trace.kernels.blocks[rows]
    return float(blocks.mean() if blocks.any() else trace.kernels.duration_ns[step.rows].mean())


def _boundaries(trace: Trace, roles: Roles, rows: Ints) -> Boundaries:
    if not trace.timed:
        return rows, _START, [WHOLE], "a summary has no steps"
    by_range = _by_ranges(trace, rows, phased=True)
    if by_range is not None:
        return (*by_range, "step ranges")
    names, name = trace.kernels.names, trace.kernels.name[rows]
    updates = training.optimizers(names)[name]
    if updates.any() or training.backward(names)[name].any():
        layers = np.flatnonzero(roles.in_layer[rows])
        cuts = _after_sampling(trace, rows, layers, np.flatnonzero(updates)) if updates.any() else _START
        if len(cuts) > 1:
            return rows, cuts, [UNKNOWN] * len(cuts), "optimizer after every step (the trace is of training)"
        return rows, _START, [WHOLE], f"{_NOT_FOUND}: the trace is of training, and no optimizer runs between layers"
    by_range = _by_ranges(trace, rows, phased=False)
    return _by_kernels(trace, roles, rows) if by_range is None else (*by_range, "step ranges without a phase")


def _by_kernels(trace: Trace, roles: Roles, rows: Ints) -> Boundaries:
    kinds = roles.category[rows]
    sampling = np.flatnonzero(kinds == NUMBER["sampling"])
    has_attention = bool((kinds == NUMBER["attention"]).any())
    if has_attention and len(sampling):  # without attention, softmax may be a layer's own
        cuts = _after_sampling(trace, rows, np.flatnonzero(roles.in_layer[rows]), sampling)
        return rows, cuts, [None] * len(cuts), "sampling after every step"
    for cuts, source in (
        (_graph_launches(trace, roles, rows), "launches of CUDA graphs"),
        (_between_layers(roles, rows), "the pattern of layers"),
    ):
        if len(cuts) > 1:
            return rows, cuts, [None] * len(cuts), source
    return rows, _START, [WHOLE], f"{_NOT_FOUND}: {_why(has_attention, len(sampling) > 0)}"


def _why(has_attention: bool, has_sampling: bool) -> str:
    """Why neither ranges nor kernels show steps, as the end of a sentence."""
    if has_attention:
        return "no range names them, no sampling kernel ends them, and no output head shows between layers"
    softmax = ", so softmax may be attention's or sampling" if has_sampling else ""
    return f"no range names them, and no attention kernel is recognised{softmax}"


def _by_ranges(trace: Trace, rows: Ints, *, phased: bool) -> tuple[Ints, Ints, list[str | None]] | None:
    """Steps by the ranges of the threads that launch to this device, those that name a phase or those that do not.

    A step lasts from its range's begin to the next one's: sampling is launched after the range has ended. Kernels
    that a step launches early on another stream (inputs of an overlap scheduler) run beside the step before and are not
    its part. A kernel whose launch is unknown belongs with the one before it.
    """
    kernels = trace.kernels
    named = {at: phase for at, text in enumerate(trace.ranges.names) if (phase := ranges.step(text))}
    texts = {at: phase if phased else None for at, phase in named.items() if (phase != ranges.UNPHASED) == phased}
    steps = ranges.outermost(trace.ranges.take(np.isin(trace.ranges.name, list(texts))))
    launching_thread = kernels.launch_thread[rows]
    threads = [number for number in distinct(steps.thread) if (launching_thread == number).any()]
    launching = np.isin(steps.thread, threads)
    starts = steps.start_ns[launching]
    if not len(starts):
        return None
    launched = kernels.launch_ns[rows]
    last = np.maximum.accumulate(np.where(launched == NONE, NONE, np.arange(len(rows))))
    step = np.where(last == NONE, -1, np.searchsorted(starts, launched[last], side="right") - 1)
    if np.any(step[1:] < step[:-1]):
        order = np.argsort(step, kind="stable")
        rows, step = rows[order], step[order]
    cuts = np.flatnonzero(np.diff(step, prepend=-2))
    phases = [texts[at] for at in steps.name[launching].tolist()]
    step_phases = [phases[at] if at >= 0 else OUTSIDE for at in step[cuts].tolist()]
    return rows, cuts, step_phases


def _after_sampling(trace: Trace, rows: Ints, layers: Ints, sampling: Ints) -> Ints:
    """A step ends with its last sampling kernel, and the next begins with the upload of its inputs."""
    after = np.searchsorted(layers, sampling)  # how many kernels of layers came before
    last_of_each = np.flatnonzero(np.append(np.diff(after) > 0, True))
    kernels = trace.kernels
    uploads = np.array([any(word in name for word in _UPLOAD) for name in kernels.names] or [False])
    is_upload = (kernels.kind[rows] == COPY) & uploads[kernels.name[rows]]
    upload_rows = np.flatnonzero(is_upload)
    cuts = [0]
    for at in last_of_each.tolist():
        if after[at] in (0, len(layers)):  # nothing of a layer before it, or after it
            continue
        row, following = int(sampling[at]), int(layers[after[at]])
        upload = int(np.searchsorted(upload_rows, row))
        begin = int(upload_rows[upload]) if upload < len(upload_rows) else following
        cuts.append(begin if begin < following else row + 1)
    return np.array(cuts, np.int64)


def _graph_launches(trace: Trace, roles: Roles, rows: Ints) -> Ints:
    """A step begins with every launch of a graph that holds attention."""
    kernels = trace.kernels
    ids = kernels.correlation[rows]
    whole = kernels.replayed[rows] & (roles.category[rows] == NUMBER["attention"])
    launches, begins = np.unique(ids, return_index=True)
    return distinct(np.append(0, begins[np.isin(launches, ids[whole])]))


def _between_layers(roles: Roles, rows: Ints) -> Ints:
    """A step ends where more dense GEMMs follow a layer's experts than do within a step: those of the head.

    The head is taken for the last of them but for as many as a layer begins with.
    """
    kinds, blocks = roles.category[rows], roles.block[rows]
    dense = np.flatnonzero(kinds == NUMBER["dense_gemm"])
    inside = np.flatnonzero(blocks != NONE)
    if not len(inside):
        return np.zeros(1, np.int64)
    closes = inside[np.flatnonzero(np.diff(blocks[inside], append=-2))]  # the last row of every block
    begins = inside[np.flatnonzero(np.diff(blocks[inside], prepend=-2))]
    first, last = np.searchsorted(dense, closes[:-1]), np.searchsorted(dense, begins[1:])
    usual = int(median_of(last - first)) if len(first) else 0
    longer = np.flatnonzero(last - first > usual)
    cuts = [int(dense[last[at] - usual - 1]) + 1 for at in longer]
    return np.array([0, *cuts], np.int64)
