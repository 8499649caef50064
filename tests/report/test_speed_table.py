"""The tables of a terminal: ratios stand as the comparison has them, and the reader is told what he has to know."""

from __future__ import annotations

from dataclasses import replace

from moe_eval.comparison import pairs
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord, Fairness
from moe_eval.records.latency import LatencyRecord, MemoryUse
from moe_eval.report import quality_table, speed_table
from moe_eval.report.console import plain_text
from tests.doubles import recorded_arms
from tests.doubles.recorded_arms import latency, quality, scores


def cells(text: str) -> list[dict[str, str]]:
    """A table's rows by heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(heads, row, strict=True)) for row in rows]


def speed(records: list[LatencyRecord], comparison: ComparisonRecord | None = None) -> str:
    arms = [ArmRecords(record.arm, record.precision_planned, record) for record in records]
    return plain_text(speed_table.render(records, comparison or pairs.compare(arms)))


def two_arms() -> list[LatencyRecord]:
    slow = latency("bf16", {1: [[100.0, 102.0]] * 3, 8: [[200.0, 202.0]] * 3})
    return [slow, latency("fp8", {1: [[50.0, 51.0]] * 3, 8: [[100.0, 101.0]] * 3})]


def test_rows_stand_shape_by_shape_with_the_comparison_s_ratio() -> None:
    rows = cells(speed(two_arms()))
    assert [(row["arm"], row["batch"]) for row in rows] == [("bf16", "1"), ("fp8", "1"), ("bf16", "8"), ("fp8", "8")]
    assert [row["speed-up"] for row in rows] == ["reference", "2.000x", "reference", "2.000x"]
    assert rows[1]["speed-up: 95 % interval"] == "2.000 to 2.000"
    assert rows[0]["e2e ms"] == "101.0"
    assert rows[0]["experts"] == "50.0"


def test_an_interval_has_the_digits_that_tell_its_side_of_1() -> None:
    arms = [recorded_arms.arm("bf16", {1: [[100.0]] * 3}), recorded_arms.arm("fp8", {1: [[90.0]] * 3})]
    comparison = pairs.compare(arms)
    (shape,) = comparison.pairs[0].shapes
    assert shape.speed.e2e_ms
    expected = {(1.00004, 1.2): "1.00004 to 1.20000", (1.0, 1.2): "1.000 to 1.200", (0.9996, 1.2): "0.9996 to 1.2000"}
    for (low, high), text_of_interval in expected.items():
        ratio = replace(shape.speed.e2e_ms, low=low, high=high)
        changed = replace(shape, speed=replace(shape.speed, e2e_ms=ratio))
        pair = replace(comparison.pairs[0], shapes=(changed,))
        text = speed([arm.latency for arm in arms if arm.latency], replace(comparison, pairs=(pair,)))
        assert cells(text)[1]["speed-up: 95 % interval"] == text_of_interval


def test_an_unfair_shape_has_no_ratio_and_says_why() -> None:
    records = two_arms()
    arms = [ArmRecords(record.arm, record.precision_planned, record) for record in records]
    comparison = pairs.compare(arms)
    for fairness, sentence in (
        (Fairness(False, "61.2 experts against 38.0"), "fp8 at batch 1: no verdict. 61.2 experts against 38.0."),
        (Fairness(None, "bf16: not measured"), "Whether the routing is fair was not checked. bf16: not measured."),
    ):
        shapes = tuple(replace(shape, fairness=fairness) for shape in comparison.pairs[0].shapes)
        changed = replace(comparison, pairs=(replace(comparison.pairs[0], shapes=shapes),))
        text = speed(records, changed)
        assert text.count(sentence) == 1
        assert ("2.000" not in text) == (fairness.is_fair is False)


def test_the_reader_is_told_how_it_was_measured() -> None:
    records = two_arms()
    memory = MemoryUse(1, 1 + (3 << 30))
    noted = replace(records[1].shapes[0], notes=("it was slow",))
    records[1] = replace(records[1], memory=(memory,), shapes=(noted, *records[1].shapes[1:]))
    text = speed(records)
    for sentence in (
        "512 tokens in, 257 out. Medians of 6 iterations after 5 or more of warm-up.",
        "Schedule: interleaved. All arms were loaded at once and took turns",
        "Weights: checkpoint.",
        "Clocks: e2e by host, TTFT and TPOT by host.",
        "fp8 left 3.0 GiB of GPU memory in use when its process had ended.",
        "fp8 at batch 1: it was slow.",
    ):
        assert sentence in text
    assert "One arm alone was measured." in speed(records[:1])


def test_quality_stands_with_its_interval_noise_floor_and_divergence() -> None:
    records = [quality("bf16", scores()), quality("fp8", scores(0.01))]
    comparison = pairs.compare([ArmRecords(record.arm, record.precision, quality=record) for record in records])
    text = plain_text(quality_table.render(records, comparison))
    rows = cells(text)
    assert rows[0]["ln(ppl ratio)"] == "reference"
    assert records[1].figures
    assert rows[1]["perplexity"] == f"{records[1].figures.perplexity:.4f}"
    assert "moe_sample: 5 windows of at most 128 tokens, the first of 100." in text
    assert "Noise floor (bf16 again with batch size 1): ln(ppl ratio) +1.0e-04" in text
    assert "fp8: no interval." in text, "the scores of the tokens are not at hand"
