"""Reads whole numbers of an SQLite table from its pages, with array operations on thousands of rows at once.

SQLite hands a table over cell by cell, which is most of the time of reading a trace of a million kernels. A table is a
B-tree whose leaves hold its rows, as sqlite.org/fileformat2.html describes. Only plain tables are decoded here. For
anything else `columns` gives None, and SQLite itself has to read the table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_eval.traces.kernel_table import Ints

Bytes = npt.NDArray[np.uint8]

_INTERIOR, _LEAF = 5, 13  # kinds of pages of tables
_BLOCK = 1 << 20  # bytes of pages that are decoded at once: their arrays stay in the processor's cache
_HEADER = 64  # bytes of a row's header that are read
_WORD = 8
_VARINT = 9  # bytes that a number of variable length has at most
# bytes of a value by its serial type. 0 is NULL, 8 and 9 are the numbers 0 and 1, and 7 is no whole number
_WIDTHS = np.array([0, 1, 2, 3, 4, 6, 8, 0, 0, 0], np.uint8)
_NULL, _FLOAT, _ZERO, _ONE = 0, 7, 8, 9
_SHIFTS = (64 - 8 * np.maximum(_WIDTHS, 1)).astype(np.int64)


class _UnsuitableTableError(Exception):
    """The table has something that is not decoded here."""


def columns(path: Path, root: int, absent: Mapping[int, int], pool: Executor) -> list[Ints] | None:
    """Columns of a table in the order of its rows, None where anything but whole numbers and NULL is in the way.

    Args:
        root: the number of the table's first page, as sqlite_master has it.
        absent: by the places of the columns in a row, from 0 and in ascending order, what stands for NULL in them.
            None may be the table's key.
        pool: its threads decode.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(21)
    size = int.from_bytes(head[16:18], "big")
    size = 1 << 16 if size == 1 else size
    usable = size - head[20]

    def decoded(pages: Ints) -> list[Ints]:
        return _decoded(_pages(path, pages, size), size, usable, absent)

    try:
        leaves = _leaves(path, root, size)
        step = max(1, _BLOCK // size)
        parts = list(pool.map(decoded, [leaves[at : at + step] for at in range(0, len(leaves), step)]))
    except (_UnsuitableTableError, IndexError):
        return None
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


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


def _decoded(block: Bytes, size: int, usable: int, absent: Mapping[int, int]) -> list[Ints]:
    """The columns of the rows on some leaves."""
    payload, at = _varints(block, _cells(block, size))
    _, header = _varints(block, at)
    last = max(absent)
    if payload.max(initial=0) > usable - 35:  # the rest of such a row is on a page of its own
        raise _UnsuitableTableError
    if not len(header):
        return [np.zeros(0, np.int64) for _ in absent]
    kinds = np.ndarray((len(block) - _HEADER + 1,), f"V{_HEADER}", block, strides=(1,))[header]
    words = kinds.view(np.uint64).reshape(len(header), -1)
    kinds = kinds.view(np.uint8).reshape(len(header), -1)
    lengths = kinds[:, 0]
    if last + 2 > _HEADER or lengths.min() < last + 2 or lengths.max() > 127:
        raise _UnsuitableTableError  # rows with fewer columns, or longer headers
    varies = np.bitwise_or.reduce(words ^ words[0], axis=0).view(np.uint8) != 0
    offset = header + lengths
    values = []
    for place in range(last + 1):
        kind = kinds[:, place + 1] if varies[place + 1] else kinds[:1, place + 1]
        if kind.max() > _ONE or (kind == _FLOAT).any():
            raise _UnsuitableTableError
        if place in absent:
            values.append(_values(block, offset, kind, absent[place]))
        offset += _WIDTHS.take(kind)
    return values


def _cells(block: Bytes, size: int) -> Ints:
    """The offsets of all cells of leaves."""
    starts = np.arange(0, len(block) - _HEADER, size)
    if np.any(block[starts] != _LEAF):
        raise _UnsuitableTableError
    counts = block[starts + 3].astype(np.int64) << 8 | block[starts + 4]
    before = np.cumsum(counts) - counts
    # their offsets within pages stand in two bytes each, from the eighth byte of a page on
    pointers = np.arange(int(counts.sum())) + np.repeat(starts // 2 + 4 - before, counts)
    cells: Ints = block.view(">u2")[pointers] + np.repeat(starts, counts)
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


def _values(block: Bytes, offset: Ints, kind: Bytes, absent: int) -> Ints:
    """Numbers in two's complement, the highest byte first. `kind`: of every row, or of all."""
    constant = {_NULL: absent, _ZERO: 0, _ONE: 1}
    if len(kind) == 1 and int(kind[0]) in constant:
        return np.full(len(offset), constant[int(kind[0])], np.int64)
    bytes_ = np.ndarray((len(block) - _WORD + 1,), f"V{_WORD}", block, strides=(1,))[offset]
    numbers: Ints = bytes_.view(">i8").astype(np.int64)
    numbers >>= _SHIFTS.take(kind)
    if len(kind) > 1 and (kind.min() == _NULL or kind.max() > _FLOAT):
        for special, value in constant.items():
            numbers[kind == special] = value
    return numbers
