"""A table of text, which page, Markdown and terminal share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moe_eval.report.text import NONE


@dataclass(frozen=True)
class Table:
    """Cells as text, not yet escaped; the first cell of a row names it."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def without_empty_columns(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Table]:
    """The table without columns in which nothing was measured; none at all without rows."""
    lines = [tuple(row) for row in rows]
    filled = [at for at in range(len(heads)) if at == 0 or any(line[at] not in (NONE, "") for line in lines)]
    if not lines or len(filled) < 2:
        return []
    cells = tuple(tuple(line[at] or "-" for at in filled) for line in lines)
    return [Table(caption, tuple(heads[at] for at in filled), cells)]
