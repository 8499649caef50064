"""Odd databases of Nsight Systems: what is set aside or replaced, and what is refused in one sentence."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.readers import nsys
from tests.doubles import nsys_database
from tests.doubles.sql import ask, change
from tests.traces.readers.conftest import assert_same

COPIES = "CUPTI_ACTIVITY_KIND_MEMCPY"


def test_rows_without_a_sound_end_are_set_aside_and_counted(made: Path) -> None:
    names = ", ".join(f'"{row[1]}"' for row in ask(made, f"PRAGMA table_info({COPIES})"))
    change(
        made,
        "UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = start - 1 WHERE rowid IN (3, 300)",
        f"CREATE TABLE loose AS SELECT {names} FROM {COPIES}",
        f"DROP TABLE {COPIES}",
        f"ALTER TABLE loose RENAME TO {COPIES}",
        f"UPDATE {COPIES} SET end = NULL WHERE rowid = 2",
        f"UPDATE {COPIES} SET start = NULL WHERE rowid = 5",
        "UPDATE NVTX_EVENTS SET end = NULL WHERE rowid IN (1, 2)",
        "UPDATE NVTX_EVENTS SET end = start - 5 WHERE rowid = 3",
    )
    trace = nsys.read(made)
    assert len(trace.kernels) == 640 - 4
    assert len(trace.ranges) == 122 - 3
    assert np.all(trace.kernels.duration_ns >= 0)
    assert trace.notes[0] == "4 of 640 kernels, copies and sets have no end or one before their start and are left out."
    assert trace.notes[-2:] == (
        "2 NVTX ranges do not end within the recording and are left out.",
        "1 NVTX ranges end before they start and are left out.",
    )


def test_hostile_names_come_through_as_they_are(made: Path) -> None:
    hostile = ["x" * 100_000, "a'b\"c\td\n</td><script>\x01", "한국어 μ", ""]
    ids = [each for (each,) in ask(made, "SELECT DISTINCT demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL")]
    connection = sqlite3.connect(made)
    connection.executemany("UPDATE StringIds SET value = ? WHERE id = ?", zip(hostile, ids, strict=False))
    connection.execute("UPDATE StringIds SET value = x'fffe41' WHERE id = ?", (ids[4],))
    connection.execute("DELETE FROM StringIds WHERE id = ?", (ids[5],))
    connection.execute("UPDATE NVTX_EVENTS SET text = x'ff42' WHERE rowid = 1")
    connection.commit()
    connection.close()
    trace = nsys.read(made)
    assert {*hostile, "\ufffd\ufffdA", f"(kernel without a name, {ids[5]})"} <= set(trace.kernels.names)
    assert "\ufffdB" in trace.ranges.names


def test_a_table_without_its_column_of_texts_reads_as_one_whose_texts_are_empty(made: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copy(made, tmp_path / "renamed.sqlite"))
    change(made, "UPDATE NVTX_EVENTS SET text = NULL")
    change(renamed, "ALTER TABLE NVTX_EVENTS RENAME COLUMN text TO words")
    assert_same(nsys.read(made), nsys.read(renamed))


@pytest.mark.parametrize("wrong", ["correlationId", "globalPid", "graphNodeId", "deviceId", "demangledName", "gridX"])
def test_numbers_out_of_bounds_raise_nothing_else(made: Path, wrong: str) -> None:
    change(made, f"UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET {wrong} = 9223372036854775807 - rowid % 2 WHERE rowid % 3 = 0")
    assert len(nsys.read(made).kernels) == 640


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        nsys.read(path)
    said = str(error.value)
    assert path.name in said
    assert said.count("\n") == 0
    assert said.endswith(".")
    return said


def broken(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for at in range(4096 * 8, len(raw), 4096):
        raw[at : at + 2000] = b"\xa5" * 2000
    path.write_bytes(raw)


def other_database(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE runs (id INTEGER)")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def statement(*sql: str) -> Callable[[Path], None]:
    return lambda path: change(path, *(text.replace("KERNELS", "CUPTI_ACTIVITY_KIND_KERNEL") for text in sql))


VIEW = "CREATE VIEW KERNELS AS SELECT 1 AS rowid, 1 AS start, 2 AS end, 3 AS shortName"
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (
        lambda path: path.write_text("no database, but long enough " * 100),
        "is not an SQLite database",
    ),
    "short": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is cut short"),
    "header only": (lambda path: path.write_bytes(path.read_bytes()[:60]), "is cut short"),
    "broken": (broken, "is damaged"),
    "other database": (other_database, "no export of Nsight Systems"),
    "no kernels": (statement("DROP TABLE KERNELS"), "Three reasons are likely."),
    "no rows": (statement("DELETE FROM KERNELS"), "--trace=cuda"),
    "view": (statement("DROP TABLE KERNELS", VIEW), "--trace=cuda"),
    "words for numbers": (statement("UPDATE KERNELS SET start = 'soon' WHERE rowid = 20"), "is damaged"),
    "folder": (a_folder, "is a folder"),
    "absent": (Path.unlink, "does not exist"),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT.values(), ids=SPOILT)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    made: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(made)
    assert sentence in refused(made)


def test_graphs_recorded_as_a_whole_are_refused_with_the_option_that_helps(made: Path) -> None:
    rank = nsys_database.Rank(0)
    ((replayed,),) = ask(made, "SELECT max(correlationId) FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE graphNodeId NOT NULL")
    names = nsys_database.TABLES["CUPTI_ACTIVITY_KIND_GRAPH_TRACE"].replace("!", "").replace(" ", ", ")
    change(
        made,
        f"CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE ({names})",
        f"INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (1, 2, 0, 1, NULL, 7, {replayed}, {rank.pid}, 1, 1)",
    )
    assert len(nsys.read(made).kernels) == 640  # the kernels inside are there as well
    change(made, f"DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE correlationId = {replayed} AND globalPid = {rank.pid}")
    assert "--cuda-graph-trace=node" in refused(made)
    change(made, "DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL")
    assert "--cuda-graph-trace=node" in refused(made)


def test_a_database_that_is_being_written_is_refused(made: Path) -> None:
    writer = sqlite3.connect(made, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    assert "is locked" in refused(made)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = start + 1")
    assert "still being written" in refused(made)
    writer.execute("ROLLBACK")
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = start + 1")
    assert "still being written" in refused(made)
    writer.close()
    assert len(nsys.read(made).kernels) == 640
