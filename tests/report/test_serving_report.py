"""What a report says of servers: tiles, the break-even map, figures and the chart of frontiers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from moe_eval.comparison import pairs
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.serving import ServingLimits
from moe_eval.records.verdicts import Rules
from moe_eval.report import drawing, markdown, sections, serving_chart, serving_table, tiles
from moe_eval.tracking import headlines, keys
from tests.doubles import served
from tests.doubles.recorded_arms import TIMED_ON

LIMITS = ServingLimits(tpot_ms=25.0)


def arm(name: str, gain: float, loads: tuple[float, ...] = (0.998, 1.002, 1.0)) -> ArmRecords:
    tpot = {users: [10 * users**0.5 / gain * load for load in loads] for users in (1, 2, 4, 8, 16)}
    record = served.record(name, tpot, replace(TIMED_ON, precision=name), limits=LIMITS)
    return ArmRecords(name, name, serving=record)


@pytest.fixture(scope="module")
def comparison() -> ComparisonRecord:
    arms = [arm("bf16", 1.0), arm("fp8", 1.2, (1.001, 0.999, 1.0))]
    return pairs.compare(arms, rules=Rules(price_per_gpu_hour=3.6))


def test_tiles_have_the_users_in_time_and_the_throughput_of_most_users(comparison: ComparisonRecord) -> None:
    (answer,) = sections.of_report(comparison, None).answers
    titles = {tile.title: tile for tile in answer.tiles}
    assert titles["Users in time"].value == "1.44x"
    assert "within 25 ms a token" in titles["Users in time"].detail
    assert titles["Output under load"].value == "480 tok/s"
    assert "16 users, 8 tokens in, 11 out" in titles["Output under load"].detail
    assert titles["Output under load"].verdict == "better"
    assert answer.place == "", "no batch was timed"
    assert "fp8 serves 1.44" in markdown.render(comparison, None)


def test_an_arm_that_was_served_alone_has_its_highest_throughput() -> None:
    alone = pairs.compare([arm("bf16", 1.0)]).arms[0]
    (tile,) = (tile for tile in tiles.of_arm(alone) if tile.title == "Output under load")
    assert tile.value.startswith("400")
    assert tile.value.endswith(" tok/s")
    assert tile.detail.endswith(", 16 users, 8 tokens in, 11 out")


def test_every_load_is_a_row_of_the_map_and_every_arm_has_its_figures(comparison: ComparisonRecord) -> None:
    verdicts, better, notes, figures = serving_table.tables(comparison)
    assert [row[:2] for row in verdicts.rows] == [
        (f"{users} user{'s' * (users > 1)}, 8 tokens in, 11 out", "pays") for users in (1, 2, 4, 8, 16)
    ]
    assert len(better.rows) == 5
    assert [row[:2] for row in notes.rows if "not saturated" in row[2]] == [
        ("16 users, 8 tokens in, 11 out", "bf16, fp8")
    ]
    assert [row[:2] for row in notes.rows if "p99" in row[2]] == [("every load", "bf16, fp8")], "it stands once"
    assert [row[0] for row in figures.rows] == ["bf16", "fp8"] * 5
    assert "J/tok" not in figures.heads, "nothing was metered"
    cells = dict(zip(figures.heads, figures.rows[-1], strict=True))
    assert cells["output tok/s per GPU"].startswith("480")


def test_the_chart_has_a_point_for_every_load_of_both_arms(comparison: ComparisonRecord) -> None:
    chart = serving_chart.frontiers(comparison)
    assert chart is not None
    assert len(chart.tips) == 10
    assert chart.tips["frontier-1-4"] == "fp8, 16 users, 8 tokens in, 11 out: 30 tok/s per user, 480 per GPU"
    root = ET.fromstring(drawing.svg(chart, "f"))
    drawn = {element.get("id") for element in root.iter()}
    assert {f"f-{ident}" for ident in chart.tips} <= drawn
    assert "25 ms a token" in "".join(root.itertext())
    assert "f-frontier-limit" in drawn
    report = sections.of_report(comparison, None)
    assert report.charts[0].title == chart.title
    assert "serving" in [fold.ident for fold in report.folds]


def test_one_point_is_no_frontier() -> None:
    sides = [
        ArmRecords(name, name, serving=served.record(name, {1: [10.0] * 3}, replace(TIMED_ON, precision=name)))
        for name in ("bf16", "fp8")
    ]
    assert serving_chart.frontiers(pairs.compare(sides)) is None


def test_a_million_tokens_cost_what_the_throughput_makes_of_the_price(comparison: ComparisonRecord) -> None:
    costs = [entry.cost["c16_i8_o11"].median for entry in comparison.arms]
    assert costs == pytest.approx([1e6 * 3.6 / 3600 / 400, 1e6 * 3.6 / 3600 / 480], rel=1e-3)


def test_mlflow_has_a_key_for_every_figure_of_every_point(comparison: ComparisonRecord) -> None:
    record = arm("fp8", 1.2).serving
    assert record is not None
    logged = keys.of_serving(record)
    assert logged["serving/c16_i8_o11/output_tok_s_per_gpu"] == pytest.approx(480, rel=1e-3)
    assert {f"serving/c1_i8_o11/tpot_p50_ms{end}" for end in ("", "_low", "_high")} <= set(logged)
    assert not [name for name in logged if "p99" in name or "j_per_tok" in name]
    of_arm = headlines.of_arm(comparison, "fp8")
    assert of_arm["headline/users_in_time_ratio"] == pytest.approx(1.44, rel=1e-3)
    assert of_arm["headline/served_tok_s_ratio"] == pytest.approx(1.2, rel=1e-3)
    assert headlines.of_arm(comparison, "bf16")["headline/served_tok_s_ratio"] == 1.0
