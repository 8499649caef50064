"""What a trace of torch's profiler consists of, and which call launched which kernel."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints, launches
from moe_eval.traces.readers import chrome
from moe_eval.traces.readers.chrome import Event, File, Rows, Thread, timed

# categories of Kineto's ActivityType, and those in capitals of torch 1.8
_KINDS = {"kernel": KERNEL, "gpu_memcpy": COPY, "gpu_memset": SET, "Kernel": KERNEL, "Memcpy": COPY, "Memset": SET}
_CALLS = ("cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver", "Runtime")
_OPERATORS = ("cpu_op", "Operator")
_ANNOTATIONS = ("user_annotation", "User")
_LAUNCH = re.compile("Launch|Memcpy|Memset")


@dataclass(frozen=True)
class Parts:
    """What a file holds, in its order: rows of GPUs, the calls they came from, annotations, operators of the CPU.

    Attributes:
        columns: of the rows, as table.kernels takes them. `names`: their distinct names.
        thread: numbers of the threads of calls and annotations.
        key: the argument by which calls and rows belong together, "correlation" or "external".
        torn: rows whose id is in several processes that cannot be told apart; None where all processes can.
    """

    file: File
    gpus: Rows
    names: list[str]
    columns: dict[str, npt.NDArray[Any]]
    calls: Rows
    annotations: Rows
    operators: Rows
    thread: dict[Thread, int]
    key: str
    torn: int | None


def load(path: Path) -> Parts:
    """Read a file.

    Raises:
        UsageError: it cannot be read, or is no Chrome trace.
    """
    collects = gc.isenabled()
    gc.disable()  # it would look through millions of objects again and again, none of them in a cycle
    try:
        return _load(path, tolerant=False)
    finally:
        if collects:
            gc.enable()


def _load(path: Path, tolerant: bool) -> Parts:
    file = chrome.decode(path, tolerant=tolerant)
    gpus: list[Event] = []
    called: list[Event] = []
    marked: list[Event] = []
    operated: list[Event] = []
    others: list[Event] = []
    place: dict[str | None, list[Event]] = {**dict.fromkeys(_KINDS, gpus), **dict.fromkeys(_CALLS, called)}
    place.update({**dict.fromkeys(_ANNOTATIONS, marked), **dict.fromkeys(_OPERATORS, operated)})
    for event in file.traceEvents or ():
        place.get(event.cat, others).append(event)
    marked += [each for each in operated if _is_step(each)]
    operators = timed([each for each in operated if not _is_step(each)])
    rows, calls, annotations = timed(gpus), timed(called, lasting=False), timed(marked)
    if not tolerant and any(each.rounded for each in (operators, rows, calls, annotations)):
        return _load(path, tolerant=True)
    key, ids, of = _keys(rows, calls)
    used = np.isin(of, ids) & (of >= 0)
    calls, of = calls.take(used), of[used]
    process, owner, torn = _processes(rows, calls, ids, of)
    at = launches(process, ids, owner, of)
    thread = chrome.numbers(calls.threads(), annotations.threads())
    node = rows.number("node", NONE)
    graph = np.array(["GraphLaunch" in (each or "") for each in calls.fields("name")], np.bool_)
    names, name = rows.names()
    columns = {
        "name": name,
        "kind": np.fromiter(map(_KINDS.__getitem__, rows.fields("cat")), np.int64, len(rows)),
        "start_ns": rows.start,
        "duration_ns": rows.duration,
        "device": rows.device(),
        "stream": rows.stream(),
        "process": process,
        "correlation": ids,
        "graph_node": np.where(node > 0, node, NONE),
        "replayed": (node > 0) | _pick(graph, at, False),
        "bytes": rows.number("bytes", 0),
        "blocks": rows.blocks(),
        "launch_ns": _pick(calls.start, at, NONE),
        "launch_thread": _pick(np.array([thread[each] for each in calls.threads()], np.int64), at, NONE),
    }
    return Parts(file, rows, names, columns, calls, annotations, operators, thread, key, torn)


def _is_step(operator: Event) -> bool:
    """Whether it is a step of the profiler's schedule, which older torch wrote as an operator."""
    return operator.name is not None and operator.name.startswith("ProfilerStep#")


def _pick(values: npt.NDArray[Any], at: Ints, default: int) -> npt.NDArray[Any]:
    """Values at rows, the default where a row is NONE."""
    found = np.full(len(at), default, values.dtype)
    found[at != NONE] = values[at[at != NONE]]
    return found


def _keys(rows: Rows, calls: Rows) -> tuple[str, Ints, Ints]:
    """By what rows and calls belong together, and it of both, NONE where it is missing."""
    key, ids = "correlation", rows.number("correlation", NONE)
    of = calls.number(key, NONE)
    if not np.any(ids >= 0):
        # ROCm in torch 1 tells a kernel's operator alone, which also has calls that launch nothing
        key, ids = "external", rows.number("external", NONE)
        launching = np.array([bool(_LAUNCH.search(each or "")) for each in calls.fields("name")], np.bool_)
        of = np.where(launching, calls.number(key, NONE), NONE)
    limit = 1 << 48  # ids and processes together have to fit 64 bits
    return key, np.where((ids >= 0) & (ids < limit), ids, NONE), np.where((of >= 0) & (of < limit), of, NONE)


def _processes(rows: Rows, calls: Rows, ids: Ints, of: Ints) -> tuple[Ints, Ints, int | None]:
    """The process of every row, NONE where it is not known; that of every call; and how many rows were torn."""
    hosts = calls.fields("pid")
    owner = chrome.codes(hosts)
    groups: dict[str, set[int]] = {}
    for pid, number in set(zip(hosts, owner.tolist(), strict=True)):
        groups.setdefault(chrome.split(pid)[0], set()).add(number)
    pids = rows.fields("pid")
    label = {pid: chrome.split(pid)[0] for pid in set(pids)}
    alone = {pid: next(iter(groups[name])) if len(groups.get(name, ())) == 1 else NONE for pid, name in label.items()}
    process = np.fromiter(map(alone.__getitem__, pids), np.int64, len(pids))
    torn = None
    for name, members in groups.items():
        if len(members) == 1:
            continue
        here, theirs = np.array([label[each] == name for each in pids], np.bool_), np.isin(owner, list(members))
        pairs = np.unique(np.stack([of[theirs], owner[theirs]]), axis=1)
        known, first, times = np.unique(pairs[0], return_index=True, return_counts=True)
        at = np.minimum(np.searchsorted(known, ids[here]), len(known) - 1)
        found = known[at] == ids[here]
        process[here] = np.where(found & (times[at] == 1), pairs[1][first[at]], NONE)
        torn = (torn or 0) + int(np.sum(found & (times[at] > 1)))
    return process, owner, torn
