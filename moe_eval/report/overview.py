"""What stands first where there are many arms: those that pay the most in full, and a row for each of them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.headline import HeadlineFigure
from moe_eval.report import tiles
from moe_eval.report.text import Row, Table, finite, named, without_empty_columns

MOST = 6  # pairs, which with the reference have a colour of their own in charts
_ORDER = ("good", "open", "bad")
_RANKED = (HeadlineFigure.SPEED_UP, HeadlineFigure.SERVED_TOK_S)
_IN_FULL = ("Speed-up", "Quality")  # tiles with their intervals: the others have theirs below


def leading(comparison: ComparisonRecord) -> ComparisonRecord:
    """The comparison with the pairs that are shown in full, and their arms: all of up to MOST, else the best."""
    if len(comparison.pairs) <= MOST:
        return comparison
    pairs = _ranked(comparison)[:MOST]
    arm_names = {name for pair in pairs for name in (pair.reference, pair.other)}
    compared = {name for pair in comparison.pairs for name in (pair.reference, pair.other)}
    arms = tuple(arm for arm in comparison.arms if arm.name in arm_names or arm.name not in compared)
    return replace(comparison, pairs=tuple(pairs), arms=arms)


def table(comparison: ComparisonRecord, *, is_brief: bool = False) -> Iterator[Table]:
    """A row for every pair, the best first. Nothing where all are shown in full.

    Args:
        is_brief: without intervals and places, so that a row is a line of a terminal.
    """
    if len(comparison.pairs) <= MOST:
        return
    pairs = _ranked(comparison)
    figures = [{tile.title: tile for tile in tiles.of_pair(pair, comparison.rules)} for pair in pairs]
    titles = sorted({title for of_pair in figures for title in of_pair}, key=tiles.TITLES.index)
    rows: list[Row] = [
        [
            ("arm", named(pair.other)),
            ("verdict", pair.verdict.value),
            *((title, _cell(of_pair.get(title), is_brief=is_brief)) for title in titles),
            ("speed at", "" if is_brief else tiles.place_of(pair)),
        ]
        for pair, of_pair in zip(pairs, figures, strict=True)
    ]
    caption = f"All {len(pairs)} arms against {named(comparison.reference)}, the best first"
    yield from without_empty_columns(caption, rows)


def _cell(tile: tiles.Tile | None, *, is_brief: bool) -> str:
    if tile is None:
        return ""
    if is_brief:
        return f"{tile.value}: {tile.verdict}" if tile.title == "Quality" and tile.verdict else tile.value
    return tile.line if tile.title in _IN_FULL else tile.value


def remark(comparison: ComparisonRecord, parts: str = "Tiles and charts") -> str:
    """What these parts leave out. Empty where they leave nothing out."""
    count = len(comparison.pairs) - MOST
    return f"{parts} are of the best {MOST} arms. {count} more are in the table." if count > 0 else ""


def _ranked(comparison: ComparisonRecord) -> list[Pair]:
    """Good verdicts first, then what gains the most. Without speed, what costs the least quality."""

    def place(pair: Pair) -> tuple[int, float, float]:
        ratios = {headline.figure: finite(headline.ratio) or 0.0 for headline in pair.headlines}
        gain = next((ratios[figure] for figure in _RANKED if figure in ratios), 0.0)
        return _ORDER.index(tiles.kind_of(pair.verdict.value)), -gain, ratios.get(HeadlineFigure.QUALITY, 0.0)

    return sorted(comparison.pairs, key=place)
