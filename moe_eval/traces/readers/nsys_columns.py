"""Reads columns of an Nsight Systems export into arrays: the queries of each table, and several of them at once."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints
from moe_eval.traces.readers import nsys_tables as tables
from moe_eval.traces.readers.nsys_tables import Export, connect, one_sentence

ACTIVITIES = {KERNEL: tables.KERNEL, COPY: tables.MEMCPY, SET: tables.MEMSET}
PID = 24  # bits of a thread in globalTid. The bits above them are the process, in globalPid likewise

_PART = 1 << 18  # rows that are worth a query of their own
_BATCH = 1 << 16  # rows that the driver hands over at once. Its own 1,024 take half as long again


Columns = dict[str, Any]  # by name, int64 arrays of numpy, and `text` as an Arrow array of bytes


@dataclass(frozen=True)
class Query:
    """Columns of one table: SQL expressions of integers by name, and of a `text`, which is read as bytes.

    None may be NULL: the driver takes the type of the first rows for that of all.
    """

    table: str
    numbers: Mapping[str, str]
    text: str | None = None


def activity(export: Export, kind: int) -> Query:
    """Kernels, copies or sets: `name` is an id of StringIds or a kind of copy, `size` is in thread blocks or bytes."""
    table = ACTIVITIES[kind]
    present = export.columns.get(table, {})

    def column(name: str, absent: int = NONE) -> str:
        return _number(export, table, name, absent)

    name, size = column("copyKind") if kind == COPY else "0", column("bytes", 0)
    if kind == KERNEL:
        names = [text for text in ("demangledName", "shortName") if text in present]
        name = f"COALESCE({', '.join([*names, '-1', '-1'])})"
        size = " * ".join(column(f"grid{axis}", 0) for axis in "XYZ")
    numbers = {
        "start": column("start"),
        # below 0 for a row without start or end, or with an end before its start
        "duration": 'IFNULL("end" - "start", -1)' if {"start", "end"} <= present.keys() else "-1",
        "device": column("deviceId", 0),
        "stream": column("streamId", 0),
        "correlation": column("correlationId"),
        "process": f"{column('globalPid')} >> {PID}",
        "name": name,
        "node": column("graphNodeId"),
        "size": size,
    }
    return Query(table, numbers)


def plain(export: Export, table: str, **columns: str) -> Query:
    """Columns of a table by the names that they get, and of NVTX_EVENTS the texts."""
    text = None
    if table == tables.NVTX:
        text = '"text"' if "text" in export.columns.get(table, ()) else "x''"
    return Query(table, {name: _number(export, table, column) for name, column in columns.items()}, text)


def _number(export: Export, table: str, column: str, absent: int = NONE) -> str:
    """A column as SQL that is never NULL: `absent` where the column or its value is missing."""
    columns = export.columns.get(table, {})
    if column not in columns:
        return str(absent)
    return f'"{column}"' if columns[column] else f'IFNULL("{column}", {absent})'


def fetch(export: Export, queries: Sequence[Query]) -> list[Columns]:
    """Run queries side by side, those of long tables in parts. Columns of a table that the export lacks are empty."""
    workers = max(1, min(8, os.cpu_count() or 1))
    with one_sentence(export.path), closing(connect(export.uri)) as connection:
        parts = [_parts(connection, query.table, workers) if export.has(query.table) else [] for query in queries]
    with one_sentence(export.path), ThreadPoolExecutor(workers) as pool:
        running = [
            [pool.submit(_select, export.uri, query, *bounds) for bounds in query_parts]
            for query, query_parts in zip(queries, parts, strict=True)
        ]
        return [
            _joined(query, [part.result() for part in results]) for query, results in zip(queries, running, strict=True)
        ]


def encoded(texts: Any) -> tuple[list[str], Ints]:
    """Distinct texts of what `fetch` gave, and every row's index into them, NONE where a row has no text."""
    if not len(texts):
        return [], np.zeros(0, np.int64)
    whole = texts.dictionary_encode().combine_chunks()
    distinct = [text.decode("utf-8", "replace") for text in whole.dictionary.to_pylist()]
    index = np.frombuffer(whole.indices.buffers()[1], np.int32)[whole.indices.offset :][: len(whole)].astype(np.int64)
    empty = np.array([not text for text in distinct], np.bool_)
    return distinct, np.where(empty[index], NONE, index)


def _select(uri: str, query: Query, first: int, last: int) -> Any:
    import adbc_driver_manager
    import adbc_driver_sqlite

    arrow = importlib.import_module("pyarrow")
    columns = [f'{sql} AS "{name}"' for name, sql in query.numbers.items()]
    # bytes, so that text which is not UTF-8 comes through
    columns += [f"CAST(IFNULL({query.text}, x'') AS BLOB) AS \"text\""] if query.text else []
    with (
        adbc_driver_sqlite.connect(uri) as database,
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
