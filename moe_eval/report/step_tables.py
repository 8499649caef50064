"""The tables of a step: its kernels by category in both arms, and what their speed predicts."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.records.comparison import CategoryChange, ComparedArm, Pair, PhaseChange, ShapeComparison
from moe_eval.report.text import (
    Row,
    Table,
    category,
    digits_of,
    finite,
    named,
    names_of,
    number,
    percent,
    plain,
    without_empty_columns,
)


def phases_of(shape: ShapeComparison) -> list[str]:
    """The phases that were traced."""
    return list(dict.fromkeys([*(shape.breakdown or {}), *(shape.kernels or {})]))


def ceilings(pair: Pair) -> list[Table]:
    """The most that faster expert GEMMs can give the reference, what the kernels predict, and what was measured."""
    rows: list[Row] = []
    for shape in pair.shapes:
        limits = shape.ceiling or {}
        for phase in dict.fromkeys([*limits, *(["decode"] if shape.predicted else [])]):
            limit, predicted = limits.get(phase), shape.predicted if phase == "decode" else None
            rows.append(
                [
                    ("shape", named(shape.name)),
                    ("phase", plain(phase)),
                    ("expert GEMMs' share", number(percent(limit.share if limit else None), 1, unit=" %")),
                    ("ceiling of busy time", number(limit.busy if limit else None, 3, unit="x")),
                    ("ceiling of the step", number(limit.wall if limit else None, 3, unit="x")),
                    ("predicted by kernels", number(predicted.busy, 3, unit="x") if predicted else ""),
                    ("predicted by steps", number(predicted.step, 3, unit="x") if predicted else ""),
                    ("measured without profiler", number(shape.measured, 3, unit="x") if predicted else ""),
                ]
            )
    caption = f"Ceiling of {named(pair.reference)} and prediction per step: {names_of(pair)}"
    return without_empty_columns(caption, rows)


def kernels(pair: Pair, shape: ShapeComparison, phase: str) -> list[Table]:
    """Behind the bars and the waterfall: ms per step by category, and the functions that only one arm runs."""
    reference, arm = named(pair.reference), named(pair.other)
    change, breakdown = (shape.kernels or {}).get(phase), (shape.breakdown or {}).get(phase) or {}
    where = f"{names_of(pair)}, {named(shape.name)}, {plain(phase)}"
    heads = ["category", f"{reference}, ms per step", f"{arm}, ms per step", "change, ms"]
    heads += [f"launches of {reference}", f"launches of {arm}"]
    rows = [list(zip(heads, cells, strict=True)) for cells in _category_cells(change, breakdown)]
    sides = () if change is None else ((arm, change.new), (reference, change.vanished))
    singles = [
        [
            ("kernel", plain(kernel.name)),
            ("runs in", f"{name} only"),
            ("category", category(kernel.category)),
            ("ms per step", number(kernel.ms, 3)),
            ("launches", number(kernel.launches, 0)),
        ]
        for name, functions in sides
        for kernel in functions
    ]
    return [
        *without_empty_columns(f"Time per step: {where} (trace, medians)", rows),
        *without_empty_columns(f"Kernels of one arm only: {where}", singles),
    ]


def _category_cells(change: PhaseChange | None, breakdown: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    changes: Mapping[str, CategoryChange] = {} if change is None else change.categories
    sides = {name: (row.before_ms, row.after_ms) for name, row in changes.items()} or dict(breakdown)
    digits = digits_of(value for times in sides.values() for value in times)

    def moved(before: float, after: float) -> tuple[str, str, str]:
        return number(before, digits), number(after, digits), number(after - before, digits, signed=True)

    cells: list[tuple[str, ...]] = []
    for name, times in sides.items():
        row = changes.get(name)
        launches = (row.before_launches, row.after_launches) if row else (None, None)
        cells.append((category(name), *moved(*times), *(number(count, 0) for count in launches)))
    if change is None:
        return cells
    cells += [(phrase, "", "", number(value, digits, signed=True), "", "") for phrase, value in rest_of_change(change)]
    if change.step_ms is not None:
        cells.append(("step" if change.step_is == "wall" else "span of kernels", *moved(*change.step_ms), "", ""))
    return cells


def rest_of_change(change: PhaseChange) -> list[tuple[str, float]]:
    """What the categories' changes leave of a step's change, in ms; empty where the trace has no times."""
    parts = [
        ("overlap of kernels", finite(change.overlap_change_ms), -1),
        ("waiting", finite(change.waiting_change_ms), 1),
        ("residual", finite(change.residual_ms), 1),
    ]
    return [(phrase, sign * value) for phrase, value, sign in parts if value is not None]


def of_one_arm(arm: ComparedArm, shape: str, phase: str, times: Mapping[str, float]) -> list[Table]:
    """ms per step of one arm by category."""
    digits = digits_of(times.values())
    rows = [[("category", category(name)), ("ms per step", number(ms, digits))] for name, ms in times.items()]
    return without_empty_columns(
        f"Time per step: {named(arm.name)}, {plain(shape)}, {plain(phase)} (trace, medians)", rows
    )
