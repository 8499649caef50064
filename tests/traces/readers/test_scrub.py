"""What a copy of an Nsight Systems export holds: all that the reader reads, and no text that could be a secret."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.readers import nsys, scrub
from tests.conftest import ROOT
from tests.doubles import nsys_database
from tests.traces.readers.conftest import assert_same

SHARED = ROOT.parent / "shared" / "data" / "nsys"
# texts that are meant to come along, where a row is asked for
WANTED = {("TARGET_INFO_GPU", "name")}


def keep(text: str) -> bool:
    return "_forward_step" in text or "'Module': 'Qwen3" in text


def of_the_project(path: Path) -> None:
    nsys_database.write(path)


def of_the_real_schema(path: Path) -> None:
    """The generated rows in tables with all columns of a real export, beside that export's other tables."""
    schema = SHARED / "schema_3.25.0.sql"
    if not schema.is_file():
        pytest.skip("shared data absent: the DDL of a real export is not beside the checkout")
    after = path.with_name("other.sqlite")
    nsys_database.write(after)
    with closing(sqlite3.connect(path)) as database:
        database.executescript(schema.read_text())
        database.execute("ATTACH ? AS other", (str(after),))
        for (table,) in database.execute("SELECT name FROM other.sqlite_master WHERE type = 'table'").fetchall():
            columns = ", ".join(f'"{row[1]}"' for row in database.execute(f"PRAGMA other.table_info({table})"))
            database.execute(f"CREATE TABLE IF NOT EXISTS main.{table} AS SELECT * FROM other.{table} WHERE 0")
            database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM other.{table}")
        database.commit()
    after.unlink()


class Tokens:
    """Distinct words that no copy may hold."""

    def __init__(self) -> None:
        self.all: list[str] = []

    def __call__(self, place: str) -> str:
        self.all.append(f"hf_{hashlib.sha256(f'{place} {len(self.all)}'.encode()).hexdigest()[:20]}")
        return self.all[-1]


def plant(path: Path) -> list[str]:
    """Put words in every column of text, in strings that name nothing, in columns of numbers, and in deleted rows."""
    token = Tokens()
    with closing(sqlite3.connect(path)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = database.execute(f"PRAGMA table_info({table})").fetchall()
            kinds = {row[1]: row[2] for row in rows}
            texts = [name for name, kind in kinds.items() if kind == "TEXT" and (table, name) not in WANTED]
            if table == "CUPTI_ACTIVITY_KIND_KERNEL":  # further kernels would be read
                for name in texts:
                    database.execute(f"UPDATE {table} SET {name} = ? WHERE rowid % 50 = 0", (token(name),))
            elif texts:
                values = {name: token(f"{table}.{name}") if name in texts else 40_000_000 for name in kinds}
                if table == "NVTX_EVENTS":
                    values["eventType"] = 59
                names, marks = ",".join(f'"{each}"' for each in values), ",".join("?" * len(values))
                database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))
        # the texts of a range beside those of one that is kept
        for name in ("jsonText", "binaryData"):
            database.execute(f"UPDATE NVTX_EVENTS SET {name} = ? WHERE {name} IS NULL", (token(name),))
        for id_, place in enumerate(["thread", "process", "stdout", "registered range", "mangled"], 50_000_000):
            database.execute("INSERT INTO StringIds VALUES (?, ?)", (id_, token(place)))
        database.execute("INSERT INTO NVTX_EVENTS (start, end, eventType, textId) VALUES (1, 2, 59, 50000003)")
        database.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET mangledName = 50000004")
        database.execute("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_PARAM_INPUT_FILE', ?)", (token("path"),))
        database.execute(
            "INSERT INTO META_DATA_CAPTURE VALUES ('ENVIRONMENT', ?)", (f"HF_TOKEN={token('environment')}",)
        )
        # SQLite keeps a text that is no number in a column of numbers
        database.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET contextId = ?", (token("context"),))
        # free pages of the file keep what was in them
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("CREATE TABLE gone (value TEXT)")
        database.executemany("INSERT INTO gone VALUES (?)", [(token("deleted"),) for _ in range(50)])
        database.commit()
        database.execute("DROP TABLE gone")
        database.commit()
    return token.all


@pytest.mark.parametrize("make", [of_the_project, of_the_real_schema])
def test_no_planted_word_is_in_the_bytes_of_the_copy(tmp_path: Path, make: Callable[[Path], None]) -> None:
    source, target = tmp_path / "made.sqlite", tmp_path / "copy.sqlite"
    make(source)
    tokens = plant(source)
    original = source.read_bytes()
    assert len(tokens) > 60
    assert [each for each in tokens if each.encode() not in original] == []
    assert_same(copied(source, target), filtered(nsys.read(source)))
    raw = target.read_bytes()
    assert [each for each in tokens if each.encode() in raw or each.encode("utf-16-le") in raw] == []
    assert source.read_bytes() == original
    assert sorted(os.listdir(tmp_path)) == ["copy.sqlite", "made.sqlite"]


def test_a_text_in_a_column_of_numbers_does_not_come_along(made: Path, tmp_path: Path) -> None:
    tables = {
        "CUPTI_ACTIVITY_KIND_KERNEL": "streamId",
        "CUPTI_ACTIVITY_KIND_MEMCPY": "bytes",
        "NVTX_EVENTS": "globalTid",
    }
    with closing(sqlite3.connect(made)) as database:
        for table, column in tables.items():
            database.execute(f"UPDATE {table} SET {column} = 'hf_secret' WHERE rowid % 5 = 0")
        database.commit()
    scrub.copy(made, tmp_path / "copy.sqlite", keep)
    assert b"hf_secret" in made.read_bytes()
    assert b"hf_secret" not in (tmp_path / "copy.sqlite").read_bytes()


def test_every_text_of_the_copy_is_one_of_those_asked_for(made: Path, tmp_path: Path) -> None:
    plant(made)
    trace = copied(made, tmp_path / "copy.sqlite")
    allowed = {*trace.kernels.names, *trace.ranges.names, *trace.source.gpus, "2026.2.1.210", "3.25.0"}
    allowed |= {"EXPORT_PRODUCT_VERSION", "EXPORT_SCHEMA_VERSION", *nsys_database.EVENT_TYPES.values()}
    calls = re.compile(r"cuda[A-Z]\w+_v\d+")
    with closing(sqlite3.connect(tmp_path / "copy.sqlite")) as database:
        copied_texts = set(texts(database))
    assert {each for each in copied_texts if not calls.fullmatch(each)} <= allowed
    assert "[Executor] _forward_step 7: 0 ctx reqs, 8 gen reqs" in copied_texts


def texts(database: sqlite3.Connection) -> Iterator[str]:
    for (table,) in database.execute("SELECT name FROM sqlite_master").fetchall():
        for row in database.execute(f'SELECT * FROM "{table}"'):
            yield from (each for each in row if not isinstance(each, int | None))


def copied(source: Path, target: Path) -> Trace:
    scrub.copy(source, target, keep)
    return nsys.read(target)


def filtered(trace: Trace) -> Trace:
    rows = np.array([keep(trace.ranges.names[name]) for name in trace.ranges.name], np.bool_)
    return replace(trace, ranges=trace.ranges.take(rows))


@pytest.mark.parametrize("name", ["h100_2gpu_1s", "mock"])
def test_a_real_export_reads_alike(tmp_path: Path, name: str) -> None:
    source = SHARED / f"{name}.sqlite"
    if not source.is_file():
        pytest.skip(f"shared data absent: the real export {name}.sqlite is not beside the checkout")
    scrub.copy(source, tmp_path / "copy.sqlite", lambda text: True)
    assert_same(nsys.read(tmp_path / "copy.sqlite"), nsys.read(source))


@pytest.mark.parametrize("options", [{"schema": "2022"}, {"graph": False}, {"nvtx": False}])
def test_other_schemas_read_alike(tmp_path: Path, options: dict[str, object]) -> None:
    source = tmp_path / "made.sqlite"
    nsys_database.write(source, **options)  # type: ignore[arg-type]
    assert_same(copied(source, tmp_path / "a b?#.sqlite"), filtered(nsys.read(source)))


def test_short_names_stand_in_where_the_schema_has_no_others(made: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(made)) as database:
        database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME COLUMN demangledName TO someName")
        database.commit()
    assert_same(copied(made, tmp_path / "copy.sqlite"), filtered(nsys.read(made)))


def test_a_target_that_exists_or_cannot_be_made_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.sqlite").write_text("theirs")
    with pytest.raises(UsageError, match="exists already"):
        scrub.copy(made, tmp_path / "copy.sqlite", keep)
    assert (tmp_path / "copy.sqlite").read_text() == "theirs"
    with pytest.raises(UsageError, match="cannot be copied"):
        scrub.copy(made, tmp_path / "nowhere" / "copy.sqlite", keep)
    (tmp_path / "text.sqlite").write_text("no database")
    with pytest.raises(UsageError, match="not an SQLite database"):
        scrub.copy(tmp_path / "text.sqlite", tmp_path / "other.sqlite", keep)
    assert not (tmp_path / "other.sqlite").exists()


def test_a_copy_that_breaks_off_leaves_nothing(made: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(made)) as database:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'CUPTI_ACTIVITY_KIND_RUNTIME'"
        ((page,),) = database.execute(sql).fetchall()
    raw = bytearray(made.read_bytes())
    raw[4096 * (page - 1) : 4096 * page] = b"\xa5" * 4096
    made.write_bytes(raw)
    with pytest.raises(UsageError, match="cannot be copied") as error:
        scrub.copy(made, tmp_path / "copy.sqlite", keep)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["made.sqlite"]
