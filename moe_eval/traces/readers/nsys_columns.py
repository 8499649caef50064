"""Reads columns of an Nsight Systems export into arrays: the queries of each table, and several of them at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from functools import reduce
from typing import Any

import numpy as np

from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints
from moe_eval.traces.readers import nsys_tables as tables
from moe_eval.traces.readers import sqlite_pages
from moe_eval.traces.readers.nsys_tables import Export, connect, one_sentence
from moe_eval.traces.readers.sqlite_pages import joined
from moe_eval.traces.readers.sqlite_rows import Texts

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

_BATCH = 1 << 16  # rows that SQLite hands over at once


Columns = dict[str, Any]  # by name, int64 arrays, and `text` as Texts


@frozen
class Query:
    """Columns of whole numbers of one table by name, and where it has one a column of texts.

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


def plain(table: str, text: str | None = None, **columns: str) -> Query:
    """Columns of a table by the names that they get, and one of texts, which becomes `text`."""
    return Query(table, {name: (column, NONE) for name, column in columns.items()}, text)


def fetch(export: Export, queries: Sequence[Query]) -> list[Columns]:
    """Read tables: from their pages where these are plain, else row by row. Those that the export lacks are empty."""
    workers = max(1, min(8, os.cpu_count() or 1))
    with one_sentence(export.path), ThreadPoolExecutor(workers) as pool:
        return [_of_pages(export, query, pool) or _of_rows(export, query) for query in queries]


def _of_pages(export: Export, query: Query, pool: Executor) -> Columns | None:
    """The columns by way of the table's pages, None where only SQLite can read them."""
    root, columns = export.roots.get(query.table), list(export.columns.get(query.table, ()))
    numbers = {columns.index(column): absent for column, absent in query.numbers.values() if column in columns}
    text = columns.index(query.text) if query.text in columns else NONE
    parts = sqlite_pages.columns(export.path, root, numbers, text, pool) if root and numbers else None
    if parts is None:
        return None
    by_place, texts = parts
    size = len(next(iter(by_place.values())))
    if text == NONE:
        texts = Texts([], np.full(size, NONE, np.int64))
    return ({"text": texts} if query.text else {}) | {
        name: by_place[columns.index(column)] if column in columns else np.full(size, absent, np.int64)
        for name, (column, absent) in query.numbers.items()
    }


def _of_rows(export: Export, query: Query) -> Columns:
    """The columns as SQLite reads them: of tables with keys, computed columns, texts for numbers or long rows."""
    present = export.columns.get(query.table, ())
    values = [
        f'IFNULL("{column}", {absent})' if column in present else str(absent)
        for column, absent in query.numbers.values()
    ]
    text = f"CAST(IFNULL(\"{query.text}\", x'') AS BLOB)" if query.text in present else "x''"
    parts: list[list[Ints]] = [[np.zeros(0, np.int64)] for _ in values]
    texts = [Texts([], np.zeros(0, np.int64))]
    if not export.has(query.table):
        return {name: np.zeros(0, np.int64) for name in query.numbers} | ({"text": texts[0]} if query.text else {})
    with closing(connect(export.uri)) as connection:
        cursor = connection.execute(f'SELECT {", ".join(values)}, {text} FROM "{query.table}"')
        while rows := cursor.fetchmany(_BATCH):
            *numbers, words = zip(*rows, strict=True)
            for part, number in zip(parts, numbers, strict=True):
                part.append(np.array(number, np.int64))
            index: dict[bytes, int] = {}
            codes = np.array([index.setdefault(word, len(index)) if word else NONE for word in words], np.int64)
            texts.append(Texts(list(index), codes))
    return ({"text": joined(texts)} if query.text else {}) | {
        name: np.concatenate(part) for name, part in zip(query.numbers, parts, strict=True)
    }
