"""Servers in tables: the verdict of every load point, and the figures of every arm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from moe_eval.comparison.ratio_wording import ratio_digits
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.ratios import Ratio
from moe_eval.records.serving_comparison import PointComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report.readable import shape_words
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    NONE,
    Row,
    Table,
    figure_cells,
    named,
    names_of,
    number,
    plain,
    span,
    without_empty_columns,
)

_FIGURES = {
    "output_tok_s_per_gpu": "output tok/s per GPU",
    "output_tok_s": "output tok/s",
    "tok_s_per_user": "tok/s per user",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p90_ms": "TTFT p90 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "tpot_p50_ms": "TPOT p50 ms",
    "tpot_p90_ms": "TPOT p90 ms",
    "tpot_p99_ms": "TPOT p99 ms",
    "e2e_p50_ms": "e2e p50 ms",
    "e2e_p90_ms": "e2e p90 ms",
    "e2e_p99_ms": "e2e p99 ms",
    "goodput_req_s": "requests/s in time",
    "j_per_tok": "J/tok",
}


def tables(comparison: ComparisonRecord) -> Iterator[Table]:
    """The break-even map of every pair, then every arm's figures."""
    for pair in comparison.pairs:
        points = pair.serving.points if pair.serving and pair.verdict is not Verdict.BROKEN else ()
        rows = [_row(point, comparison.rules) for point in points]
        yield from without_empty_columns(f"Verdict by load: {names_of(pair)}", rows)
        yield from _further(pair, comparison.rules)
        yield from without_empty_columns(f"Notes on the servers: {names_of(pair)}", _notes(points))
    yield from without_empty_columns("Serving (intervals over loads)", [*_arms(comparison)])


def _row(point: PointComparison, rules: Rules) -> Row:
    ratio, interval, loads = _cells(point, point.ratios.deciding(point.point), rules)
    equal, of_equal, _ = _cells(point, point.at_equal_speed, rules)
    return [
        ("load", shape_words(point.name)),
        ("verdict", point.verdict.value),
        ("ratio", ratio),
        ("95 % interval", interval),
        ("loads", loads),
        ("tok/s per GPU where users read as fast", "" if equal == NONE else equal),
        ("its 95 % interval", "" if of_equal == NONE else of_equal),
        ("reason", plain(point.reason, LONGEST_SENTENCE)),
    ]


def _notes(points: Sequence[PointComparison]) -> list[Row]:
    """A row for every note: the same one of several loads or arms stands once."""
    loads: dict[tuple[str, str], list[str]] = defaultdict(list)
    for point in points:
        for arm, notes in point.notes.items():
            for note in notes:
                loads[note, arm].append(shape_words(point.name))
    arms: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (note, arm), places in loads.items():
        place = "every load" if len(places) == len(points) > 1 else "; ".join(places)
        arms[note, place].append(named(arm))
    return [
        [("load", place), ("arm", ", ".join(names)), ("note", plain(note, LONGEST_SENTENCE))]
        for (note, place), names in arms.items()
    ]


def _cells(point: PointComparison, ratio: Ratio | None, rules: Rules) -> tuple[str, str, str]:
    """A ratio, its interval and over how many loads it is. It is void where nothing may be compared."""
    if ratio is None:
        return NONE, NONE, NONE
    if point.verdict is Verdict.NOT_COMPARABLE:
        return "void", NONE, NONE
    digits = ratio_digits(ratio.low, ratio.high, rules.min_gain)
    return number(ratio.value, digits, unit="x"), span(ratio.low, ratio.high, digits, unit="x"), f"{ratio.loads}"


def _further(pair: Pair, rules: Rules) -> Iterator[Table]:
    """How many times better the other arm is by figures that do not decide."""
    names = {
        "tok_s_per_user": "tok/s per user",
        "ttft_p50_ms": "TTFT p50",
        "e2e_p50_ms": "e2e p50",
        "goodput_req_s": "requests/s in time",
        "j_per_tok": "J/tok",
    }
    rows: list[Row] = []
    for point in pair.serving.points if pair.serving and pair.verdict is not Verdict.BROKEN else ():
        cells: list[tuple[str, str]] = [("load", shape_words(point.name))]
        for figure, head in names.items():
            value, interval, _ = _cells(point, getattr(point.ratios, figure), rules)
            text = value if interval == NONE else f"{value} ({interval.replace(' x', '')})"
            cells.append((head, "" if value == NONE else text))
        rows.append(cells)
    yield from without_empty_columns(f"Times better under load: {names_of(pair)}", rows)


def _arms(comparison: ComparisonRecord) -> Iterator[Row]:
    names = dict.fromkeys(name for arm in comparison.arms for name in arm.serving)
    for name in names:
        for arm in comparison.arms:
            if name in arm.serving:
                cells = [(head, _cell(arm, name, figure)) for figure, head in _FIGURES.items()]
                yield [("arm", named(arm.name)), ("load", shape_words(name)), *cells]


def _cell(arm: ComparedArm, name: str, figure: str) -> str:
    interval = arm.serving[name].get(figure)
    if interval is None:
        return ""
    value, bounds = figure_cells(interval)
    return value if bounds == NONE else f"{value} ({bounds})"
