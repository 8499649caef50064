"""Finds the forward steps of a trace, and whether each is prefill or decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_eval.traces import ranges as named
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.table import COPY, NONE, Ints, Trace
from moe_eval.traces.taxonomy import CATEGORIES

WHOLE = "whole trace"
UNKNOWN = "step"
OUTSIDE = "outside steps"

_IN_LAYER = np.array([name in ("attention", "expert_gemm") for name in CATEGORIES])
# kernels whose grid grows with the tokens of a step and with nothing else
_PER_TOKEN = [NUMBER[name] for name in ("norm", "rope_kv", "activation", "elementwise", "quant_dequant")]
# one step holds as many times the tokens of another: then it is prefill and the other decode
_PREFILL_RATIO = 4.0
# a step whose kernels take this many times longer or shorter than the phase's median is warming up, or was disturbed
_FAR = 1.5
_UPLOAD = ("HtoD", "Host-to-Device", "HostToDevice")


@dataclass(frozen=True)
class Step:
    """One forward step on one device.

    Attributes:
        phase: `prefill`, `decode`, `mixed`; UNKNOWN where nothing tells; OUTSIDE for what ran before the first
            step that a range names; WHOLE for a trace without steps.
        rows: of the trace's kernels, by start, shape (n,).
        start_ns, end_ns: of its first and last kernel's edges.
        next_ns: when the next step of the device begins; None for the last one.
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
    """All steps, by device and start, and how they were found. `devices`: how many ran some."""

    steps: tuple[Step, ...]
    found_by: str
    devices: int


def find(trace: Trace, roles: Roles, devices: Sequence[Ints]) -> Steps:
    """Cut a trace into forward steps: by an engine's step ranges, else by sampling, else by graph launches.

    Args:
        devices: the rows of every device, by start.
    """
    found: list[Step] = []
    ways: set[str] = set()
    running = [rows for rows in devices if _IN_LAYER[roles.category[rows]].any()] or list(devices)
    for rows in running:
        cuts, phases, way = _cuts(trace, roles, rows)
        ways.add(way)
        steps = _steps(trace, rows, cuts)
        if phases is None:
            phases = _phases(trace, roles, steps)
        found += _aside([replace(step, phase=phase) for step, phase in zip(steps, phases, strict=True)], trace, roles)
    return Steps(tuple(found), " and ".join(sorted(ways)), len(running))


def _cuts(trace: Trace, roles: Roles, rows: Ints) -> tuple[Ints, list[str] | None, str]:
    """Where steps begin among a device's rows, their phases where ranges tell, and what told."""
    if not trace.timed:
        return np.zeros(1, np.int64), [WHOLE], "a summary has no steps"
    by_range = _by_ranges(trace, rows)
    if by_range is not None:
        return (*by_range, "step ranges")
    kinds = roles.category[rows]
    layers = np.flatnonzero(_IN_LAYER[kinds])
    sampling = np.flatnonzero(kinds == NUMBER["sampling"])
    if len(layers) and len(sampling):
        cuts = _after_sampling(trace, rows, layers, sampling)
        return cuts, None, "sampling after every step"
    graphs = _graph_launches(trace, roles, rows)
    if len(graphs) > 1:
        return graphs, None, "launches of CUDA graphs"
    return np.zeros(1, np.int64), [WHOLE], "no steps were found"


def _by_ranges(trace: Trace, rows: Ints) -> tuple[Ints, list[str]] | None:
    """Steps by the ranges of the threads that launch to this device.

    A step lasts from its range's begin to the next one's: sampling is launched after the range has ended. A kernel
    whose launch is unknown belongs with the one before it.
    """
    kernels = trace.kernels
    texts = {at: phase for at, text in enumerate(trace.ranges.names) if (phase := named.step(text))}
    ranges = named.only(trace.ranges, np.array(list(texts), np.int64))
    threads = [each for each in np.unique(ranges.thread) if (kernels.launch_thread[rows] == each).any()]
    mine = np.isin(ranges.thread, threads)
    starts = ranges.start_ns[mine]
    if not len(starts):
        return None
    launched = kernels.launch_ns[rows]
    step = np.where(launched == NONE, -1, np.searchsorted(starts, launched, side="right") - 1)
    step = np.maximum.accumulate(step)
    present, cuts = np.unique(step, return_index=True)
    phases = [texts[at] for at in ranges.name[mine].tolist()]
    named_phases: list[str] = [phases[at] if at >= 0 else OUTSIDE for at in present.tolist()]
    return cuts.astype(np.int64), named_phases


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
    _, first = np.unique(ids[whole], return_index=True)
    starts = np.flatnonzero(whole)[first]
    begins = np.array([int(np.flatnonzero(ids == ids[at])[0]) for at in starts], np.int64)
    cuts: Ints = np.unique(np.append(begins, 0))
    return cuts


def _steps(trace: Trace, rows: Ints, cuts: Ints) -> list[Step]:
    ends = trace.kernels.end_ns
    found: list[Step] = []
    parts = np.split(rows, cuts[1:])
    starts = [int(trace.kernels.start_ns[part[0]]) for part in parts]
    for at, part in enumerate(parts):
        following = starts[at + 1] if at + 1 < len(parts) else None
        found.append(Step(UNKNOWN, part, starts[at], int(ends[part].max()), following))
    return found


def _phases(trace: Trace, roles: Roles, steps: Sequence[Step]) -> list[str]:
    """Prefill or decode without ranges.

    Engines replay a graph that holds attention in decode alone. Where nothing is replayed, a step of many more tokens
    than the smallest one is prefill; where all steps are alike nothing tells.
    """
    kernels = trace.kernels
    replayed = [
        bool(kernels.replayed[step.rows[roles.category[step.rows] == NUMBER["attention"]]].any()) for step in steps
    ]
    if any(replayed):
        return ["decode" if each else "prefill" for each in replayed]
    sizes = np.array([_size(trace, roles, step) for step in steps])
    smallest = sizes[sizes > 0].min(initial=np.inf)
    if not np.isfinite(smallest) or sizes.max() < _PREFILL_RATIO * smallest:
        return [UNKNOWN] * len(steps)
    return ["prefill" if size >= _PREFILL_RATIO * smallest else "decode" for size in sizes]


def _size(trace: Trace, roles: Roles, step: Step) -> float:
    """What grows with a step's tokens: the blocks of kernels that work token by token, else the time they take."""
    rows = step.rows[np.isin(roles.category[step.rows], _PER_TOKEN)]
    blocks = trace.kernels.blocks[rows]
    return float(blocks.sum() if blocks.any() else trace.kernels.duration_ns[step.rows].sum())


def _aside(steps: Sequence[Step], trace: Trace, roles: Roles) -> list[Step]:
    """Set steps aside that have another number of layer kernels than most of their phase, or take far longer."""
    found = list(steps)
    for phase in {step.phase for step in steps}:
        mine = [at for at, step in enumerate(steps) if step.phase == phase]
        counts = {at: np.count_nonzero(_IN_LAYER[roles.category[steps[at].rows]]) for at in mine}
        usual = max(Counter(counts.values()).items(), key=lambda item: (item[1], item[0]))[0]
        whole = [at for at in mine if counts[at] == usual]
        times = {at: int(trace.kernels.duration_ns[steps[at].rows].sum()) for at in whole}
        median = float(np.median(list(times.values())))
        far = [at for at in whole if not median / _FAR <= times[at] <= median * _FAR]
        for at in mine:
            if counts[at] != usual:
                found[at] = replace(steps[at], aside="ragged")
            elif at in far and len(far) <= len(whole) / 4:  # more of them are no exception
                found[at] = replace(steps[at], aside="far from the others")
    return found
