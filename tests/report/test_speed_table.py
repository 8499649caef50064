"""The tables of a terminal: ratios stand as the comparison has them, and the reader is told what he has to know."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

from moe_eval.comparison import pairs
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.latency import LatencyRecord, MemoryUse
from moe_eval.records.shape_comparison import Fairness
from moe_eval.records.shape_latency import Floor, FloorReached, Floors
from moe_eval.records.verdicts import Verdict
from moe_eval.report import arm_tables, quality_table, speed_table
from moe_eval.report.console import plain_text
from tests.doubles import recorded_arms
from tests.doubles.recorded_arms import latency, quality, scores


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables' rows by heading."""
    blocks = [[line for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")]
    by_table = []
    for lines in filter(None, blocks):
        heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        by_table.append([dict(zip(heads, row, strict=True)) for row in rows])
    return by_table


def speed(records: list[LatencyRecord], comparison: ComparisonRecord | None = None) -> str:
    arms = [ArmRecords(record.arm, record.precision_planned, record) for record in records]
    return plain_text(speed_table.render(records, comparison or pairs.compare(arms)))


def two_arms() -> list[LatencyRecord]:
    """The second one is twice as fast: 2 with pairs of loads that are 1 % apart."""
    loads = [[97.0, 99.0], [100.0, 102.0], [103.0, 105.0]]
    faster = [[ms / ratio for ms in load] for load, ratio in zip(loads, (1.985, 2.0, 2.015), strict=True)]
    return [latency("bf16", {1: loads, 8: loads}), latency("fp8", {1: faster, 8: faster})]


def test_rows_stand_shape_by_shape_with_the_comparison_s_ratios() -> None:
    figures, ratios = tables(speed(two_arms()))
    shown = [(row["arm"], row["batch"]) for row in figures]
    assert shown == [("bf16", "1"), ("fp8", "1"), ("bf16", "8"), ("fp8", "8")]
    assert figures[0]["experts"] == "50.0"
    assert [(row["arm"], row["batch"], row["figure"]) for row in ratios] == [
        ("fp8", batch, figure) for batch in ("1", "8") for figure in ("e2e", "TTFT", "TPOT", "J/tok")
    ]
    assert {(row["verdict"], row["ratio"], row["95 % interval"], row["loads"]) for row in ratios} == {
        ("pays", "2.000x", "1.963x to 2.038x", "3")
    }


def test_figures_have_the_digits_of_their_interval() -> None:
    """By load the medians are 98, 101 and 104: Student's t of their logarithms, 4.303 with two degrees of freedom."""
    row = tables(speed(two_arms()[:1]))[0][0]
    logs = [math.log(ms) for ms in (98, 101, 104)]
    reach = 4.302653 * statistics.stdev(logs) / math.sqrt(3)
    middle = statistics.fmean(logs)
    assert row["e2e ms"] == f"{math.exp(middle):.0f}"
    ends = f"{math.exp(middle - reach):.0f} to {math.exp(middle + reach):.0f}"
    assert row["e2e: 95 % interval over 3 loads"] == ends
    single = latency("bf16", {1: [[100.0, 101.0, 102.0, 103.0, 104.0, 105.0]]})
    assert tables(speed([single]))[0][0]["e2e: 95 % interval of this load"] == "100.0 to 105.0"


def test_an_interval_has_the_digits_that_tell_its_side_of_1_and_of_the_least_gain() -> None:
    arms = [recorded_arms.arm("bf16", {1: [[100.0]] * 3}), recorded_arms.arm("fp8", {1: [[90.0]] * 3})]
    comparison = pairs.compare(arms)
    (shape,) = comparison.pairs[0].shapes
    assert shape.speed.e2e_ms
    expected = {
        (1.00004, 1.2): "1.00004x to 1.20000x",
        (1.0, 1.2): "1.00x to 1.20x",
        (0.9996, 1.2): "0.9996x to 1.2000x",
        (1.0104, 1.2): "1.0104x to 1.2000x",
    }
    for (low, high), text_of_interval in expected.items():
        ratio = replace(shape.speed.e2e_ms, low=low, high=high)
        changed = replace(shape, speed=replace(shape.speed, e2e_ms=ratio))
        pair = replace(comparison.pairs[0], shapes=(changed,))
        text = speed([arm.latency for arm in arms if arm.latency], replace(comparison, pairs=(pair,)))
        assert tables(text)[1][0]["95 % interval"] == text_of_interval


def test_an_unfair_shape_has_no_ratio_and_says_why() -> None:
    records = two_arms()
    arms = [ArmRecords(record.arm, record.precision_planned, record) for record in records]
    comparison = pairs.compare(arms)
    for fairness, verdict, sentence in (
        (
            Fairness(False, "61.2 experts against 38.0"),
            Verdict.NOT_COMPARABLE,
            "fp8 at batch 1: no verdict. 61.2 experts against 38.0.",
        ),
        (
            Fairness(None, "bf16: not measured"),
            Verdict.PAYS,
            "Whether the routing is fair was not checked. bf16: not measured.",
        ),
    ):
        shapes = tuple(
            replace(shape, fairness=fairness, verdict=verdict, reason=fairness.reason or "")
            for shape in comparison.pairs[0].shapes
        )
        changed = replace(comparison, pairs=(replace(comparison.pairs[0], shapes=shapes),))
        text = speed(records, changed)
        assert text.count(sentence) == 1
        rows = tables(text)[1]
        assert {row["verdict"] for row in rows} == {verdict.value}
        assert {row["ratio"] for row in rows} == {"2.000x" if fairness.is_fair is None else "void"}


def test_a_broken_arm_has_no_ratio() -> None:
    records = two_arms()
    comparison = pairs.compare([ArmRecords(record.arm, record.precision_planned, record) for record in records])
    broken = replace(comparison.pairs[0], verdict=Verdict.BROKEN)
    assert len(tables(speed(records, replace(comparison, pairs=(broken,))))) == 1


def test_the_reader_is_told_how_it_was_measured() -> None:
    records = two_arms()
    memory = MemoryUse(1, 1 + (3 << 30))
    noted = replace(records[1].shapes[0], notes=("it was slow",))
    records[1] = replace(records[1], memory=(memory,), shapes=(noted, *records[1].shapes[1:]))
    text = speed(records)
    for sentence in (
        "512 tokens in, 257 out. Medians of 6 iterations after 5 or more of warm-up.",
        "Schedule: turns. Load i of all arms lived at the same time and took turns",
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
    (rows,) = tables(text)
    assert rows[0]["ln(ppl ratio)"] == "reference"
    assert records[1].figures
    assert rows[1]["perplexity"] == f"{records[1].figures.perplexity:.4f}"
    assert "moe_sample: 5 windows of at most 128 tokens, spread over 100." in text
    assert "Noise floor (bf16 again with batch size 1): ln(ppl ratio) +1.0e-04" in text
    assert "fp8: no interval." in text, "the scores of the tokens are not at hand"


def test_arms_on_several_gpus_show_the_share_of_the_link_and_others_have_no_such_column() -> None:
    """Half of the floor's roof is memory, 0.4 ms of a step of 2 ms are on the link: 20 %."""
    alone = two_arms()[0]
    floor = Floor(1e9, 1e9, 1e-3, 1e-4, 1e-3, "memory", 4.0, "counted", link_bytes=1e6, link_seconds=4e-4)
    reached = Floors(decode_step=FloorReached(floor, 1.0, 2.0, 0.5))
    spread = replace(alone, arm="tp2", shapes=tuple(replace(shape, floors=reached) for shape in alone.shapes))
    figures = tables(speed([alone, spread]))[0]
    assert [(row["of floor"], row["link"]) for row in figures if row["arm"] == "tp2"] == [("50 %", "20.0 %")] * 2
    assert "link" not in tables(speed([alone]))[0][0]
    unknown = replace(reached, decode_step=FloorReached(replace(floor, link_seconds=None), 1.0, 2.0, 0.5))
    lacking = replace(spread, shapes=tuple(replace(shape, floors=unknown) for shape in spread.shapes))
    assert "tp2: its floor leaves collectives out. The link between its GPUs was not measured." in speed([lacking])
    page = pairs.compare([ArmRecords(record.arm, "bf16", record) for record in (alone, spread)])
    (rows,) = [table.rows for table in arm_tables.floors(page)]
    assert {"1.000", "0.400", "20.0 %"} <= set(rows[-1])
