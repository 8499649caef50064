"""Reads what `nsys export --type sqlite` wrote, of any schema from 2022 to 2026.

Joins as Nsight Systems' own documentation and TensorRT-LLM's layer-wise benchmarks do them: a kernel belongs to the
launch with its process and its correlation id, a node of a CUDA graph to the moment at which the node that it was
cloned from was captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval.errors import UsageError
from moe_eval.records.kernels import TraceSource
from moe_eval.traces.kernel_table import (
    COPY,
    KERNEL,
    NONE,
    Bytes,
    Ints,
    Kernels,
    Launches,
    Ranges,
    Trace,
    kernels,
    pick,
    places,
    ranges,
)
from moe_eval.traces.readers import launch_calls
from moe_eval.traces.readers import nsys_columns as columns
from moe_eval.traces.readers import nsys_tables as tables
from moe_eval.traces.readers.nsys_columns import Columns
from moe_eval.traces.readers.nsys_tables import Export

# CUpti_ActivityMemcpyKind from 1 on, with the words of `nsys stats`
_COPIES = (
    "Host-to-Device, Device-to-Host, Host-to-Array, Array-to-Host, Array-to-Array, Array-to-Device, Device-to-Array, "
    "Device-to-Device, Host-to-Host, Peer-to-Peer, Unified Host-to-Device, Unified Device-to-Host, "
    "Unified Device-to-Device"
)
# calls of CUDA's API, graphs that were recorded as a whole, nodes as they were made or cloned, ranges with marks
_PLAIN = {
    tables.RUNTIME: {"start": "start", "thread": "globalTid", "correlation": "correlationId", "name": "nameId"},
    tables.GRAPH_TRACE: {"process": "globalPid", "correlation": "correlationId"},
    tables.NODES: {"start": "start", "thread": "globalTid", "node": "graphNodeId", "original": "originalGraphNodeId"},
    tables.NVTX: {
        "start": "start",
        "end": "end",
        "kind": "eventType",
        "thread": "globalTid",
        "text_id": "textId",
        "text": "text",
    },
}


def read(path: Path) -> Trace:
    """The kernels, copies, sets and NVTX ranges of an export. The file stays as it is.

    Raises:
        UsageError: it cannot be read, holds no kernels, or CUDA graphs were recorded as a whole and not by node.
    """
    export = tables.open_export(path)
    queries = [columns.activity(kind) for kind in columns.ACTIVITIES]
    queries += [columns.plain(table, **names) for table, names in _PLAIN.items()]
    fetched = columns.fetch(export, queries)
    # they are as large as all that is made of them, so none stays
    rows = _merged([columns.activities(kind, fetched.pop(0)) for kind in columns.ACTIVITIES])
    calls, graphs, nodes, nvtx = fetched
    for table in (rows, calls, graphs):
        # correlation ids have 32 bits in CUPTI. Anything else is none
        wrong = (table["correlation"] >> 32) != 0
        if wrong.any():
            table["correlation"] = np.where(wrong, NONE, table["correlation"])
    _check(export, rows, graphs)
    unsound = rows["duration"] < 0
    notes = _note(f"{{}} of {len(unsound):,} kernels, copies and sets have no end or one before their start", unsound)
    if notes:
        rows = {name: column[~unsound] for name, column in rows.items()}
    # in the order in which `launches` prefers them: a node may have a row as it is made and another as a clone
    clones_last = np.lexsort((-nodes["start"], nodes["original"] != NONE))
    if (calls["correlation"] == NONE).any():
        has_id = calls["correlation"] != NONE
        calls = {key: column[has_id] for key, column in calls.items()}
    owner = calls["thread"] >> columns.PID
    launch = launch_calls.launches(rows["process"], rows["correlation"], owner, calls["correlation"])
    launched = _table(export, rows, calls, {name: column[clones_last] for name, column in nodes.items()}, launch)
    nvtx_ranges, nvtx_notes = _texts(export, nvtx)
    notes = [*notes, *_missing(launched, export), *nvtx_notes]
    return Trace(
        launched, nvtx_ranges, _source(export), tuple(notes), unanswered=_unanswered(export, rows, calls, launch)
    )


def _check(export: Export, rows: Columns, graphs: Columns) -> None:
    by_graph = graphs["process"] >> columns.PID, graphs["correlation"]
    if len(by_graph[0]) and np.any(launch_calls.launches(*by_graph, rows["process"], rows["correlation"]) == NONE):
        raise UsageError(
            f"{export.path} holds CUDA graphs as a whole and not the kernels inside them. Record it again with nsys "
            "profile --cuda-graph-trace=node."
        )
    if not np.any((rows["kind"] == KERNEL) & (rows["duration"] >= 0)):
        from moe_eval.machine.nsys import EMPTY_CAPTURE

        raise UsageError(
            f"{export.path} holds no kernels. {EMPTY_CAPTURE} Record it again with nsys profile --trace=cuda,nvtx."
        )


def _merged(activities: Sequence[Columns]) -> Columns:
    """The rows of several tables by start, with the `kind` of each."""
    starts = np.concatenate([table["start"] for table in activities])
    place = np.empty(len(starts), np.int64)
    place[np.argsort(starts, kind="stable")] = np.arange(len(starts))
    parts = np.split(place, np.cumsum([len(table["start"]) for table in activities])[:-1])
    merged = {name: np.empty(len(starts), np.int64) for name in activities[0]} | {
        "kind": np.empty(len(starts), np.int8)
    }
    for kind, table, rows in zip(columns.ACTIVITIES, activities, parts, strict=True):
        for name, column in ({"kind": kind} | table).items():
            merged[name][rows] = column
    return merged


def _unanswered(export: Export, rows: Columns, calls: Columns, launch: Ints) -> Launches:
    """The launches without a row, of calls with an id. `launch`: the call of every row."""
    alone = np.bincount(launch[launch != NONE], minlength=len(calls["start"])) == 0
    distinct, place = places(calls["name"])
    texts = tables.strings(export, distinct.tolist())
    names = [texts.get(id_, "") for id_ in distinct.tolist()]
    alone &= np.array([launch_calls.matters(text) for text in names], np.bool_)[place]
    at = np.flatnonzero(alone)
    if len(at):  # of several calls with one id `launches` names the last
        process = calls["thread"][at] >> columns.PID
        at = at[launch_calls.launches(process, calls["correlation"][at], rows["process"], rows["correlation"]) == NONE]
    return launch_calls.unanswered(names, place[at], calls["start"][at], calls["thread"][at])


def _table(export: Export, rows: Columns, calls: Columns, nodes: Columns, launch: Ints) -> Kernels:
    """The rows. `launch`: the call of every row."""
    names, name = _names(export, rows["kind"], rows["name"])
    process = nodes["thread"] >> columns.PID
    captured = launch_calls.captures(rows["process"], rows["node"], process, nodes["node"], nodes["original"])
    kernel = rows["kind"] == KERNEL
    return kernels(
        names,
        name=name,
        kind=rows["kind"],
        start_ns=rows["start"],
        duration_ns=rows["duration"],
        device=rows["device"],
        stream=rows["stream"],
        process=rows["process"],
        correlation=rows["correlation"],
        graph_node=rows["node"],
        replayed=(rows["node"] != NONE) | pick(_replays(export, calls["name"]), launch, False),
        bytes=np.where(kernel, 0, rows["size"]),
        blocks=np.where(kernel, rows["size"], 0),
        launch_ns=pick(calls["start"], launch, NONE),
        launch_thread=pick(calls["thread"], launch, NONE),
        captured_ns=pick(nodes["start"], captured, NONE),
        captured_thread=pick(nodes["thread"], captured, NONE),
    )


def _names(export: Export, kind: Bytes, ids: Ints) -> tuple[tuple[str, ...], Ints]:
    """Names by kind and id, and every row's index into them. Ids of different kinds may have the same name."""
    index: dict[str, int] = {}
    name = np.zeros(len(ids), np.int64)
    for activity in columns.ACTIVITIES:
        rows = kind == activity
        distinct, place = places(ids[rows])
        if activity == KERNEL:
            texts = tables.strings(export, distinct.tolist())
            labels = [texts.get(id_, f"(kernel without a name, {id_})") for id_ in distinct.tolist()]
        elif activity == COPY:
            words = dict(enumerate(_COPIES.split(", "), 1))
            labels = [f"[CUDA memcpy {words.get(id_, f'kind {id_}')}]" for id_ in distinct.tolist()]
        else:
            labels = ["[CUDA memset]"] * len(distinct)
        name[rows] = np.array([index.setdefault(label, len(index)) for label in labels], np.int64)[place]
    return tuple(index), name


def _replays(export: Export, names: Ints) -> Any:
    """Which API calls launch a CUDA graph."""
    distinct, place = places(names)
    texts = tables.strings(export, distinct.tolist())
    return np.array(["GraphLaunch" in texts.get(id_, "") for id_ in distinct.tolist()], np.bool_)[place]


def _texts(export: Export, rows: Columns) -> tuple[Ranges, list[str]]:
    """The ranges, and sentences on those that are left out."""
    is_range = np.isin(rows["kind"], tables.range_types(export))
    is_open = is_range & (rows["end"] == NONE)
    wrong = is_range & ~is_open & (rows["end"] < rows["start"])
    sound = is_range & ~is_open & ~wrong
    inline = rows["text"].index
    ids, place = places(np.where(inline == NONE, rows["text_id"], NONE))
    texts = tables.strings(export, ids.tolist())
    index: dict[str, int] = {}
    of_inline = [index.setdefault(text.decode("utf-8", "replace"), len(index)) for text in rows["text"].distinct]
    of_id = [index.setdefault(texts.get(id_, ""), len(index)) for id_ in ids.tolist()]
    registered = np.array(of_id, np.int64)[place]
    name = np.where(inline == NONE, registered, pick(np.array(of_inline, np.int64), inline, NONE))
    table = {"name": name, "start_ns": rows["start"], "end_ns": rows["end"], "thread": rows["thread"]}
    notes = _note("{} NVTX ranges do not end within the recording", is_open) + _note(
        "{} NVTX ranges end before they start", wrong
    )
    return ranges(tuple(index), **{key: column[sound] for key, column in table.items()}), notes


def _note(sentence: str, rows: Any) -> list[str]:
    count = int(np.count_nonzero(rows))
    return [f"{sentence.format(f'{count:,}')} and are left out."] if count else []


def _missing(table: Kernels, export: Export) -> list[str]:
    """Sentences on what the export lacks."""
    notes = []
    alone = int(np.count_nonzero(table.launch_ns == NONE))
    if alone:
        notes.append(f"The launches of {alone:,} of {len(table):,} kernels, copies and sets are not in the recording.")
    nodes = table.graph_node != NONE
    unknown = int(np.count_nonzero(nodes & (table.captured_ns == NONE)))
    if unknown:
        notes.append(
            f"The capture of {unknown:,} of {np.count_nonzero(nodes):,} kernels, copies and sets of CUDA graphs is not "
            "in the recording."
        )
    if not export.has(tables.NVTX):
        notes.append("The recording has no NVTX ranges.")
    return notes


def _source(export: Export) -> TraceSource:
    version, gpus = None, []
    if {"name", "value"} <= set(export.columns.get(tables.EXPORT, ())):
        marks = ",".join("?" * len(tables.VERSIONS))
        facts = dict(export.rows(f"SELECT name, value FROM {tables.EXPORT} WHERE name IN ({marks})", tables.VERSIONS))
        version = next((facts[name] for name in tables.VERSIONS if facts.get(name)), None)
    if "name" in export.columns.get(tables.GPUS, ()):
        gpus = [str(name) for (name,) in export.rows(f"SELECT name FROM {tables.GPUS} WHERE name IS NOT NULL")]
    return TraceSource("nsys sqlite", version, tuple(gpus))
