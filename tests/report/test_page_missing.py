"""What a page leaves out, or says that it was not measured, where a comparison has less than everything."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Interval, Ratio, Sides, SpeedRatios
from moe_eval.records.run import Skipped
from moe_eval.records.shape_comparison import Clocks, Fairness, ShapeComparison
from moe_eval.records.verdicts import Verdict
from moe_eval.report import charts, sections
from moe_eval.report.drawing import Chart
from moe_eval.report.readable import shape_words
from moe_eval.report.text import confidence_of, interval_head
from tests.doubles import compared_arms
from tests.doubles.report_page import TITLES, html, parsed, read


def with_pair(comparison: ComparisonRecord, pair: Pair, at: int = 0) -> ComparisonRecord:
    """The comparison with another pair in place of one of its."""
    pairs = list(comparison.pairs)
    pairs[at] = pair
    return replace(comparison, pairs=tuple(pairs))


def with_shapes(change: Callable[[ShapeComparison], ShapeComparison], only: int | None = None) -> ComparisonRecord:
    """The example with other shapes, or another shape of this place."""
    comparison = compared_arms.comparison()
    pair = comparison.pairs[0]
    shapes = tuple(change(shape) if only in (None, at) else shape for at, shape in enumerate(pair.shapes))
    return with_pair(comparison, replace(pair, shapes=shapes))


def drawn_charts(comparison: ComparisonRecord) -> list[Chart]:
    """The charts that a page shows."""
    return [*sections.of_report(comparison, None).charts]


def bare(shape: ShapeComparison) -> ShapeComparison:
    """The shape and its verdict, and nothing that was measured."""
    sizes = (shape.name, shape.batch_size, shape.input_len, shape.output_len)
    return ShapeComparison(*sizes, shape.verdict, shape.reason)


def test_nothing_measured_says_so() -> None:
    comparison = with_shapes(bare)
    comparison = replace(comparison, pairs=tuple(replace(pair, quality=None) for pair in comparison.pairs))
    page = parsed(html(comparison))
    assert not page.all("svg")
    titles = [text for text in page.text if text in TITLES]
    assert titles == ["Verdict of every shape", "Labels that differ", "Skipped and failed arms", "How it was measured"]


NOTHING: Mapping[str, tuple[Mapping[str, object], str]] = {
    "kernels": ({"kernels": None}, "nothing runs"),
    "predictions": ({"kernels": None}, "predicted by"),
    "ceiling": ({"ceiling": None}, "ceiling of busy"),
    "speed": ({"speed": SpeedRatios()}, "interval of the ratio"),
    "breakdown": ({"breakdown": None}, "Time of a decode step"),
    "clocks": ({"clocks": None}, "SM clock"),
    "figures": ({"figures": {}}, "95 % interval of bf16"),
    "fairness": ({"fairness": Fairness()}, "routing is fair"),
}


@pytest.mark.parametrize("part", NOTHING)
def test_a_missing_part_takes_its_charts_and_columns_with_it(part: str) -> None:
    values, lost = NOTHING[part]
    page_text = "".join(read(with_shapes(lambda shape: replace(shape, **values))).text)  # type: ignore[arg-type]
    assert lost not in page_text
    assert part == "figures" or lost in "".join(read(compared_arms.comparison()).text)


@pytest.mark.parametrize(
    ("values", "lost"), [({"quality": None}, "Perplexity against"), ({"labels": ()}, "Labels that differ")]
)
def test_a_missing_part_of_every_pair_takes_its_section_with_it(values: Mapping[str, object], lost: str) -> None:
    comparison = compared_arms.comparison()
    assert lost in "".join(read(comparison).text)
    pairs = tuple(replace(pair, **values) for pair in comparison.pairs)  # type: ignore[arg-type]
    assert lost not in "".join(read(replace(comparison, pairs=pairs)).text)


def test_ratios_without_an_interval_and_numbers_that_are_none() -> None:
    def change(shape: ShapeComparison) -> ShapeComparison:
        ratio = Ratio(1.3, None, None, 2, "engine")
        low, high = (-0.1, 3.0) if shape.batch_size == 8 else (math.nan, math.inf)
        speed = SpeedRatios(ratio, Ratio(math.nan, 1.0, 2.0, 1, ""), replace(ratio, low=low, high=high))
        return replace(shape, speed=speed, figures={**shape.figures, "e2e_ms": Sides(None, Interval(math.nan))})

    comparison = with_shapes(change)
    pair = comparison.pairs[0]
    assert pair.quality is not None
    cost = replace(pair.quality, ln_ppl_ratio=None, no_interval="one document is too few")
    page = read(with_pair(comparison, replace(pair, quality=cost)))
    rows = page.tables["Speed: fp8 against bf16 (medians)"]
    assert [row[rows[0].index("95 % interval of the ratio")] for row in rows[1:3]] == ["none", "1.00x to 2.00x"]
    assert [row[rows[0].index("verdict")] for row in rows[2:3]] == ["quick look"], "two loads make no verdict"
    assert "one document is too few" in "".join(page.text)


def test_an_unfair_shape_has_no_speed() -> None:
    unfair = Fairness(False, "61.2 experts against 38.0")
    void = Verdict.NOT_COMPARABLE
    comparison = with_shapes(lambda shape: replace(shape, fairness=unfair, verdict=void, reason=unfair.reason), only=2)
    page = read(comparison)
    assert "Left out, as it cannot be compared: fp8 at batch 32." in "".join(page.text)
    (chart,) = charts.speed(comparison)
    assert "at batch 8:" in chart.description
    assert "at batch 32" not in chart.description
    rows = page.tables["Speed: fp8 against bf16 (medians)"]
    (e2e, *_) = (dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == shape_words("b32_i512_o256"))
    assert (e2e["verdict"], e2e["ratio"]) == ("not comparable", "void")
    assert "1.4430" not in "".join(page.text)
    assert "61.2 experts against 38.0" in "".join(page.text)


def test_a_pair_that_is_not_comparable_shows_no_figures() -> None:
    comparison = compared_arms.comparison()
    pair = replace(comparison.pairs[0], verdict=Verdict.NOT_COMPARABLE, differs=("workload digest",))
    page = read(replace(comparison, pairs=(pair,)))
    assert not page.all("svg")
    assert not [name for name in page.tables if name.startswith(("Speed", "Time per step", "Quality"))]
    assert "workload digest" in "".join(page.text)


def test_a_broken_arm_has_no_speed() -> None:
    comparison = compared_arms.comparison()
    page = read(with_pair(comparison, replace(comparison.pairs[0], verdict=Verdict.BROKEN, headlines=())))
    text = "".join(page.text)
    assert "fp8 against bf16: ✗ broken" in text
    assert not [
        name for name in page.tables if name.startswith(("Speed: fp8 against", "Verdict by shape: fp8 against"))
    ]
    assert "Speed, 512" not in text
    assert "Speed-up" not in text
    assert "Quality against the reference (KLD in nats)" in page.tables


def test_intervals_say_at_which_confidence_and_over_how_many_loads_they_are() -> None:
    def change(shape: ShapeComparison) -> ShapeComparison:
        ratio = Ratio(1.2, 1.1, 1.3, 3, "host", 0.02, 2, confidence=0.99972)
        return replace(shape, speed=SpeedRatios(ratio), figures={"e2e_ms": Sides(Interval(2.0, 1.0, 3.0), None)})

    page = read(with_shapes(change))
    assert "99.97 % interval" in page.tables["Verdict by shape: fp8 against bf16"][0]
    ratio = Ratio(1.2, 1.1, 1.3, 3, "host", confidence=1.0)
    assert confidence_of([ratio]) == "99.99 %", "no interval is certain"
    assert confidence_of([ratio, replace(ratio, confidence=0.95)]) == "95 to 99.99 %"
    assert confidence_of([replace(ratio, low=None, high=None)]) == "95 %"
    own = [Interval(2.0, 1.0, 3.0, loads) for loads in (1, 1, 4)]
    assert interval_head(own[:2]) == "95 % interval of this load"
    assert interval_head(own[2:]) == "95 % interval over 4 loads"
    assert interval_head([*own, None]) == "95 % interval over 1 to 4 loads"


def test_a_single_arm_all_failed_and_nothing_at_all() -> None:
    comparison = compared_arms.comparison()
    alone = replace(comparison, arms=comparison.arms[:1], pairs=())
    assert "One arm alone has no other" in "".join(read(alone).text)
    failed = tuple(replace(arm, status=Status.FAILED, error="no <GPU>", token_ppl=None) for arm in comparison.arms)
    page = read(replace(comparison, arms=failed, pairs=()))
    assert "No arm has a result." in "".join(page.text)
    assert [row[3] for row in page.tables["Arms that were skipped or failed"][1:]] == ["no <GPU>"] * 5
    assert not parsed(html(ComparisonRecord("", (), ()))).all("table")


def test_memory_stands_in_the_table_of_arms_where_an_engine_tells() -> None:
    comparison = compared_arms.comparison()
    comparison = replace(comparison, arms=tuple(replace(arm, weights_gib=None) for arm in comparison.arms))
    assert "weights on a GPU, GiB" not in read(comparison).tables["Arms"][0]
    told = replace(comparison.arms[1], weights_gib=29.874, kv_cache_tokens=412_304)
    heads, reference, other, *_ = read(replace(comparison, arms=(comparison.arms[0], told))).tables["Arms"]
    places = [heads.index(head) for head in ("weights on a GPU, GiB", "KV-cache tokens that fit, estimate")]
    assert [other[place] for place in places] == ["29.87", "412,304"]
    assert [reference[place] for place in places] == ["not measured"] * 2


def test_arms_that_nothing_is_compared_with_show_their_own_figures() -> None:
    comparison = compared_arms.comparison()
    shape = comparison.pairs[0].shapes[0]
    times = {"e2e_ms": Interval(1310.71, 1297.0, 1321.4), "ttft_ms": Interval(64.4)}
    kernels = {"b1_i512_o9": {"decode": {"expert_gemm": 2.125}}}
    reference = replace(comparison.arms[0], speed={shape.name: times}, kernels=kernels)
    comparison = replace(comparison, arms=(reference, *comparison.arms[1:]))
    assert "Speed of single arms (medians)" not in read(comparison).tables
    assert not [name for name in read(comparison).tables if shape_words("b1_i512_o9") in name]
    single = replace(bare(shape), figures={"e2e_ms": Sides(Interval(1310.71), None)})
    emulated = replace(comparison.pairs[1], shapes=(single,))
    for pairs in ((), comparison.pairs[1:], (emulated,)):
        page = read(replace(comparison, pairs=pairs))
        assert page.tables["Speed of single arms (medians)"][1:] == [
            ["bf16", shape_words("b1_i512_o256"), "end-to-end time, ms", "1,311", "1,297 to 1,321"],
            ["bf16", shape_words("b1_i512_o256"), "time to first token, ms", "64.400", "not measured"],
        ]
        assert not [name for name in page.tables if name.startswith("Speed: ")], "a column alone compares nothing"
        name = f"Time per step: bf16, {shape_words('b1_i512_o9')}, decode (trace, medians)"
        assert page.tables[name][1:] == [["expert GEMMs", "2.125"]]
        assert "bf16 64 ms" not in "".join(page.text)


def test_several_arms_and_lengths_share_charts_by_lengths() -> None:
    comparison = compared_arms.comparison()
    names = {f"b{batch}_i512_o256": f"b{batch}_i2048_o256" for batch in (8, 32)}
    fp8 = comparison.pairs[0]
    longer = tuple(
        replace(shape, input_len=2048, name=names[shape.name], breakdown=None)
        for shape in fp8.shapes
        if shape.name in names
    )
    arms = [
        replace(arm, speed={**arm.speed, **{long: arm.speed[name] for name, long in names.items() if arm.speed}})
        for arm in comparison.arms
    ]
    arms[2] = replace(arms[1], name="nvfp4")
    both = replace(fp8, shapes=(*fp8.shapes, *longer))
    comparison = replace(comparison, arms=tuple(arms), pairs=(both, replace(both, other="nvfp4")))
    first, second = charts.speed(comparison)
    assert (first.title, second.title) == ("Speed, 512 tokens in, 256 out", "Speed, 2048 tokens in, 256 out")
    assert (first.description.count(" at batch "), second.description.count(" at batch ")) == (9, 6)
    report = sections.of_report(comparison, None)
    assert [chart.title for chart in report.charts][:2] == [
        first.title,
        "Time of a decode step, " + shape_words("b1_i512_o256"),
    ]
    (fold,) = [fold for fold in report.folds if fold.ident == "speed"]
    assert [part.title for part in fold.parts if isinstance(part, Chart)] == [second.title], "the others are folded"
    step = report.charts[1]
    assert re.findall(r"expert GEMMs, (\w+):", step.description) == ["bf16", "fp8", "nvfp4"]


def test_notes_stand_below_the_speed_table_and_what_was_not_begun_is_listed() -> None:
    note = "1 of 1 warm-ups ended without having settled"
    comparison = with_shapes(lambda shape: replace(shape, notes={"fp8": (note,)}), only=1)
    skipped = (Skipped("nvfp4", "latency", "it is emulated"), Skipped("fp8_block", None, "there is no checkpoint"))
    comparison = replace(comparison, skipped=skipped)
    page = read(comparison)
    notes = "Notes on the measurement: fp8 against bf16"
    names = list(page.tables)
    assert names.index(notes) == names.index("Speed: fp8 against bf16 (medians)") + 1
    assert page.tables[notes][1:] == [[shape_words("b8_i512_o256"), "fp8", note]]
    assert page.tables["Arms that were skipped or failed"][-2:] == [
        ["nvfp4", "-", "without latency", "it is emulated"],
        ["fp8_block", "-", "skipped", "there is no checkpoint"],
    ]


def test_slow_samples_that_nobody_could_see_were_not_read() -> None:
    clocks = Clocks((None, None), (None, 1))
    rows = read(with_shapes(lambda shape: replace(shape, clocks=clocks))).tables[
        "Fairness and clocks: fp8 against bf16"
    ]
    assert [row[-2:] for row in rows] == [["slow samples of bf16", "slow samples of fp8"], *[["not read", "1"]] * 3]
