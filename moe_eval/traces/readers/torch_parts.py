"""What a trace of torch's profiler consists of, and which call launched which kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import attrgetter, not_
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.machine import collector
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints, Launches, pick
from moe_eval.traces.readers import chrome_columns, chrome_events, launch_calls
from moe_eval.traces.readers.chrome_columns import Rows, timed
from moe_eval.traces.readers.chrome_events import Event, File, Thread

# categories of Kineto's ActivityType, and those in capitals of torch 1.8
_KINDS = {"kernel": KERNEL, "gpu_memcpy": COPY, "gpu_memset": SET, "Kernel": KERNEL, "Memcpy": COPY, "Memset": SET}
_CALLS = ("cuda_runtime", "cuda_driver", "hip_runtime", "hip_driver", "Runtime")
_OPERATORS = ("cpu_op", "Operator")
_ANNOTATIONS = ("user_annotation", "User")
_LAUNCH = re.compile("Launch|Memcpy|Memset")


@frozen
class Parts:
    """What a file holds, in its order: rows of GPUs, the calls they came from, annotations, operators of the CPU.

    Attributes:
        columns: of the rows, as kernel_table.kernels takes them. `names`: their distinct names.
        others: launches and captures that no row has the id of. `unanswered`: launches without a row of their process.
        thread: numbers of the threads of calls, annotations and others.
        key: the argument by which calls and rows belong together, "correlation" or "external".
        torn: rows whose id is in several processes that cannot be distinguished. None where all can.
    """

    file: File
    gpus: Rows
    names: list[str]
    columns: dict[str, npt.NDArray[Any]]
    calls: Rows
    others: Rows
    unanswered: Launches
    annotations: Rows
    operators: Rows
    thread: dict[Thread, int]
    key: str
    torn: int | None


def load(path: Path) -> Parts:
    """Read a file. A UsageError says why it cannot be read, or is no Chrome trace."""
    with collector.paused():
        return _load(path, tolerant=False)


def _load(path: Path, tolerant: bool) -> Parts:
    file = chrome_events.decode(path, tolerant=tolerant)
    gpu_events, call_events, annotation_events, operator_events = _by_category(file.traceEvents or ())
    # a step of the profiler's schedule, which older torch wrote as an operator, is an annotation
    is_step = [(event.name or "").startswith("ProfilerStep#") for event in operator_events]
    annotation_events += compress(operator_events, is_step)
    operators = timed(list(compress(operator_events, map(not_, is_step))))
    rows, calls, annotations = timed(gpu_events), timed(call_events, lasting=False), timed(annotation_events)
    if not tolerant and any(part.rounded for part in (operators, rows, calls, annotations)):
        return _load(path, tolerant=True)
    key, ids, call_ids = _keys(rows, calls)
    used = np.isin(call_ids, ids) & (call_ids >= 0)
    matters = {name for name in set(calls.fields("name")) if key == "correlation" and launch_calls.matters(name)}
    others = calls.take(~used & (call_ids >= 0) & np.array([name in matters for name in calls.fields("name")], bool))
    calls, call_ids = calls.take(used), call_ids[used]
    process, owner, torn = _processes(rows, calls, ids, call_ids)
    launch = launch_calls.launches(process, ids, owner, call_ids)
    thread = chrome_columns.numbers(calls.threads(), [*annotations.threads(), *others.threads()])
    alone = np.bincount(launch[launch != NONE], minlength=len(calls)) == 0
    if key != "correlation" or np.any(process == NONE):  # then a row may be of any launch with its id
        alone[:] = False
    # of several calls with one id `launches` names the last
    alone[alone] = launch_calls.launches(owner[alone], call_ids[alone], process, ids) == NONE
    unanswered = _unanswered((calls.take(alone), others), thread)
    names, name = rows.names()
    columns = {"name": name, "process": process, "correlation": ids, **_columns(rows, calls, launch, thread)}
    return Parts(file, rows, names, columns, calls, others, unanswered, annotations, operators, thread, key, torn)


def _by_category(events: Iterable[Event]) -> tuple[list[Event], ...]:
    """Events of GPUs, calls, annotations and operators of the CPU."""
    groups: tuple[list[Event], ...] = ([], [], [], [])
    names = (_KINDS, _CALLS, _ANNOTATIONS, _OPERATORS)
    place: dict[str | None, list[Event]] = {
        name: group for members, group in zip(names, groups, strict=True) for name in members
    }
    others: list[Event] = []
    for event in events:
        place.get(event.cat, others).append(event)
    return groups


def _unanswered(parts: Sequence[Rows], thread: dict[Thread, int]) -> Launches:
    """The launches among calls that no row came from."""
    index: dict[str | None, int] = {}
    name = [index.setdefault(text, len(index)) for calls in parts for text in calls.fields("name")]
    numbers = [thread[key] for calls in parts for key in calls.threads()]
    start = np.concatenate([calls.start for calls in parts])
    return launch_calls.unanswered(list(index), np.array(name, np.int64), start, np.array(numbers, np.int64))


def _columns(rows: Rows, calls: Rows, launch: Ints, thread: dict[Thread, int]) -> dict[str, npt.NDArray[Any]]:
    """Columns of the rows of GPUs. `launch`: the call of every row, NONE where there is none."""
    node = rows.number("node", NONE)
    is_graph = np.array(["GraphLaunch" in (name or "") for name in calls.fields("name")], np.bool_)
    communicator, message = rows.communicators()
    call_thread = np.array([thread[key] for key in calls.threads()], np.int64)
    return {
        "kind": np.fromiter(map(_KINDS.__getitem__, rows.fields("cat")), np.int64, len(rows)),
        "start_ns": rows.start,
        "duration_ns": rows.duration,
        "device": rows.place("device", lambda event: chrome_columns.integer(chrome_columns.split(event.pid)[1], 0)),
        "stream": rows.place("stream", attrgetter("tid")),
        "graph_node": np.where(node > 0, node, NONE),
        "replayed": (node > 0) | pick(is_graph, launch, False),
        "bytes": np.maximum(rows.number("bytes", 0), message),
        "communicator": communicator,
        "sequence": rows.number("sequence", NONE),
        "blocks": rows.blocks(),
        "launch_ns": pick(calls.start, launch, NONE),
        "launch_thread": pick(call_thread, launch, NONE),
    }


def _keys(rows: Rows, calls: Rows) -> tuple[str, Ints, Ints]:
    """By what rows and calls belong together, and it of both, NONE where it is missing."""
    key, ids = "correlation", rows.number("correlation", NONE)
    call_ids = calls.number(key, NONE)
    if not np.any(ids >= 0):
        # ROCm in torch 1 names a kernel's operator alone, which also has calls that launch nothing
        key, ids = "external", rows.number("external", NONE)
        launching = np.array([bool(_LAUNCH.search(name or "")) for name in calls.fields("name")], np.bool_)
        call_ids = np.where(launching, calls.number(key, NONE), NONE)
    limit = 1 << 48  # ids and processes together have to fit 64 bits
    ids, call_ids = (np.where((column >= 0) & (column < limit), column, NONE) for column in (ids, call_ids))
    return key, ids, call_ids


def _processes(rows: Rows, calls: Rows, ids: Ints, call_ids: Ints) -> tuple[Ints, Ints, int | None]:
    """The process of every row, NONE where it is not known. That of every call. How many rows were torn."""
    hosts = calls.fields("pid")
    owner = chrome_columns.codes(hosts)
    groups: dict[str, set[int]] = {}
    for pid, number in set(zip(hosts, owner.tolist(), strict=True)):
        groups.setdefault(chrome_columns.split(pid)[0], set()).add(number)
    pids = rows.fields("pid")
    label = {pid: chrome_columns.split(pid)[0] for pid in set(pids)}
    alone = {pid: next(iter(groups[name])) if len(groups.get(name, ())) == 1 else NONE for pid, name in label.items()}
    process = np.fromiter(map(alone.__getitem__, pids), np.int64, len(pids))
    torn = None
    for name, members in groups.items():
        if len(members) == 1:
            continue
        in_group = np.array([label[pid] == name for pid in pids], np.bool_)
        group_calls = np.isin(owner, list(members))
        pairs = np.unique(np.stack([call_ids[group_calls], owner[group_calls]]), axis=1)
        distinct, first, times = np.unique(pairs[0], return_index=True, return_counts=True)
        at = np.minimum(np.searchsorted(distinct, ids[in_group]), len(distinct) - 1)
        matches = distinct[at] == ids[in_group]
        process[in_group] = np.where(matches & (times[at] == 1), pairs[1][first[at]], NONE)
        torn = (torn or 0) + int(np.sum(matches & (times[at] > 1)))
    return process, owner, torn
