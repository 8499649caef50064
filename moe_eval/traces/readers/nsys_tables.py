"""The tables of an Nsight Systems export as columns, read side by side and without touching the file.

Tables and columns as docs.nvidia.com/nsight-systems (SQLite Schema Reference) lists them. They come and go with the
version and with what was recorded, so everything is looked up by name and may be absent.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
MEMCPY = "CUPTI_ACTIVITY_KIND_MEMCPY"
MEMSET = "CUPTI_ACTIVITY_KIND_MEMSET"
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
GRAPH_TRACE = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
NODES = "CUDA_GRAPH_NODE_EVENTS"
NVTX = "NVTX_EVENTS"
STRINGS = "StringIds"
EVENT_TYPES = "ENUM_NSYS_EVENT_TYPE"
GPUS = "TARGET_INFO_GPU"
EXPORT = "META_DATA_EXPORT"

# all numbers that this project reads of an export, by table: nothing else is ever selected or copied
_ACTIVITY = "start end deviceId streamId correlationId globalPid"
NUMBERS: Mapping[str, Sequence[str]] = {
    table: names.split()
    for table, names in {
        KERNEL: f"{_ACTIVITY} demangledName shortName graphNodeId gridX gridY gridZ",
        MEMCPY: f"{_ACTIVITY} bytes copyKind graphNodeId",
        MEMSET: f"{_ACTIVITY} bytes graphNodeId",
        RUNTIME: "start end globalTid correlationId nameId",
        GRAPH_TRACE: _ACTIVITY,
        NODES: "start end globalTid graphNodeId originalGraphNodeId",
        NVTX: "start end eventType globalTid textId",
    }.items()
}
# push/pop and start/end ranges of NVTX, push/pop ranges of NVTXT, and their numbers where an export does not name them
RANGE_TYPES = {"NvtxPushPopRange": 59, "NvtxStartEndRange": 60, "NvtxtPushPopRange": 70}
VERSIONS = ("EXPORT_PRODUCT_VERSION", "EXPORT_SCHEMA_VERSION")

_MAGIC = b"SQLite format 3\x00"


@frozen
class Export:
    """An export that can be read.

    Attributes:
        path: its file. `uri`: opens it unchanged.
        columns: of every table that is there, the columns and in the order of a row.
        roots: the first page of every table whose rows hold all its columns as values.
    """

    path: Path
    uri: str
    columns: Mapping[str, Sequence[str]]
    roots: Mapping[str, int]

    def has(self, table: str) -> bool:
        return table in self.columns

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query of a small table. Text that is not UTF-8 is read with replacement characters."""
        with one_sentence(self.path), closing(connect(self.uri)) as connection:
            return connection.execute(sql, values).fetchall()


def open_export(path: Path) -> Export:
    """Look at a file and at its tables. Nothing is written, neither to it nor beside it.

    Raises:
        UsageError: the file is absent, empty, cut short, being written, damaged, or not an export of Nsight Systems.
    """
    _check_file(path)
    # immutable: no locks and no -shm file beside the user's. _check_file has made sure that nothing is pending
    uri = uri_of(path, "mode=ro&immutable=1")
    with one_sentence(path), closing(connect(uri)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {
            name: [column for (column,) in connection.execute("SELECT name FROM pragma_table_info(?)", (name,))]
            for name in names
        }
        # a key stands in place of a row's number, and computed columns need not be stored
        roots = dict(
            connection.execute(
                "SELECT name, rootpage FROM sqlite_master AS t WHERE type = 'table' AND rootpage > 0 AND NOT EXISTS "
                "(SELECT 1 FROM pragma_table_xinfo(t.name) WHERE pk OR hidden)"
            )
        )
    if STRINGS not in columns or not (EXPORT in columns or any(table in columns for table in NUMBERS)):
        raise UsageError(
            f"{path} is an SQLite database but no export of Nsight Systems. Make one with nsys export --type sqlite."
        )
    return Export(path, uri, columns, roots)


def uri_of(path: Path, options: str) -> str:
    return f"file:{quote(str(path.resolve()))}?{options}"


def strings(export: Export, ids: Collection[int]) -> dict[int, str]:
    """The texts of some ids of StringIds. An id that it lacks is left out."""
    numbers = [int(id_) for id_ in ids]
    texts: dict[int, str] = {}
    for at in range(0, len(numbers), 10_000):  # a statement of SQLite holds a million characters
        some = ",".join(map(str, numbers[at : at + 10_000]))
        texts.update(
            export.rows(f"SELECT id, CAST(value AS TEXT) FROM {STRINGS} WHERE id IN ({some}) AND value IS NOT NULL")
        )
    return texts


def range_types(export: Export) -> tuple[int, ...]:
    """Which values of NVTX_EVENTS.eventType are ranges."""
    if not {"id", "name"} <= set(export.columns.get(EVENT_TYPES, ())):
        return tuple(RANGE_TYPES.values())
    marks = ",".join("?" * len(RANGE_TYPES))
    rows = export.rows(f"SELECT CAST(id AS INTEGER) FROM {EVENT_TYPES} WHERE name IN ({marks})", tuple(RANGE_TYPES))
    return tuple(id_ for (id_,) in rows) or tuple(RANGE_TYPES.values())


def connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=0)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return connection


def _check_file(path: Path) -> None:
    with files.opened(path, "Give the .sqlite file that nsys export wrote.") as file:
        header = file.read(100)
        size = os.fstat(file.fileno()).st_size
    again = "Export it again with nsys export --type sqlite"
    if not size:
        raise UsageError(f"{path} is empty (0 bytes). {again}.")
    if header[: len(_MAGIC)] != _MAGIC:
        raise UsageError(f"{path} is not an SQLite database. {again}.")
    # sqlite.org/fileformat.html, 1.3: page size, pages, and whether that number of pages is valid
    page = int.from_bytes(header[16:18], "big")
    whole = (1 << 16 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if len(header) < 100 or (header[24:28] == header[92:96] and size < whole):
        raise UsageError(
            f"{path} is cut short ({size} of {max(whole, 100)} bytes). Copy it whole. {again} if that fails."
        )
    for suffix in ("-wal", "-journal"):
        pending = path.with_name(path.name + suffix)
        if pending.is_file() and pending.stat().st_size:
            raise UsageError(
                f"{path} is still being written, for {pending.name} is beside it. Wait until that is done."
            )
    if header[19] == 1:  # no write-ahead log, of which a look at the lock would leave files beside the database
        _check_lock(path)


def _check_lock(path: Path) -> None:
    try:
        with closing(connect(uri_of(path, "mode=ro"))) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UsageError(
                f"{path} is locked by a program that writes it. Wait until that is done, or read a copy."
            ) from error
    except sqlite3.Error:
        return  # whatever else is wrong with it shows where it is read


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """Turn what is raised of a file into one sentence."""
    try:
        yield
    except PermissionError as error:
        raise UsageError(
            f"{path} may not be read ({error.strerror}). Change its permissions or read a copy."
        ) from error
    except (sqlite3.Error, OSError, ValueError, TypeError, OverflowError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"{path} is damaged or not an export of Nsight Systems ({problem}). Export it again with nsys export "
            "--type sqlite."
        ) from error
