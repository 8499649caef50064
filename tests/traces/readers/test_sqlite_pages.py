"""Columns from the pages of a database, against what SQLite itself reads of it."""

from __future__ import annotations

import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from moe_eval.traces.kernel_table import NONE
from moe_eval.traces.readers import sqlite_pages

EDGES = [0, 1, -1, *(sign * (1 << bits) + by for bits in (7, 15, 23, 31, 47, 62) for sign in (1, -1) for by in (-1, 0))]
NUMBERS = {0: 7, 2: NONE, 5: 0}  # places of columns, with what stands for NULL
TEXT = 3


def write(path: Path, rows: list[tuple[object, ...]], *before: str, declared: str = "a, b, c, d, e, f, g") -> int:
    """Write a table, and return its first page."""
    with closing(sqlite3.connect(path)) as database:
        for statement in before:
            database.execute(statement)
        database.execute(f"CREATE TABLE t ({declared})")
        database.executemany(f"INSERT INTO t VALUES ({','.join('?' * len(declared.split(', ')))})", rows)
        database.execute("DELETE FROM t WHERE rowid % 11 = 3")
        database.commit()
        return int(database.execute("SELECT rootpage FROM sqlite_master WHERE name = 't'").fetchone()[0])


def rows(count: int) -> list[tuple[object, ...]]:
    """Rows of numbers of all widths, with texts of up to 300 bytes and values that nobody reads."""
    draw = random.Random(count)
    numbers = [*EDGES, None]
    texts = [None, "", "x", "größer" * 9, "y" * 57, "y" * 58, "z" * 300]
    return [
        (draw.choice(numbers), None, draw.choice(numbers), draw.choice(texts), 0.5, draw.choice(numbers), b"blob")
        for _ in range(count)
    ]


def read(path: Path, root: int) -> tuple[dict[int, list[int]], list[bytes | None]] | None:
    with ThreadPoolExecutor(2) as pool:
        parts = sqlite_pages.columns(path, root, NUMBERS, TEXT, pool)
    if parts is None:
        return None
    by_place, texts = parts
    return (
        {place: column.tolist() for place, column in by_place.items()},
        [texts.distinct[at] if at != NONE else None for at in texts.index.tolist()],
    )


def by_sqlite(path: Path) -> tuple[dict[int, list[int]], list[bytes | None]]:
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        table = database.execute("SELECT a, c, f, d FROM t").fetchall()
    numbers = zip(NUMBERS.items(), range(3), strict=True)
    columns = {place: [absent if row[at] is None else row[at] for row in table] for (place, absent), at in numbers}
    return columns, [row[3] or None for row in table]


@pytest.mark.parametrize("count", [0, 1, 40, 5000])
@pytest.mark.parametrize("size", [512, 4096, 65536])
def test_columns_are_those_of_sqlite(count: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_pages, "_BLOCK", 1 << 15)
    path = tmp_path / "t.sqlite"
    table = [row for row in rows(count) if size > 512 or len(row[3] or "") < 100]
    assert read(path, write(path, table, f"PRAGMA page_size = {size}")) == by_sqlite(path)


def test_a_table_among_others_and_of_many_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    declared = ", ".join(f"c{at}" for at in range(90))
    with closing(sqlite3.connect(path)) as database:
        for name in ("s", "t"):
            database.execute(f"CREATE TABLE {name} ({declared})")
        for at in range(500):  # pages of the two alternate
            for name in ("s", "t"):
                database.execute(
                    f"INSERT INTO {name} VALUES ({','.join('?' * 90)})", [at * place for place in range(90)]
                )
        database.commit()
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 't'").fetchone()
    with ThreadPoolExecutor(2) as pool:
        parts = sqlite_pages.columns(path, root, {0: NONE, 70: NONE, 89: NONE}, NONE, pool)
    assert parts is not None
    for place, column in parts[0].items():
        np.testing.assert_array_equal(column, np.arange(500) * place)


@pytest.mark.parametrize(
    ("row", "before", "declared"),
    [
        ((0.5, *[1] * 6), (), "a, b, c, d, e, f, g"),  # a float among the numbers
        (("12", *[1] * 6), (), "a, b, c, d, e, f, g"),  # a text among them
        ((1, 1, 1, 5, 1, 1, 1), (), "a, b, c, d, e, f, g"),  # a number among the texts
        ((1, 1, 1, "x" * 9000, 1, 1, 1), (), "a, b, c, d, e, f, g"),  # a row that goes on elsewhere
        ((1, 1, 1, "x", 1, 1, 1), ("PRAGMA encoding = 'UTF-16'",), "a, b, c, d, e, f, g"),
        ((1, 1, 1, "x", 1), (), "a, b, c, d, e"),  # fewer columns, as before ALTER TABLE
    ],
)
def test_what_is_not_plain_is_left_to_sqlite(
    row: tuple[object, ...], before: tuple[str, ...], declared: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.sqlite"
    assert read(path, write(path, [row], *before, declared=declared)) is None


def test_a_file_that_is_cut_off_is_left_to_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    root = write(path, rows(5000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert read(path, root) is None


def test_a_row_whose_header_is_damaged_is_left_to_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    root = write(path, [(1, None, 2, "y" * 58, 0.5, 3, b"blob")])
    content = path.read_bytes()
    size_of_text = b"\x81\x01"  # 13 + 2 * 58, in 7 bits a byte
    assert content.count(size_of_text) == 1
    for damaged in (b"\xff\x7f", b"\xbf\x7f"):  # more than the page or the block has
        path.write_bytes(content.replace(size_of_text, damaged))
        assert read(path, root) is None
