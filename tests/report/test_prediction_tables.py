"""Ceilings, and predictions beside what was measured."""

from __future__ import annotations

from moe_eval.report import prediction_tables
from moe_eval.report.readable import shape_words
from tests.doubles import compared_arms
from tests.doubles.report_page import read

CAPTION = "Prediction and measurement per step: fp8 against bf16"


def test_prediction_and_measurement_stand_side_by_side_for_prefill_and_decode() -> None:
    comparison = compared_arms.with_unexplained_prefill()
    pair = comparison.pairs[0]
    heads, *rows = read(comparison).tables[CAPTION]
    assert [row[:2] for row in rows] == [
        [f"batch {batch}, 512 tokens in, 256 out", phase] for batch in (1, 8) for phase in ("prefill", "decode")
    ]
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        change = next(shape.kernels for shape in pair.shapes if shape_words(shape.name) == row[0])[row[1]]
        idle = [100 * (1 - busy / step) for busy, step in zip(change.busy_ms, change.step_ms, strict=True)]
        is_prefill = row[1] == "prefill"
        assert (cells["predicted by kernels"], cells["predicted by steps"]) == ("1.210x", "1.180x")
        assert cells["measured without profiler"] == ("0.650x" if is_prefill else "1.040x")
        assert cells["kernels explain it"] == ("no" if is_prefill else "yes")
        assert cells["bf16: nothing runs"] == f"{idle[0]:.0f} % of the step"
        assert cells["fp8: nothing runs"] == f"{idle[1]:.0f} % of the step"
        assert cells["remark"].startswith("Nothing runs for" if is_prefill else "-")


def test_a_ceiling_needs_the_trace_of_the_reference_alone() -> None:
    pair = compared_arms.comparison().pairs[0]
    (table,) = prediction_tables.ceilings(pair)
    assert table.caption == "Ceiling of bf16 per step: fp8 against bf16"
    assert table.rows[-1] == ("batch 32, 512 tokens in, 256 out", "decode", "48.3 %", "1.930x", "1.760x")
    assert len(table.rows) == 6
