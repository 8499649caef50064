"""What the expert GEMMs could give at most, and what kernels predict beside what was measured."""

from __future__ import annotations

from moe_eval.comparison.explained import cause, explains
from moe_eval.records.comparison import Pair
from moe_eval.records.shape_comparison import PhaseChange, ShapeComparison
from moe_eval.report.readable import shape_words
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    Row,
    Table,
    finite,
    named,
    names_of,
    number,
    percent,
    plain,
    without_empty_columns,
)


def ceilings(pair: Pair) -> list[Table]:
    """The most that faster expert GEMMs can give the reference."""
    rows = [
        [
            ("shape", shape_words(shape.name)),
            ("phase", plain(phase)),
            ("expert GEMMs' share", number(percent(limit.share), 1, unit=" %")),
            ("ceiling of busy time", number(limit.busy, 3, unit="x")),
            ("ceiling of the step", number(limit.wall, 3, unit="x")),
        ]
        for shape in pair.shapes
        for phase, limit in (shape.ceiling or {}).items()
    ]
    return without_empty_columns(f"Ceiling of {named(pair.reference)} per step: {names_of(pair)}", rows)


def predictions(pair: Pair) -> list[Table]:
    """By shape and phase, the two predictions and the measured ratio, whether they agree, and what may be the cause."""
    rows = [
        _prediction(pair, shape, phase, change)
        for shape in pair.shapes
        for phase, change in (shape.kernels or {}).items()
        if finite(change.predicted_ratio_busy) is not None or finite(change.predicted_ratio_step) is not None
    ]
    return without_empty_columns(f"Prediction and measurement per step: {names_of(pair)}", rows)


def _prediction(pair: Pair, shape: ShapeComparison, phase: str, change: PhaseChange) -> Row:
    names, shares = (pair.reference, pair.other), change.idle_share or (None, None)
    return [
        ("shape", shape_words(shape.name)),
        ("phase", plain(phase)),
        ("predicted by kernels", number(change.predicted_ratio_busy, 3, unit="x")),
        ("predicted by steps", number(change.predicted_ratio_step, 3, unit="x")),
        ("measured without profiler", number(change.measured_ratio, 3, unit="x")),
        ("kernels explain it", named(explains(change))),
        *(
            (f"{named(name)}: nothing runs", number(percent(share), 0, unit=" % of the step"))
            for name, share in zip(names, shares, strict=True)
        ),
        ("remark", plain(cause(change, names), LONGEST_SENTENCE)),
    ]
