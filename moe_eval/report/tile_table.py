"""The header and the tiles of a comparison, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.report import sections, tiles
from moe_eval.report.console import lines_of, text_table
from moe_eval.report.renderable import Group, Renderable
from moe_eval.report.text import Row, named


def render(comparison: ComparisonRecord) -> Renderable:
    """What was compared where, a row for every tile, the shapes that figures of speed are of, and every task."""
    header = tiles.header_line(comparison.header)
    places = {pair.other: tiles.place_of(pair) for pair in comparison.pairs}
    rows = [_row(arm, tile) for arm, tile in _tiles(comparison)]
    table = [text_table(rows)] if rows else []
    tasks = [
        part
        for task in sections.tasks(comparison)
        for part in (
            lines_of([task.caption]),
            text_table([list(zip(task.heads, row, strict=True)) for row in task.rows]),
        )
    ]
    return Group(*([lines_of([header])] if header else []), *table, lines_of(_of_shapes(places)), *tasks)


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


def _of_shapes(places: dict[str, str]) -> Sequence[str]:
    shapes = dict.fromkeys(filter(None, places.values()))
    if len(shapes) > 1:
        return [f"Speed of {arm} is at {place}." for arm, place in places.items() if place]
    return [f"Speed is at {place}." for place in shapes]
