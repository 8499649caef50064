"""Which calls of CUDA's or HIP's API launch kernels, by their names, and which call launched which kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_eval.traces.kernel_table import NONE, SPREAD, Ints, Launches, distinct, index_in, pick, places

# cudaLaunchKernelExC_v11060, cuLaunchKernelEx, cudaLaunchCooperativeKernel, hipExtModuleLaunchKernel, cudaGraphLaunch
_LAUNCH = re.compile("Launch(Cooperative)?Kernel|GraphLaunch")
_BEGIN, _END = "StreamBeginCapture", "StreamEndCapture"


def matters(name: str | None) -> bool:
    """Whether `unanswered` has a use for calls of this name."""
    return bool(name and (_LAUNCH.search(name) or _BEGIN in name or _END in name))


def unanswered(names: Sequence[str | None], name: Ints, start_ns: Ints, thread: Ints) -> Launches:
    """The launches among calls of which no row of a device came.

    A launch between the begin and the end of a capture on its thread becomes a node of a graph and runs later.

    Args:
        names: distinct names. `name`: every call's index into them, shape (n,), as `start_ns` and `thread` have.
    """

    def named(part: str) -> npt.NDArray[np.bool_]:
        return np.array([part in (text or "") for text in names] or [False])[name]

    launch = np.array([bool(_LAUNCH.search(text or "")) for text in names] or [False])[name]
    begin, end = named(_BEGIN), named(_END)
    for number in distinct(thread[begin | end]):
        own = np.flatnonzero(thread == number)
        own = own[np.argsort(start_ns[own], kind="stable")]
        marks = np.flatnonzero(begin[own] | end[own])
        before = np.cumsum(begin[own] | end[own]) - 1
        # a call before the first mark is inside if that mark is an end
        inside = np.where(before < 0, end[own[marks[0]]], begin[own[marks[before]]])
        launch[own[inside]] = False
    return Launches(start_ns[launch], thread[launch], named("GraphLaunch")[launch])


def launches(kernels_process: Ints, kernels_correlation: Ints, process: Ints, correlation: Ints) -> Ints:
    """For every kernel the row of its launch, NONE where it is not among them.

    Correlation ids are unique within a process only, so both have to agree. Of several launches with one id the last
    row counts. The kernels' arrays and the result have shape (n,), those of the launches (m,).
    """
    if not len(process):
        return np.full(len(kernels_process), NONE, np.int64)
    numbers = distinct(process)
    span = int(max(correlation.max(), kernels_correlation.max(initial=0))) + 1
    at = index_in(numbers, kernels_process)
    kernel_keys = np.where((at | kernels_correlation) >= 0, at * span + kernels_correlation, NONE)
    keys = np.where(correlation >= 0, index_in(numbers, process) * span + correlation, NONE)
    if len(numbers) * span < SPREAD * (len(keys) + len(kernel_keys)):
        last = np.full(len(numbers) * span + 1, NONE, np.int64)
        last[keys] = np.arange(len(keys))  # of several rows with one key the last one stays
        last[-1] = NONE
        return last[kernel_keys]
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys[order], kernel_keys, side="right") - 1
    row = order[np.maximum(place, 0)]
    launch: Ints = np.where((kernel_keys >= 0) & (place >= 0) & (keys[row] == kernel_keys), row, NONE)
    return launch


def captures(process: Ints, node: Ints, owner: Ints, number: Ints, original: Ints) -> Ints:
    """For every kernel the row of the node that its own was first cloned from, NONE where that is not in the trace.

    Args:
        process, node: of kernels, shape (n,).
        owner, number, original: of nodes, shape (m,): their process, and NONE for `original` where one is no clone.
    """
    if not len(number):
        return np.full(len(node), NONE, np.int64)
    ids, place = places(np.concatenate([number, original]))
    rank, original_rank = np.split(place, 2)  # ranks, for the ids themselves may have 64 bits
    first = original == NONE
    up = np.where(first, np.arange(len(rank)), launches(owner, original_rank, owner, rank))
    for _ in range(len(rank).bit_length()):  # every round doubles the clones that are followed
        up = np.where(up == NONE, NONE, up[up])
    up = np.where((up != NONE) & first[up], up, NONE)  # nodes in a circle lead to none that is first
    negative = int(np.searchsorted(ids, 0))
    kernel_rank = index_in(ids[negative:], node)
    kernel_rank += np.where(kernel_rank == NONE, 0, negative)
    captured: Ints = pick(up, launches(process, kernel_rank, owner, rank), NONE)
    return captured
