"""Reads columns of an SQLite table from its pages, with array operations on thousands of rows at once.

SQLite hands a table over cell by cell, which is most of the time of reading a trace of a million kernels. A table is a
B-tree whose leaves hold its rows, as sqlite.org/fileformat2.html describes. Only plain tables are decoded here. For
anything else `columns` gives None, and SQLite itself has to read the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_eval.traces.kernel_table import NONE, Ints

Bytes = npt.NDArray[np.uint8]

_INTERIOR, _LEAF = 5, 13  # kinds of pages of tables
_BLOCK = 1 << 20  # bytes of pages that are decoded at once: their arrays stay in the processor's cache
_HEADER = 64  # bytes of a row's header that are read at once
_WORD = 8
_VARINT = 9  # bytes that a number of variable length has at most
_UTF_8 = 1
# bytes of a value by its serial type. 0 is NULL, 7 a float, 8 and 9 are the numbers 0 and 1, 12 and above texts
_WIDTHS = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0], np.uint8)
_NULL, _FLOAT, _ZERO, _ONE, _TEXT = 0, 7, 8, 9, 12
_SHIFTS = (64 - 8 * np.maximum(_WIDTHS, 1)).astype(np.int64)


class _UnsuitableTableError(Exception):
    """The table has something that is not decoded here."""


@dataclass(frozen=True)
class Texts:
    """Distinct texts, and every row's `index` into them, NONE where a row has none or an empty one."""

    distinct: list[bytes]
    index: Ints


@dataclass(frozen=True)
class _Wanted:
    """Places of columns in a row, from 0: of numbers with what stands for NULL, and of a text, NONE for no text."""

    numbers: Mapping[int, int]
    text: int
    usable: int  # bytes of a page


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
    columns = _Wanted(numbers, text, size - head[20])
    if text != NONE and int.from_bytes(head[56:60], "big") != _UTF_8:
        return None
    try:
        leaves = _leaves(path, root, size)
        step = max(1, _BLOCK // size)
        blocks = [leaves[at : at + step] for at in range(0, len(leaves), step)]
        parts = list(run.map(lambda pages: _decoded(_pages(path, pages, size), size, columns), blocks))
    except (_UnsuitableTableError, IndexError):
        return None
    by_place = {place: np.concatenate([columns[place] for columns, _ in parts]) for place in numbers}
    return by_place, joined([texts for _, texts in parts])


def joined(parts: list[Texts]) -> Texts:
    """Texts of rows that follow each other."""
    index: dict[bytes, int] = {}
    codes = [np.zeros(0, np.int64)]
    for part in parts:
        number = np.array([*(index.setdefault(text, len(index)) for text in part.distinct), NONE], np.int64)
        codes.append(number[part.index])  # NONE is -1, the last
    return Texts(list(index), np.concatenate(codes))


def _pages(path: Path, numbers: Ints, size: int) -> Bytes:
    """Pages of a file one after the other, and a header's length of zeros, so that all offsets can be read from."""
    block = np.zeros(len(numbers) * size + _HEADER, np.uint8)
    first = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)  # of every run of neighbours
    with path.open("rb", buffering=0) as file:
        for begin, end in zip(first.tolist(), [*first[1:].tolist(), len(numbers)], strict=True):
            file.seek(int(numbers[begin]) * size, os.SEEK_SET)
            if file.readinto(block[begin * size : end * size].data) != (end - begin) * size:
                raise _UnsuitableTableError
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
        raise _UnsuitableTableError
    count = int(page[3]) << 8 | int(page[4])
    cells = page[12 : 12 + 2 * count].view(">u2").astype(np.int64)
    left = page[cells[:, None] + np.arange(4)].reshape(-1)
    children: Ints = np.append(left, page[8:12]).view(">u4").astype(np.int64) - 1
    return children


def _decoded(block: Bytes, size: int, columns: _Wanted) -> tuple[dict[int, Ints], Texts]:
    """The columns of the rows on some leaves."""
    payload, at = _varints(block, _cells(block, size))
    _, header = _varints(block, at)
    if payload.max(initial=0) > columns.usable - 35:  # the rest of such a row is on a page of its own
        raise _UnsuitableTableError
    texts = Texts([], np.full(len(header), NONE, np.int64))
    if not len(header):
        return dict.fromkeys(columns.numbers, texts.index), texts
    values: dict[int, Ints] = {}
    offset = header + block[header]
    for place, kind in enumerate(_kinds(block, header, max(*columns.numbers, columns.text) + 1)):
        width = _WIDTHS.take(kind, mode="clip")
        if kind.max() >= _TEXT:
            width = np.where(kind >= _TEXT, (kind - _TEXT) >> 1, width)
        if place in columns.numbers:
            values[place] = _values(block, offset, kind, columns.numbers[place])
        elif place == columns.text:
            texts = _texts(block, offset, kind, width)
        offset += width
    return values, texts


def _kinds(block: Bytes, header: Ints, count: int) -> Iterator[Ints | Bytes]:
    """The serial types of the first columns: of all rows, or a single one where all have the same."""
    rows = np.ndarray((len(block) - _HEADER + 1,), f"V{_HEADER}", block, strides=(1,))[header]
    words = rows.view(np.uint64).reshape(len(header), -1)
    first: Bytes = rows.view(np.uint8).reshape(len(header), -1)
    varies = np.bitwise_or.reduce(words ^ words[0], axis=0).view(np.uint8) != 0
    if first[:, 0].max() > 127:  # a header whose length takes two bytes
        raise _UnsuitableTableError
    at = None  # of the column in the header, once a type before it has taken two bytes
    for place in range(1, count + 1):
        if at is None:
            kind: Bytes = np.full(1, 255, np.uint8)
            if place < _HEADER:
                kind = first[: None if varies[place] else 1, place]
            at = header + place if kind.max() > 127 else None
        if at is None:
            yield kind
        else:
            long_kind, at = _varints(block, at)
            yield long_kind
    if np.any((header + count if at is None else at - 1) >= header + first[:, 0]):  # rows with fewer columns
        raise _UnsuitableTableError


def _cells(block: Bytes, size: int) -> Ints:
    """The offsets of all cells of leaves."""
    starts = np.arange(0, len(block) - _HEADER, size)
    if np.any(block[starts] != _LEAF):
        raise _UnsuitableTableError
    counts = block[starts + 3].astype(np.int64) << 8 | block[starts + 4]
    before = np.cumsum(counts) - counts
    # their offsets within pages stand in two bytes each, from the eighth byte of a page on
    pointers = np.arange(int(counts.sum())) + np.repeat(starts // 2 + 4 - before, counts)
    cells: Ints = block.view(">u2")[pointers].astype(np.int64) + np.repeat(starts, counts)
    return cells


def _varints(block: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """The numbers of variable length at some offsets, and the offsets after them."""
    byte = block[at]
    numbers, after = (byte & 127).astype(np.int64), at + 1
    rows = np.flatnonzero(byte > 127)
    for _ in range(_VARINT - 1):
        if not len(rows):
            break
        byte = block[after[rows]]
        numbers[rows] = numbers[rows] << 7 | byte & 127
        after[rows] += 1
        rows = rows[byte > 127]
    return numbers, after


def _values(block: Bytes, offset: Ints, kind: Ints | Bytes, absent: int) -> Ints:
    """Numbers in two's complement, the highest byte first. `kind`: of every row, or of all."""
    if kind.max() > _ONE or (kind == _FLOAT).any():
        raise _UnsuitableTableError
    constant = {_NULL: absent, _ZERO: 0, _ONE: 1}
    if len(kind) == 1 and int(kind[0]) in constant:
        return np.full(len(offset), constant[int(kind[0])], np.int64)
    words = np.ndarray((len(block) - _WORD + 1,), f"V{_WORD}", block, strides=(1,))[offset]
    numbers: Ints = words.view(">i8").astype(np.int64)
    numbers >>= _SHIFTS.take(kind)
    if len(kind) > 1 and (kind.min() == _NULL or kind.max() > _FLOAT):
        for special, value in constant.items():
            numbers[kind == special] = value
    return numbers


def _texts(block: Bytes, offset: Ints, kind: Ints | Bytes, width: Ints | Bytes) -> Texts:
    if np.any((kind != _NULL) & (kind < _TEXT)):
        raise _UnsuitableTableError
    present = np.flatnonzero(np.broadcast_to(width, offset.shape) * (kind >= _TEXT))
    begins = offset[present]
    ends = begins + np.broadcast_to(width, offset.shape)[present].astype(np.int64)
    content = block.tobytes()
    texts = [content[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    index = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    codes = np.full(len(offset), NONE, np.int64)
    codes[present] = np.fromiter(map(index.__getitem__, texts), np.int64, len(texts))
    return Texts(list(index), codes)
