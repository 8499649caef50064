"""Reads columns of an SQLite table from its pages, with array operations on thousands of rows at once.

SQLite hands a table over cell by cell, which is most of the time of reading a trace of a million kernels. A table is a
B-tree whose leaves hold its rows, as sqlite.org/fileformat2.html describes. Only plain tables are decoded here. For
anything else `columns` gives None, and SQLite itself has to read the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from moe_eval.traces.kernel_table import NONE, Ints
from moe_eval.traces.readers.sqlite_rows import HEADER, Bytes, Texts, UnsuitableTableError, Wanted, decoded

_INTERIOR = 5  # a kind of pages of tables
_BLOCK = 1 << 21  # bytes of pages that are decoded at once: their arrays stay in the processor's cache
_UTF_8 = 1


def columns(
    path: Path, root: int, numbers: Mapping[int, int], text: int, run: Executor
) -> tuple[dict[int, Ints], Texts] | None:
    """Columns of a table by their places, in the order of its rows, None where only SQLite can read them.

    Args:
        root: the number of the table's first page, as sqlite_master has it.
        numbers: the places of columns of whole numbers in a row, from 0, with what stands for NULL. None may be the
            table's key.
        text: the place of a column of texts, NONE for no such column.
        run: its threads decode.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(100)
    size = int.from_bytes(head[16:18], "big")
    size = 1 << 16 if size == 1 else size
    wanted = Wanted(numbers, text, size - head[20])
    if text != NONE and int.from_bytes(head[56:60], "big") != _UTF_8:
        return None
    try:
        leaves = _leaves(path, root, size)
        step = max(1, _BLOCK // size)
        blocks = [leaves[at : at + step] for at in range(0, len(leaves), step)]
        parts = run.map(lambda pages: decoded(_pages(path, pages, size), size, wanted), blocks)
        return _assembled(parts, wanted, len(leaves) * (size // (wanted.count + 5)))
    except (UnsuitableTableError, IndexError):
        return None


def _assembled(
    parts: Iterator[tuple[dict[int, Ints], Texts]], wanted: Wanted, row_limit: int
) -> tuple[dict[int, Ints], Texts]:
    """The columns of blocks, one after the other. `row_limit`: most rows there can be. Unwritten memory is free."""
    by_place = {place: np.empty(row_limit, np.int64) for place in wanted.numbers}
    texts, size = [], 0
    for columns, text in parts:
        end = size + len(columns[min(columns)])
        for place, column in by_place.items():
            column[size:end] = columns[place]
        texts.append(text)
        size = end
    return {place: column[:size] for place, column in by_place.items()}, joined(texts)


def joined(parts: list[Texts]) -> Texts:
    """Texts of rows that follow each other."""
    index: dict[bytes, int] = {}
    codes = [np.zeros(0, np.int64)]
    for part in parts:
        number = np.array([*(index.setdefault(text, len(index)) for text in part.distinct), NONE], np.int64)
        codes.append(number[part.index])  # NONE is -1, the last
    return Texts(list(index), np.concatenate(codes))


def _pages(path: Path, numbers: Ints, size: int) -> Bytes:
    """Pages of a file one after the other, and zeros, so that all offsets can be read from."""
    block = np.empty(len(numbers) * size + HEADER, np.uint8)
    block[-HEADER:] = 0
    first = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)  # of every run of neighbours
    with path.open("rb", buffering=0) as file:
        for begin, end in zip(first.tolist(), [*first[1:].tolist(), len(numbers)], strict=True):
            file.seek(int(numbers[begin]) * size, os.SEEK_SET)
            if file.readinto(block[begin * size : end * size].data) != (end - begin) * size:
                raise UnsuitableTableError
    return block


def _leaves(path: Path, root: int, size: int) -> Ints:
    """The indices of a table's leaves, in the order of its rows."""
    level = np.array([root - 1])
    while _pages(path, level[:1], size)[0] == _INTERIOR:
        level = np.concatenate([_children(_pages(path, np.array([page]), size)) for page in level.tolist()])
    return level


def _children(page: Bytes) -> Ints:
    """The pages below an interior one, as indices."""
    if page[0] != _INTERIOR:
        raise UnsuitableTableError
    count = int(page[3]) << 8 | int(page[4])
    cells = page[12 : 12 + 2 * count].view(">u2").astype(np.int64)
    pointers = page[cells[:, None] + np.arange(4)].reshape(-1)
    children: Ints = np.append(pointers, page[8:12]).view(">u4").astype(np.int64) - 1
    return children
