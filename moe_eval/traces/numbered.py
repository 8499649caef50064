"""Traces for others: the whitelist's copy, in which processes and threads are numbered from 0 in their order."""

from __future__ import annotations

import gzip
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.traces.readers import files
from moe_eval.traces.readers.nsys_columns import PID

_BITS = (1 << PID) - 1  # of a thread, and of a process above it
_DIGITS = re.compile(r"\d+$")  # of an id that has a label before it
_Event = dict[str, msgspec.Raw]


def write(source: Path, folder: Path, name: str) -> Path:
    """Write a kept trace again as FOLDER/NAME.json.gz or NAME.sqlite.gz. A breakdown of it stays the same.

    Raises:
        UsageError: the source cannot be read.
    """
    trace = files.keep(source, folder, name, cpu=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".trace-") as scratch:
        plain, packed = Path(scratch) / "plain", Path(scratch) / "packed"
        with gzip.open(trace) as content, plain.open("wb") as out:
            shutil.copyfileobj(content, out)
        try:
            (_renumber_nsys if trace.name.endswith(".sqlite.gz") else _renumber_chrome)(plain)
        except (msgspec.MsgspecError, sqlite3.Error, TypeError, ValueError, RecursionError) as error:
            trace.unlink()
            raise UsageError(
                f"{source} has processes or threads that are no numbers ({error}). Record it again."
            ) from None
        with plain.open("rb") as content, packed.open("wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=0) as target:
            shutil.copyfileobj(content, target)
        packed.replace(trace)
    return trace


def _ranks(numbers: Iterable[int]) -> dict[int, int]:
    return {number: rank for rank, number in enumerate(sorted(set(numbers)))}


def _renumber_nsys(database: Path) -> None:
    """globalPid and globalTid hold the process above the thread's bits, and the machine above both."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = [
            (table, column)
            for table in tables
            for _, column, *_ in connection.execute(f'PRAGMA table_info("{table}")')
            if column in ("globalPid", "globalTid")
        ]
        ids = {
            value
            for table, column in columns
            for (value,) in connection.execute(f'SELECT DISTINCT "{column}" FROM "{table}"')
            if value is not None
        }
        processes, threads = _ranks(value >> PID & _BITS for value in ids), _ranks(value & _BITS for value in ids)

        def renumbered(value: int | None) -> int | None:
            if value is None:
                return None
            return value >> 2 * PID << 2 * PID | processes[value >> PID & _BITS] << PID | threads[value & _BITS]

        connection.create_function("renumbered", 1, renumbered, deterministic=True)
        connection.execute("PRAGMA secure_delete = ON")
        for table, column in columns:
            connection.execute(f'UPDATE "{table}" SET "{column}" = renumbered("{column}")')
        connection.commit()
        connection.execute("VACUUM")


def _renumber_chrome(file: Path) -> None:
    """Numbers stay as they are written: a double would lose nanoseconds."""
    document = msgspec.json.decode(file.read_bytes(), type=dict[str, msgspec.Raw])
    events = msgspec.json.decode(document.get("traceEvents", msgspec.Raw(b"[]")), type=list[_Event])
    for name in ("pid", "tid"):
        ids = [msgspec.json.decode(event[name], type=int | str | None) if name in event else None for event in events]
        digits = {value: int(match[0]) for value in ids if (match := _DIGITS.search(str(value)))}
        ranks = _ranks(digits.values())
        for event, value in zip(events, ids, strict=True):
            if value in digits:
                number = ranks[digits[value]]
                text = number if isinstance(value, int) else _DIGITS.sub(str(number), str(value))
                event[name] = msgspec.Raw(msgspec.json.encode(text))
    document["traceEvents"] = msgspec.Raw(msgspec.json.encode(events))
    file.write_bytes(msgspec.json.encode(document))
