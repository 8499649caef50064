"""Reads columns of an Nsight Systems export into arrays: the queries of each table, and several of them at once."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints
from moe_eval.traces.readers import nsys_tables as tables
from moe_eval.traces.readers import sqlite_pages
from moe_eval.traces.readers.nsys_tables import Export, connect, one_sentence

_ACTIVITY = {
    "start": ("start", NONE),
    "end": ("end", NONE),
    "device": ("deviceId", 0),
    "stream": ("streamId", 0),
    "correlation": ("correlationId", NONE),
    "process": ("globalPid", NONE),
    "node": ("graphNodeId", NONE),
}
# ids of names, of which the first that is there counts, and the columns whose product is the size
_NAMES: Mapping[int, Sequence[str]] = {KERNEL: ("demangledName", "shortName"), COPY: ("copyKind",), SET: ()}
_SIZES = {KERNEL: ("gridX", "gridY", "gridZ"), COPY: ("bytes",), SET: ("bytes",)}
ACTIVITIES = {KERNEL: tables.KERNEL, COPY: tables.MEMCPY, SET: tables.MEMSET}
PID = 24  # bits of a thread in globalTid. The bits above them are the process, in globalPid likewise

_PART = 1 << 18  # rows that are worth a query of their own
_BATCH = 1 << 16  # rows that the driver hands over at once. Its own 1,024 take half as long again


Columns = dict[str, Any]  # by name, int64 arrays of numpy, and `text` as an Arrow array of bytes


@dataclass(frozen=True)
class Query:
    """Columns of one table of whole numbers by name, and of a `text` as SQL, which is read as bytes.

    `numbers`: the column of each, and what stands for NULL and for a column that the table lacks.
    """

    table: str
    numbers: Mapping[str, tuple[str, int]]
    text: str | None = None


def activity(kind: int) -> Query:
    """Kernels, copies or sets, of which `activities` makes rows of one form."""
    names = {text: (text, NONE) for text in _NAMES[kind]}
    return Query(ACTIVITIES[kind], _ACTIVITY | names | {text: (text, 0) for text in _SIZES[kind]})


def activities(kind: int, rows: Columns) -> Columns:
    """Rows of one kind: `name` is an id of StringIds or a kind of copy, `size` is in thread blocks or bytes.

    A `duration` is below 0 for a row without start or end, or with an end before its start.
    """
    columns = {name: rows[name] for name in ("start", "device", "stream", "correlation", "node")}
    whole = (rows["start"] != NONE) & (rows["end"] != NONE)
    names = [rows[name] for name in _NAMES[kind]] or [np.zeros(len(whole), np.int64)]
    columns["duration"] = np.where(whole, rows["end"] - rows["start"], -1)
    columns["process"] = rows["process"] >> PID
    columns["name"] = reduce(lambda first, second: np.where(first == NONE, second, first), names)
    columns["size"] = reduce(np.multiply, [rows[size] for size in _SIZES[kind]])
    return columns


def plain(export: Export, table: str, **columns: str) -> Query:
    """Columns of a table by the names that they get, and of NVTX_EVENTS the texts."""
    text = None
    if table == tables.NVTX:
        text = '"text"' if "text" in export.columns.get(table, ()) else "x''"
    return Query(table, {name: (column, NONE) for name, column in columns.items()}, text)


def fetch(export: Export, queries: Sequence[Query]) -> list[Columns]:
    """Read tables: from their pages where these are plain, else through SQLite, side by side and in parts.

    Columns of a table that the export lacks are empty.
    """
    workers = max(1, min(8, os.cpu_count() or 1))
    with one_sentence(export.path), ThreadPoolExecutor(workers) as pool, closing(connect(export.uri)) as connection:
        of_pages = [_of_pages(export, query, pool) for query in queries]
        running = [
            [pool.submit(_select, export, query, *bounds) for bounds in _parts(connection, query.table, workers)]
            if columns is None and export.has(query.table)
            else []
            for query, columns in zip(queries, of_pages, strict=True)
        ]
        return [
            _joined(query, [part.result() for part in results]) if columns is None else columns
            for query, results, columns in zip(queries, running, of_pages, strict=True)
        ]


def _of_pages(export: Export, query: Query, pool: Executor) -> Columns | None:
    """The columns by way of the table's pages, None where only SQLite can read them."""
    root, places = export.roots.get(query.table), list(export.columns.get(query.table, ()))
    present = {places.index(column): absent for column, absent in query.numbers.values() if column in places}
    if root is None or query.text or not present:
        return None
    columns = sqlite_pages.columns(export.path, root, dict(sorted(present.items())), pool)
    if columns is None:
        return None
    by_place = dict(zip(sorted(present), columns, strict=True))
    return {
        name: by_place[places.index(column)] if column in places else np.full(len(columns[0]), absent, np.int64)
        for name, (column, absent) in query.numbers.items()
    }


def encoded(texts: Any) -> tuple[list[str], Ints]:
    """Distinct texts of what `fetch` gave, and every row's index into them, NONE where a row has no text."""
    if not len(texts):
        return [], np.zeros(0, np.int64)
    whole = texts.dictionary_encode().combine_chunks()
    distinct = [text.decode("utf-8", "replace") for text in whole.dictionary.to_pylist()]
    index = np.frombuffer(whole.indices.buffers()[1], np.int32)[whole.indices.offset :][: len(whole)].astype(np.int64)
    empty = np.array([not text for text in distinct], np.bool_)
    return distinct, np.where(empty[index], NONE, index)


def _select(export: Export, query: Query, first: int, last: int) -> Any:
    import adbc_driver_manager
    import adbc_driver_sqlite

    arrow = importlib.import_module("pyarrow")
    declared = export.columns[query.table]
    # none may be NULL: the driver takes the type of the first rows for that of all
    columns = [
        f'{f"""IFNULL("{column}", {absent})""" if column in declared else absent} AS "{name}"'
        for name, (column, absent) in query.numbers.items()
    ]
    # bytes, so that text which is not UTF-8 comes through
    columns += [f"CAST(IFNULL({query.text}, x'') AS BLOB) AS \"text\""] if query.text else []
    with (
        adbc_driver_sqlite.connect(export.uri) as database,
        adbc_driver_manager.AdbcConnection(database) as connection,
        adbc_driver_manager.AdbcStatement(connection) as statement,
    ):
        statement.set_options(**{"adbc.sqlite.query.batch_rows": _BATCH})
        statement.set_sql_query(
            f'SELECT {", ".join(columns)} FROM "{query.table}" WHERE rowid BETWEEN {first} AND {last}'
        )
        stream, _ = statement.execute_query()
        return arrow.RecordBatchReader.from_stream(stream).read_all()


def _joined(query: Query, parts: Sequence[Any]) -> Columns:
    arrow = importlib.import_module("pyarrow")
    columns: Columns = {
        name: integers([chunk for part in parts for chunk in part.column(at).chunks])
        for at, name in enumerate(query.numbers)
    }
    if query.text:
        chunks = [chunk for part in parts if len(part) for chunk in part.column("text").chunks]
        columns["text"] = arrow.chunked_array(chunks, type=arrow.binary())
    return columns


def integers(chunks: Sequence[Any]) -> Ints:
    """By way of the buffers: Arrow's own to_numpy imports pandas."""
    whole = [chunk.cast("int64", safe=False) for chunk in chunks if len(chunk)]
    parts = [np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :][: len(chunk)] for chunk in whole]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _parts(connection: sqlite3.Connection, table: str, limit: int) -> list[tuple[int, int]]:
    # both in one SELECT would walk the whole table
    first, last = (connection.execute(f'SELECT {edge}(rowid) FROM "{table}"').fetchone()[0] for edge in ("min", "max"))
    if first is None:
        return []
    count = min(limit, 1 + (last - first) // _PART)
    edges = [first + (last + 1 - first) * at // count for at in range(count + 1)]
    return [(edges[at], edges[at + 1] - 1) for at in range(count)]
