"""Where the forward steps of a device begin: by an engine's ranges, by sampling, by graphs, by the layers' pattern."""

from __future__ import annotations

import numpy as np

from moe_eval.traces import ranges as range_texts
from moe_eval.traces.kernel_table import COPY, NONE, Ints, Trace
from moe_eval.traces.roles import NUMBER, Roles
from moe_eval.traces.taxonomy import CATEGORIES

WHOLE = "whole trace"
OUTSIDE = "outside steps"

IN_LAYER = np.array([name in ("attention", "expert_gemm") for name in CATEGORIES])
_UPLOAD = ("HtoD", "Host-to-Device", "HostToDevice")


def find(trace: Trace, roles: Roles, rows: Ints) -> tuple[Ints, Ints, list[str] | None, str]:
    """A device's rows by step, where steps begin, their phases where ranges name them, and the source of all this."""
    if not trace.timed:
        return rows, np.zeros(1, np.int64), [WHOLE], "a summary has no steps"
    by_range = _by_ranges(trace, rows)
    if by_range is not None:
        return (*by_range, "step ranges")
    kinds = roles.category[rows]
    layers = np.flatnonzero(IN_LAYER[kinds])
    sampling = np.flatnonzero(kinds == NUMBER["sampling"])
    if (kinds == NUMBER["attention"]).any() and len(layers) and len(sampling):  # without, softmax may be a layer's own
        cuts = _after_sampling(trace, rows, layers, sampling)
        return rows, cuts, None, "sampling after every step"
    graphs = _graph_launches(trace, roles, rows)
    if len(graphs) > 1:
        return rows, graphs, None, "launches of CUDA graphs"
    heads = _between_layers(roles, rows)
    if len(heads) > 1:
        return rows, heads, None, "the pattern of layers"
    return rows, np.zeros(1, np.int64), [WHOLE], "no steps were found"


def _by_ranges(trace: Trace, rows: Ints) -> tuple[Ints, Ints, list[str]] | None:
    """Steps by the ranges of the threads that launch to this device.

    A step lasts from its range's begin to the next one's: sampling is launched after the range has ended. What a step
    launches early on another stream (inputs of an overlap scheduler) runs beside the step before and is not its part.
    A kernel whose launch is unknown belongs with the one before it.
    """
    kernels = trace.kernels
    texts = {at: phase for at, text in enumerate(trace.ranges.names) if (phase := range_texts.step(text))}
    ranges = range_texts.only(trace.ranges, np.array(list(texts), np.int64))
    threads = [number for number in np.unique(ranges.thread) if (kernels.launch_thread[rows] == number).any()]
    mine = np.isin(ranges.thread, threads)
    starts = ranges.start_ns[mine]
    if not len(starts):
        return None
    launched = kernels.launch_ns[rows]
    last = np.maximum.accumulate(np.where(launched == NONE, NONE, np.arange(len(rows))))
    step = np.where(last == NONE, -1, np.searchsorted(starts, launched[last], side="right") - 1)
    if np.any(step[1:] < step[:-1]):
        order = np.argsort(step, kind="stable")
        rows, step = rows[order], step[order]
    present, cuts = np.unique(step, return_index=True)
    phases = [texts[at] for at in ranges.name[mine].tolist()]
    named_phases: list[str] = [phases[at] if at >= 0 else OUTSIDE for at in present.tolist()]
    return rows, cuts.astype(np.int64), named_phases


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
    usual = int(np.median(last - first)) if len(first) else 0
    longer = np.flatnonzero(last - first > usual)
    cuts = [int(dense[last[at] - usual - 1]) + 1 for at in longer]
    return np.array([0, *cuts], np.int64)
