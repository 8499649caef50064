"""Sentences and tables for a terminal, where they are folded, or for a file, where they are whole and Markdown.

Importing rich and laying out by it was a quarter of the processor time of `moe-eval kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

Part = TypeVar("Part")

_NARROWEST = 8  # columns of a terminal for a text that is folded
_GAP = 2  # spaces between the columns of a terminal's table, which has one before and one after them


class Renderable(Protocol):
    """What print_renderable prints."""

    def lines(self, width: int | None) -> list[str]:
        """Its lines for a terminal of so many columns. None for a file."""
        ...


class Sentences:
    """Lines of text, folded at words."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self._sentences = sentences or ("",)

    def lines(self, width: int | None) -> list[str]:
        if width is None:
            return list(self._sentences)
        return [line for sentence in self._sentences for line in _folded(sentence, width)]


class Group:
    """Several renderables below each other."""

    def __init__(self, *parts: Renderable) -> None:
        self._parts = parts

    def lines(self, width: int | None) -> list[str]:
        return [line for part in self._parts for line in part.lines(width)]


class Grid:
    """A table with an empty line before and after it.

    Args:
        texts: the columns with text, which come first. The others are numbers, which stand at the right.
        is_cut: whether the cells of the first column are cut to one line rather than folded.
    """

    def __init__(
        self, heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int, *, is_cut: bool = False
    ) -> None:
        self._heads, self._rows, self._texts, self._is_cut = heads, list(rows), texts, is_cut
        self._widths = [max(map(_size, column)) for column in zip(heads, *self._rows, strict=True)]
        self.width = sum(self._widths) + _GAP * len(heads)

    def lines(self, width: int | None) -> list[str]:
        if width is None:
            rule = "|".join("-" * (size + 2) for size in self._widths)
            rows = [" | ".join(self._padded(row, self._widths)) for row in (self._heads, *self._rows)]
            return ["", f"| {rows[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows[1:]), ""]
        widths = self._narrowed(width - _GAP * len(self._heads))
        rule = "─" * (sum(widths) + _GAP * (len(widths) - 1))
        below = (line for row in self._rows for line in self._folded(row, widths))
        return ["", *self._folded(self._heads, widths, is_head=True), f" {rule}", *below, ""]

    def _narrowed(self, room: int) -> list[int]:
        """Widths of columns: of the texts the widest give until all fit, heads before cells. Numbers stay whole."""
        widths = list(self._widths)
        cells = [max(map(_size, column)) for column in zip(*self._rows, strict=True)] if self._rows else widths
        for sizes in (cells, [_NARROWEST] * self._texts):
            bounds = [max(size, _NARROWEST) for size in sizes[: self._texts]]
            while sum(widths) > room and (wide := [at for at, bound in enumerate(bounds) if widths[at] > bound]):
                widths[max(wide, key=widths.__getitem__)] -= 1
        return widths

    def _folded(self, row: Sequence[str], widths: Sequence[int], *, is_head: bool = False) -> list[str]:
        """The lines of a row. Those of a head stand at its bottom."""
        cells = [_folded(cell, size) for cell, size in zip(row, widths, strict=True)]
        if self._is_cut and len(cells[0]) > 1:
            cells[0] = [f"{_head(row[0], widths[0] - 1)}…"]
        height = max(map(len, cells))
        blanks = [[""] * (height - len(cell)) for cell in cells]
        filled = [blank + cell if is_head else cell + blank for cell, blank in zip(cells, blanks, strict=True)]
        return [f" {'  '.join(self._padded(line, widths))}" for line in zip(*filled, strict=True)]

    def _padded(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        blanks = (" " * (width - _size(cell)) for cell, width in zip(row, widths, strict=True))
        return [
            cell + blank if at < self._texts else blank + cell
            for at, (cell, blank) in enumerate(zip(row, blanks, strict=True))
        ]


class SideBySide(Generic[Part]):
    """Parts in one table where the terminal is wide enough, else in several below each other."""

    def __init__(self, table: Callable[[Mapping[str, Part]], Grid], parts: Mapping[str, Part]) -> None:
        """`table` makes one of some of the parts."""
        self._table, self._parts = table, parts

    def lines(self, width: int | None) -> list[str]:
        names, size, lines = list(self._parts), len(self._parts), list[str]()
        while names:
            table = self._table({name: self._parts[name] for name in names[:size]})
            if size > 1 and width is not None and table.width > width:
                size -= 1
                continue
            lines += table.lines(width)
            names = names[size:]
        return lines


def _folded(text: str, width: int) -> list[str]:
    """The lines of a text: between words, and inside those that are longer than a line."""
    if _size(text) <= width:
        return [text]
    lines, line = list[str](), ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if _size(joined) <= width:
            line = joined
            continue
        lines += [line] if line else []
        line = word
        while _size(line) > width:
            lines.append(_head(line, width))
            line = line[len(lines[-1]) :]
    return [*lines, line] if line else lines


def _head(text: str, width: int) -> str:
    """The beginning of a text that fits, of one character at least."""
    if text.isascii():
        return text[: max(width, 1)]
    end = 1
    while end < len(text) and _size(text[: end + 1]) <= width:
        end += 1
    return text[:end]


def _size(text: str) -> int:
    """The columns of a terminal that a text takes: two for a wide letter of East Asia, none for a combining mark."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(bool(unicodedata.combining(letter)) for letter in text)
