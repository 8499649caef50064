"""Launches and kernels that a profiler dropped, told from those beyond the edges of a recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import KERNEL, NONE, Ints, Trace, distinct, places

Mask = npt.NDArray[np.bool_]


@frozen
class DroppedEvents:
    """Launches without kernels and kernels without a launch that the edges of the recording do not explain.

    Attributes:
        graphs: launches of graphs. `plain`: other launches. `kernels`: without a launch.
        of_graphs, of_plain, of_kernels: how many there are with those.
    """

    graphs: int
    of_graphs: int
    plain: int
    of_plain: int
    kernels: int
    of_kernels: int


def count(trace: Trace, streams: Sequence[Ints]) -> DroppedEvents:
    """Count what a profiler dropped.

    A stream runs in order. So what ran on it before the first kernel that has a launch was launched before the
    recording, and launches after the last one that has a kernel had not run at its end. A launch without kernels names
    no stream: that of most kernels of its thread counts.

    Args:
        streams: the kernels of every stream, by start.
    """
    kernels, unanswered = trace.kernels, trace.unanswered
    is_kernel = kernels.kind == KERNEL
    launched = kernels.launch_ns != NONE
    answered = launched & is_kernel
    late = np.zeros(len(unanswered), np.bool_)
    for thread in distinct(unanswered.thread):
        rows = np.flatnonzero(answered & (kernels.launch_thread == thread))
        _, stream = places(kernels.stream[rows])
        main = rows[stream == np.argmax(np.bincount(stream, minlength=1))]
        last = kernels.launch_ns[main].max(initial=NONE)
        late |= (unanswered.thread == thread) & (unanswered.start_ns > last)
    of_graphs = _graph_launches(trace, launched & kernels.replayed) if len(unanswered) else 0
    graphs, cut = (int(np.sum(unanswered.graph & part)) for part in (~late, late))
    # an engine has a step or two in flight. More launches than the recording has kernels of are no edge of it
    graphs += cut if cut > of_graphs else 0
    alone = _after_first_launch(trace, streams, launched)
    plain = int(np.sum(~unanswered.graph & ~late))
    of_plain = int(np.sum(answered & ~kernels.replayed)) + plain
    return DroppedEvents(graphs, of_graphs + graphs, plain, of_plain, alone, int(is_kernel.sum()))


def _graph_launches(trace: Trace, rows: Mask) -> int:
    """How many launches these rows came from."""
    process, correlation = trace.kernels.process[rows], trace.kernels.correlation[rows]
    return sum(len(distinct(correlation[process == number])) for number in distinct(process))


def _after_first_launch(trace: Trace, streams: Sequence[Ints], launched: Mask) -> int:
    """Kernels without a launch after one that has one on their stream.

    Those of no known process may have theirs in several (notes of the reader say so) and do not count.
    """
    count = 0
    for rows in streams if not launched.all() else ():
        has_launch = launched[rows]
        if has_launch.any() and trace.kernels.process[rows[0]] != NONE:
            count += int(np.count_nonzero(~has_launch[np.argmax(has_launch) :]))
    return count
