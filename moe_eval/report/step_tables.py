"""The tables of a step: its kernels by category in both arms, and what their speed predicts."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.records.comparison import CategoryChange, ComparedArm, Pair, PhaseChange, ShapeComparison
from moe_eval.report.table import Table, without_empty_columns
from moe_eval.report.text import category, digits_of, finite, named, names_of, number, percent, plain


def phases_of(shape: ShapeComparison) -> list[str]:
    """The phases that were traced."""
    return list(dict.fromkeys([*(shape.breakdown or {}), *(shape.kernels or {})]))


def ceilings(pair: Pair) -> list[Table]:
    """The most that faster expert GEMMs can give the reference, what the kernels predict, and what was measured."""
    rows = []
    for shape in pair.shapes:
        limits, predicted = shape.ceiling or {}, shape.predicted
        for phase in dict.fromkeys([*limits, *(["decode"] if predicted else [])]):
            limit = limits.get(phase)
            cells = ["", "", ""]
            if predicted is not None and phase == "decode":
                ratios = (predicted.busy, predicted.step, shape.measured)
                cells = [number(ratio, 3, unit="x") for ratio in ratios]
            rows.append(
                (
                    named(shape.name),
                    plain(phase),
                    number(percent(limit.share if limit else None), 1, unit=" %"),
                    number(limit.busy if limit else None, 3, unit="x"),
                    number(limit.wall if limit else None, 3, unit="x"),
                    *cells,
                )
            )
    heads = (
        "shape",
        "phase",
        "expert GEMMs' share",
        "ceiling of busy time",
        "ceiling of the step",
        "predicted by kernels",
        "predicted by steps",
        "measured without profiler",
    )
    caption = f"Ceiling of {named(pair.reference)} and prediction per step: {names_of(pair)}"
    return without_empty_columns(caption, heads, rows)


def kernels(pair: Pair, shape: ShapeComparison, phase: str) -> list[Table]:
    """Behind the bars and the waterfall: ms per step by category, and the functions that only one arm runs."""
    reference, arm = named(pair.reference), named(pair.other)
    change, breakdown = (shape.kernels or {}).get(phase), (shape.breakdown or {}).get(phase) or {}
    where = f"{named(shape.name)}, {plain(phase)}"
    heads = (
        "category",
        f"{reference}, ms per step",
        f"{arm}, ms per step",
        "change, ms",
        f"launches of {reference}",
        f"launches of {arm}",
    )
    caption = f"Time per step: {names_of(pair)}, {where} (trace, medians)"
    return [
        *without_empty_columns(caption, heads, _category_rows(change, breakdown)),
        *without_empty_columns(
            f"Kernels of one arm only: {names_of(pair)}, {where}",
            ("kernel", "runs in", "category", "ms per step", "launches"),
            _single_rows(change, reference, arm),
        ),
    ]


def _category_rows(change: PhaseChange | None, breakdown: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    changes: Mapping[str, CategoryChange] = {} if change is None else change.categories
    sides = {name: (row.before_ms, row.after_ms) for name, row in changes.items()} or dict(breakdown)
    digits = digits_of(value for times in sides.values() for value in times)
    rows = []
    for name, (before, after) in sides.items():
        launches = changes.get(name)
        counts = (launches.before_launches, launches.after_launches) if launches else (None, None)
        moved = number(after - before, digits, signed=True)
        cells = (number(before, digits), number(after, digits), moved, *(number(count, 0) for count in counts))
        rows.append((category(name), *cells))
    if change is None:
        return rows
    rows += [(phrase, "", "", number(value, digits, signed=True), "", "") for phrase, value in rest_of_change(change)]
    if change.step_ms is not None:
        before, after = change.step_ms
        phrase = "step" if change.step_is == "wall" else "span of kernels"
        moved = number(after - before, digits, signed=True)
        rows.append((phrase, number(before, digits), number(after, digits), moved, "", ""))
    return rows


def _single_rows(change: PhaseChange | None, reference: str, arm: str) -> list[tuple[str, ...]]:
    """The kernels that only one of both arms runs."""
    if change is None:
        return []
    sides = ((f"{arm} only", change.new), (f"{reference} only", change.vanished))
    return [
        (plain(kernel.name), phrase, category(kernel.category), number(kernel.ms, 3), number(kernel.launches, 0))
        for phrase, functions in sides
        for kernel in functions
    ]


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
    rows = [(category(name), number(ms, digits)) for name, ms in times.items()]
    caption = f"Time per step: {named(arm.name)}, {plain(shape)}, {plain(phase)} (trace, medians)"
    return without_empty_columns(caption, ("category", "ms per step"), rows)
