"""Which calls of CUDA's or HIP's API launch kernels, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_eval.traces.kernel_table import Ints, Launches, distinct

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
