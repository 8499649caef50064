"""Copies an Nsight Systems export without its facts about the machine, the user and the profiled process.

An export holds that process's environment, command line, host name, threads and paths. The copy is made of numbers and
of the texts that say what ran: names of kernels, of API calls, of GPUs and of the ranges that are asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from functools import cache
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.traces.readers import nsys_tables as tables
from moe_eval.traces.readers.nsys_tables import Export


def copy(source: Path, target: Path, keep: Callable[[str], bool]) -> None:
    """Write a new database that nsys.read reads as it reads the source, with the NVTX ranges whose text is to be kept.

    Raises:
        UsageError: the source is not an export that can be read, or the target exists or cannot be written.
    """
    export = tables.open_export(source)
    if target.exists():
        raise UsageError(f"{target} exists already. Give a name that is free.")
    try:
        with closing(sqlite3.connect(tables.uri_of(target, "mode=rwc"), uri=True)) as database:
            database.execute("PRAGMA secure_delete = ON")
            database.execute("ATTACH ? AS source", (export.uri,))
            _fill(database, export, keep)
            database.commit()
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise UsageError(f"{source} cannot be copied to {target} ({error}). Mend what that says.") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _fill(database: sqlite3.Connection, export: Export, keep: Callable[[str], bool]) -> None:
    for table, numbers in tables.NUMBERS.items():
        if export.has(table) and table != tables.NVTX:
            _numbers(database, table, [column for column in numbers if column in export.columns[table]])
    _ranges(database, export, keep)
    _strings(database, export)
    _texts(database, export, tables.EXPORT, "name, value", tables.VERSIONS)
    _texts(database, export, tables.GPUS, "name", ())
    _texts(database, export, tables.EVENT_TYPES, "id, name", tables.RANGE_TYPES)


def _numbers(database: sqlite3.Connection, table: str, columns: list[str]) -> None:
    """SQLite keeps a text in a column of numbers, so every value is made a number."""
    values = {column: f'CAST("{column}" AS INTEGER)' for column in columns}
    if {"demangledName", "shortName"} <= values.keys():  # of two names only the one that is read
        values["demangledName"] = f"COALESCE({values['demangledName']}, {values.pop('shortName')})"
    declared = ", ".join(f'"{column}" INTEGER' for column in values)
    database.execute(f'CREATE TABLE "{table}" ({declared})')
    database.execute(f'INSERT INTO main."{table}" SELECT {", ".join(values.values())} FROM source."{table}"')


def _ranges(database: sqlite3.Connection, export: Export, keep: Callable[[str], bool]) -> None:
    """Ranges with their texts in the row, so that StringIds need not hold them."""
    columns = export.columns.get(tables.NVTX)
    if columns is None:
        return

    @cache
    def is_kept(text: bytes) -> bool:
        return bool(keep(text.decode("utf-8", "replace")))

    database.create_function("kept", 1, is_kept, deterministic=True)
    numbers = [column for column in tables.NUMBERS[tables.NVTX] if column in columns and column != "textId"]
    inline = "NULLIF(CAST(text AS TEXT), '')" if "text" in columns else "NULL"
    registered = (
        f"(SELECT CAST(value AS TEXT) FROM source.{tables.STRINGS} AS strings WHERE strings.id = textId)"
        if "textId" in columns
        else "NULL"
    )
    text = f"COALESCE({inline}, {registered}, '')"
    kinds = ",".join(map(str, tables.range_types(export)))
    names = ", ".join(f'"{column}" INTEGER' for column in numbers)
    values = ", ".join(f'CAST("{column}" AS INTEGER)' for column in numbers)
    database.execute(f"CREATE TABLE {tables.NVTX} ({names}, text TEXT)")
    database.execute(
        f"INSERT INTO main.{tables.NVTX} SELECT {values}, {text} FROM source.{tables.NVTX} "
        f"WHERE eventType IN ({kinds}) AND kept(CAST({text} AS BLOB))"
    )


def _strings(database: sqlite3.Connection, export: Export) -> None:
    """The texts that kernels and API calls are named by, and no other."""
    name_columns = [(tables.KERNEL, "demangledName"), (tables.KERNEL, "shortName"), (tables.RUNTIME, "nameId")]
    here = {
        table: {name for (name,) in database.execute("SELECT name FROM pragma_table_info(?, 'main')", (table,))}
        for table in (tables.KERNEL, tables.RUNTIME)
    }
    used = " UNION ".join(f'SELECT "{name}" FROM main."{table}"' for table, name in name_columns if name in here[table])
    database.execute(f"CREATE TABLE {tables.STRINGS} (id INTEGER PRIMARY KEY, value TEXT)")
    database.execute(
        f"INSERT INTO main.{tables.STRINGS} SELECT id, CAST(value AS TEXT) FROM source.{tables.STRINGS} "
        f"WHERE id IN ({used or 'NULL'})"
    )


def _texts(database: sqlite3.Connection, export: Export, table: str, columns: str, names: Collection[str]) -> None:
    """A small table's rows of these names, or all rows where no names are given."""
    if set(columns.split(", ")) <= set(export.columns.get(table, ())):
        where = f"WHERE name IN ({','.join('?' * len(names))})" if names else ""
        database.execute(f"CREATE TABLE {table} ({columns})")
        database.execute(f"INSERT INTO main.{table} SELECT {columns} FROM source.{table} {where}", tuple(names))
