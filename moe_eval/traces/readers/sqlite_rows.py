"""Decodes the rows on leaves of an SQLite table, with array operations on thousands of rows at once.

A row is a header with the serial type of every value, then the values (sqlite.org/fileformat2.html, 2.1). Few headers
of a table differ, so where values lie is worked out once for every distinct header.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import NONE, SPREAD, Ints, places

Bytes = npt.NDArray[np.uint8]

HEADER = 128  # bytes of a header at most. A block ends with as many zeros
_LEAF = 13
_WORD = 8
_WINDOW = 64  # bytes of a row that are copied at once
_VARINT = 9  # bytes that a number of variable length has at most
# bytes of a value by its serial type. 0 is NULL, 7 a float, 8 and 9 are the numbers 0 and 1, 12 and above texts
_WIDTHS = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0], np.int64)
_FLOAT, _ONE, _TEXT = 7, 9, 12


class UnsuitableTableError(Exception):
    """The table has something that is not decoded here."""


@frozen
class Texts:
    """Distinct texts, and every row's `index` into them, NONE where a row has none or an empty one."""

    distinct: list[bytes]
    index: Ints


@frozen
class Wanted:
    """Places of columns in a row, from 0: of numbers with what stands for NULL, and of a text, NONE for no text."""

    numbers: Mapping[int, int]
    text: int
    usable: int  # bytes of a page

    @property
    def count(self) -> int:
        """How many columns of a row are looked at."""
        return max(*self.numbers, self.text) + 1


@frozen
class _Rows:
    """Rows of a block of pages, of l distinct headers.

    Attributes:
        header: where rows begin in the block, shape (n,). `layout`: which of the headers a row has, shape (n,).
        kinds: serial types by header and column, shape (l, columns). `widths`: bytes of values. `offsets`: of values,
            from a row's header on.
    """

    block: Bytes
    header: Ints
    layout: Ints
    kinds: Ints
    widths: Ints
    offsets: Ints


def decoded(block: Bytes, size: int, wanted: Wanted) -> tuple[dict[int, Ints], Texts]:
    """The columns of the rows on some leaves of `size` bytes."""
    payload, at = _varints(block, _cells(block, size))
    header = _after_varints(block, at)
    if payload.max(initial=0) > wanted.usable - 35:  # the rest of such a row is on a page of its own
        raise UnsuitableTableError
    if not len(header):
        return dict.fromkeys(wanted.numbers, header), Texts([], header)
    rows = _rows(block, header, wanted)
    return _numbers(rows, wanted.numbers), Texts([], header[:0]) if wanted.text == NONE else _texts(rows, wanted.text)


def _rows(block: Bytes, header: Ints, wanted: Wanted) -> _Rows:
    count = wanted.count
    types = _bytes(block, header, -(count + 1) // _WORD * -_WORD)
    # a type takes two bytes or more. The first maximum is faster, and most tables have none at all
    is_long = types.max() > 127 and types[:, 1 : count + 1].max() > 127
    if is_long:
        types = _bytes(block, header, HEADER)
    if types[:, 0].max() > 127:  # as does a header's length
        raise UnsuitableTableError
    first, layout = _layouts(types)
    kinds, at = types[first, 1 : count + 1].astype(np.int64), header[first] + 1
    for place in range(count if is_long else 0):
        kinds[:, place], at = _varints(block, at)
    length = types[first, 0].astype(np.int64)
    if np.any(length <= count) or np.any(at > header[first] + length):  # rows with fewer columns
        raise UnsuitableTableError
    widths = np.where(kinds >= _TEXT, (kinds - _TEXT) >> 1, _WIDTHS.take(kinds, mode="clip"))
    offsets = length[:, None] + np.cumsum(widths, axis=1) - widths
    if max(widths.max(), offsets.max()) > wanted.usable:  # the table is damaged
        raise UnsuitableTableError
    return _Rows(block, header, layout, kinds, widths, offsets)


def _layouts(types: Bytes) -> tuple[Ints, Ints]:
    """A row of every distinct header, and every row's index into them. `types`: the first bytes of headers."""
    size, length = len(types), types[:, 0]
    shortest, longest = int(length.min()), int(length.max())
    words, code, span = types.view(np.uint64), np.zeros(len(types), np.int64), 1
    for at in range(min(longest, types.shape[1])):
        if at % _WORD == 0:
            word = words[:, at // _WORD].copy()
            differs = np.bitwise_or.reduce(word ^ word[0], keepdims=True).view(np.uint8)
        if differs[at % _WORD]:
            byte = types[:, at].astype(np.int64)
            if at >= shortest:
                byte *= at < length
            top = int(byte.max()) + 1
            if span * top > SPREAD * size:
                numbers, code = places(code)
                span = len(numbers)
            code, span = code * top + byte, span * top
    numbers, layout = places(code)
    first = np.zeros(len(numbers), np.int64)
    first[layout] = np.arange(size)
    return first, layout


def _cells(block: Bytes, size: int) -> Ints:
    """The offsets of all cells of leaves."""
    starts = np.arange(0, len(block) - HEADER, size)
    if np.any(block[starts] != _LEAF):
        raise UnsuitableTableError
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


def _after_varints(block: Bytes, at: Ints) -> Ints:
    """The offsets after numbers of variable length."""
    goes_on = block[at] > 127
    for _ in range(_VARINT - 1):
        if not goes_on.any():
            break
        at = at + goes_on
        goes_on &= block[at] > 127
    return at + 1


def _numbers(rows: _Rows, wanted: Mapping[int, int]) -> dict[int, Ints]:
    """Numbers in two's complement, the highest byte first. Rows are sorted by header, so most lie at the same place."""
    small = rows.layout.astype(np.min_scalar_type(len(rows.kinds)))  # sorted by digits, which is faster
    order, counts = np.argsort(small, kind="stable"), np.bincount(small)
    header, ends = rows.header[order], np.append(0, np.cumsum(counts))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    values: dict[int, Ints] = {}
    begin, content = np.full(len(counts), -_WINDOW), rows.block
    for place in sorted(wanted):
        kind, width, offset = rows.kinds[:, place], rows.widths[:, place], rows.offsets[:, place]
        if kind.max() > _ONE or (kind == _FLOAT).any():
            raise UnsuitableTableError
        if width.any() and (offset + _WORD > begin + _WINDOW).any():
            begin, content = offset, _bytes(rows.block, header + np.repeat(offset, counts), _WINDOW)
        column, at = np.empty(len(order), np.int64), np.where(width, offset - begin, 0)
        cuts = np.flatnonzero(np.diff(kind) | np.diff(at)) + 1
        for first, last in pairwise([0, *cuts.tolist(), len(kind)]):
            part = slice(ends[first], ends[last])
            if width[first]:
                column[part] = content[part, at[first] : at[first] + _WORD].view(">i8")[:, 0]
                column[part] >>= 8 * (_WORD - width[first])
            else:
                column[part] = kind[first] == _ONE if kind[first] else wanted[place]
        values[place] = column[back]
    return values


def _bytes(block: Bytes, begin: Ints, count: int) -> Bytes:
    """Some bytes from every one of n places on, shape (n, count)."""
    windows = np.ndarray((len(block) - count + 1,), f"V{count}", block, strides=(1,))
    copy: Bytes = windows[begin].view(np.uint8).reshape(len(begin), count)
    return copy


def _texts(rows: _Rows, place: int) -> Texts:
    kind = rows.kinds[:, place]
    if np.any((kind != 0) & (kind < _TEXT)):
        raise UnsuitableTableError
    width = rows.widths[:, place]
    present = np.flatnonzero(width[rows.layout])
    layout = rows.layout[present]
    begins = rows.header[present] + rows.offsets[layout, place]
    ends = begins + width[layout]
    content = rows.block.tobytes()
    texts = [content[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    index = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    codes = np.full(len(rows.header), NONE, np.int64)
    codes[present] = np.fromiter(map(index.__getitem__, texts), np.int64, len(texts))
    return Texts(list(index), codes)
