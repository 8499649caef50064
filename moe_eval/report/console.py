"""What a command shows at its end, and sentences on standard error."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Generic, TypeVar

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from moe_eval.outside.words import one_line
from moe_eval.report.text import NONE, Row, plain

Part = TypeVar("Part")

_WIDEST = 10_000  # characters of a line that nothing wraps


def say(sentence: str) -> None:
    """Print a sentence on standard error, above a progress display where there is one."""
    line = f"moe-eval: {one_line(sentence)}"
    if sys.stderr.isatty():
        errors().print(line, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def print_renderable(renderable: RenderableType) -> None:
    """Print on standard output. What is no terminal gets whole lines without colours."""
    if sys.stdout.isatty():
        Console(highlight=False, markup=False, emoji=False).print(renderable)
    else:
        print(plain_text(renderable))


def plain_text(renderable: RenderableType) -> str:
    """What print_renderable prints into a file: tables are Markdown, and no line is wrapped."""
    console = Console(file=io.StringIO(), width=_WIDEST, no_color=True, force_terminal=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(renderable, highlight=False)
    lines = [line.rstrip() for line in captured.get().split("\n")]
    return "\n".join(lines).strip("\n")


def lines_of(lines: Sequence[str]) -> Text:
    """Lines of text for print_renderable, without markup and characters that move a cursor."""
    return Text("\n".join(map(one_line, lines)))


def rich_table(rows: Sequence[Row]) -> Table:
    """A table for print_renderable. Every cell is text: nothing in it is markup."""
    table = _frame()
    for head, _ in rows[0]:
        table.add_column(Text(head), overflow="fold")
    for row in rows:
        table.add_row(*(Text("-" if cell == NONE else one_line(cell)) for _, cell in row))
    return table


def number_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1, longest: int | None = None
) -> Table:
    """A table for print_renderable whose first columns are texts and whose others are numbers.

    Args:
        longest: characters of a first cell. A narrow terminal cuts it further, so that its row stays one line. None to
            fold what does not fit.
    """
    table = _frame()
    for at, head in enumerate(heads):
        table.add_column(
            Text(_cell(head)), justify="left" if at < texts else "right", overflow="fold", no_wrap=at >= texts
        )
    for first, *others in rows:
        name = Text(_cell(first) if longest is None else plain(_cell(first).removeprefix("void "), longest))
        if longest is not None:
            name.no_wrap, name.overflow = True, "ellipsis"
        table.add_row(name, *(Text(_cell(cell)) for cell in others))
    return table


class SideBySide(Generic[Part]):
    """Parts in one table where the terminal is wide enough, else in several below each other."""

    def __init__(self, table: Callable[[Mapping[str, Part]], Table], parts: Mapping[str, Part]) -> None:
        """`table` makes one of some of the parts."""
        self._table, self._parts = table, parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        names, size = list(self._parts), len(self._parts)
        while names:
            table = self._table({name: self._parts[name] for name in names[:size]})
            if (
                size > 1
                and options.max_width < _WIDEST
                and console.measure(table, options=options.update(max_width=_WIDEST)).maximum > options.max_width
            ):
                size -= 1
                continue
            yield table
            names = names[size:]


def _frame() -> Table:
    is_terminal = sys.stdout.isatty()  # as narrow as can be
    box = SIMPLE_HEAD if is_terminal else MARKDOWN
    return Table(box=box, pad_edge=not is_terminal, collapse_padding=is_terminal)


def _cell(text: str) -> str:
    """Text that breaks no table of Markdown."""
    return one_line(text).replace("|", "/")


@cache
def errors() -> Console:
    """The console that sentences and displays share, so that sentences stand above a display."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)
