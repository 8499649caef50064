"""The header and the tiles of a comparison, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterator

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.report import overview, sections, tiles
from moe_eval.report.console import lines_of, text_table
from moe_eval.report.renderable import Grid, Group, Renderable
from moe_eval.report.text import Row, Table, named


def render(comparison: ComparisonRecord) -> Renderable:
    """What was compared where, a row for every tile, the shapes that figures of speed are of, and every task.

    Of many pairs, a row for each, and the tasks of the best.
    """
    header = tiles.header_line(comparison.header)
    table = [part for brief in overview.table(comparison, is_brief=True) for part in _titled(brief)]
    if not table and (rows := [_row(arm, tile) for arm, tile in _tiles(comparison)]):
        table = [text_table(rows)]
    remark = overview.remark(comparison, "Sentences and other tables")
    lines = [*_of_shapes(comparison), *([f"{remark} The report has all."] if remark else [])]
    tasks = [part for task in sections.tasks(overview.leading(comparison)) for part in _titled(task)]
    return Group(*([lines_of([header])] if header else []), *table, lines_of(lines), *tasks)


def _titled(table: Table) -> tuple[Renderable, Grid]:
    rows = [list(zip(table.heads, row, strict=True)) for row in table.rows]
    return lines_of([table.caption]), text_table(rows)


def _tiles(comparison: ComparisonRecord) -> Iterator[tuple[str, tiles.Tile]]:
    for pair in comparison.pairs:
        yield from ((pair.other, tile) for tile in tiles.of_pair(pair, comparison.rules))
    if not comparison.pairs:
        yield from ((arm.name, tile) for arm in comparison.arms for tile in tiles.of_arm(arm))


def _row(arm: str, tile: tiles.Tile) -> Row:
    return [
        ("arm", named(arm)),
        ("figure", tile.title),
        ("value", tile.value),
        ("interval and reference", tile.detail or "-"),
        ("verdict", tile.verdict or "-"),
    ]


def _of_shapes(comparison: ComparisonRecord) -> list[str]:
    arms: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        if place := tiles.place_of(pair):
            arms.setdefault(place, []).append(named(pair.other))
    whose = {place: f" of {', '.join(names)}" if len(arms) > 1 else "" for place, names in arms.items()}
    return [f"Speed{of_arms} is at {place}." for place, of_arms in whose.items()]
