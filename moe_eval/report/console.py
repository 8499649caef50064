"""What a command shows at its end, and sentences on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from moe_eval.outside.words import one_line
from moe_eval.report.renderable import Grid, Renderable, Sentences
from moe_eval.report.text import NONE, Row, plain

if TYPE_CHECKING:
    from rich.console import Console


def say(sentence: str) -> None:
    """Print a sentence on standard error, above a progress display where there is one."""
    line = f"moe-eval: {one_line(sentence)}"
    if sys.stderr.isatty():
        errors().print(line, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def print_renderable(renderable: Renderable) -> None:
    """Print on standard output. What is no terminal gets whole lines."""
    if sys.stdout.isatty():
        import shutil

        print(*(line.rstrip() for line in renderable.lines(shutil.get_terminal_size().columns)), sep="\n")
    else:
        print(plain_text(renderable))


def plain_text(renderable: Renderable) -> str:
    """What print_renderable prints into a file: tables are Markdown, and no line is folded."""
    return "\n".join(line.rstrip() for line in renderable.lines(None)).strip("\n")


def lines_of(lines: Sequence[str]) -> Sentences:
    """Lines of text for print_renderable, without characters that move a cursor."""
    return Sentences([one_line(line) for line in lines])


def text_table(rows: Sequence[Row]) -> Grid:
    """A table for print_renderable, of text alone."""
    heads = [head for head, _ in rows[0]]
    return Grid(heads, (["-" if cell == NONE else one_line(cell) for _, cell in row] for row in rows), len(heads))


def number_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1, longest: int | None = None
) -> Grid:
    """A table for print_renderable whose first columns are texts and whose others are numbers.

    Args:
        longest: characters of a first cell. A narrow terminal cuts it further, so that its row stays one line. None to
            fold what does not fit.
    """
    cells = [list(map(_cell, row)) for row in rows]
    if longest is not None:
        cells = [[plain(first.removeprefix("void "), longest), *others] for first, *others in cells]
    return Grid(list(map(_cell, heads)), cells, texts, is_cut=longest is not None)


def _cell(text: str) -> str:
    """Text that breaks no table of Markdown."""
    return one_line(text).replace("|", "/")


@cache
def errors() -> Console:
    """The console that sentences and displays share, so that sentences stand above a display."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)
