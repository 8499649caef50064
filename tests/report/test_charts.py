"""The geometry of charts against the numbers they were drawn from, and the colours against the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_eval.records.verdicts import Rules
from moe_eval.report import bars, charts, drawing, picture, points
from moe_eval.report.bars import StepTimes
from moe_eval.report.drawing import Chart
from moe_eval.report.points import Point, Series
from tests.doubles import compared_arms

NS = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with drawing.style():
        yield


def drawn(chart: Chart | None) -> tuple[Figure, Axes]:
    """The figure of a chart, which holds all that it draws, and a part for every tip."""
    assert chart is not None
    assert chart.title
    assert chart.description
    figure = Figure(figsize=(drawing.WIDTH, chart.height))
    chart.draw(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    outside = figure.get_tightbbox(canvas.get_renderer())
    wide, high = figure.get_size_inches()
    assert outside.x0 >= -0.02, "nothing is drawn outside the picture"
    assert outside.y0 >= -0.02
    assert outside.x1 <= wide + 0.02
    assert outside.y1 <= high + 0.02
    parts = {str(part.get_gid()) for part in axes.get_children()}
    assert parts >= set(chart.tips)
    return figure, axes


def boxes(axes: Axes, start: str) -> dict[str, Rectangle]:
    """Bars by the rest of their id."""
    patches = {str(patch.get_gid()): patch for patch in axes.patches if isinstance(patch, Rectangle)}
    return {name.removeprefix(start): patch for name, patch in patches.items() if name.startswith(start)}


def whiskers(axes: Axes) -> dict[str, ErrorbarContainer]:
    return {
        str(bar.get_label()).removeprefix("point-"): bar
        for bar in axes.containers
        if isinstance(bar, ErrorbarContainer)
    }


def assert_drawn(bar: ErrorbarContainer, point: Point, axis: int) -> None:
    """A marker at the point, hollow without an interval, and whiskers at the interval's ends."""
    line, _, (*bars_of_point,) = bar.lines
    assert line is not None
    assert list(line.get_data()[axis]) == [point.value]
    assert (to_hex(line.get_markerfacecolor()) == drawing.COLOURS["page"]) == (point.low is None)
    assert bool(bars_of_point) == (point.low is not None)
    for whisker in bars_of_point:
        assert [end[axis] for end in whisker.get_segments()[0]] == pytest.approx([point.low, point.high])


RATES = [
    Series(0, "bf16", {1: Point(194.0, 191.0, 197.0), 8: Point(800.0, 790.0, 810.0), 64: Point(2100.0, 2050, 2150)}),
    Series(1, "fp8", {1: Point(197.0, 190.0, 204.0, "197", "1.016x"), 8: Point(1030.0, None, None, "1,030", "1.29x")}),
]


def test_points_whiskers_and_joins_lie_where_the_numbers_say() -> None:
    _, axes = drawn(points.speed("Speed", RATES))
    by_label = whiskers(axes)
    assert len(by_label) == 5
    for series in RATES:
        for batch, point in series.points.items():
            assert_drawn(by_label[f"{series.index}-{batch}"], point, axis=1)
            assert list(by_label[f"{series.index}-{batch}"].lines[0].get_xdata()) == [batch]
    joined = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 1]
    assert joined == [[1, 8, 64], [1, 8]]
    assert {text.get_text() for text in axes.texts} >= {"1.016x", "1.29x"}
    shapes = {by_label[label].lines[0].get_marker() for label in ("0-1", "1-1")}
    assert len(shapes) == 2, "arms differ in more than colour"
    assert len({(drawing.CYCLE[at % 7], drawing.MARKERS[at % 5]) for at in range(35)}) == 35


@pytest.mark.parametrize(("batches", "scale"), [((1, 8, 64), "log"), ((1, 12, 64), "linear"), ((3, 6, 9), "linear")])
def test_powers_of_two_stand_at_equal_distances(batches: tuple[int, ...], scale: str) -> None:
    _, axes = drawn(
        points.speed("Speed", [Series(0, "a", {batch: Point(10.0 * batch, None, None) for batch in batches})])
    )
    assert axes.get_xscale() == scale
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"{batch}" for batch in batches]


@pytest.mark.parametrize(
    "series",
    [
        [Series(0, "a", {1: Point(900.0, 0.001, 5e6), 2: Point(1.0, None, None)})],
        [Series(at, "long name " * 30, {1: Point(1.0, 0.9, 1.1), 2: Point(1.0, 0.9, 1.1)}) for at in range(9)],
        [Series(0, "a", {batch: Point(1.0, 0.9, 1.1) for batch in range(1, 40)})],
    ],
)
def test_extreme_rates_are_drawn_inside(series: list[Series]) -> None:
    _, axes = drawn(points.speed("t", series))
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


STEPS = [
    StepTimes(0, "bf16", {"expert GEMMs": 4.0, "attention": 1.5, "norms": 0.05, "router GEMM": 0.06}),
    StepTimes(1, "fp8", {"expert GEMMs": 1.6, "attention": 1.5, "quantisation": 0.9, "norms": 0.05}),
]


def test_bars_of_a_step_are_in_proportion_and_say_the_difference() -> None:
    chart = bars.steps("ms", STEPS)
    _, axes = drawn(chart)
    by_id = boxes(axes, "bar-")
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["expert GEMMs", "attention", "quantisation", "2 smaller ones"]
    expected = [(4.0, 1.6), (1.5, 1.5), (0.0, 0.9), (0.11, 0.05)]
    for row, times in enumerate(expected):
        assert [by_id[f"{row}-{at}"].get_width() for at in (0, 1)] == pytest.approx(times)
        assert {by_id[f"{row}-{at}"].get_x() for at in (0, 1)} == {0}
    assert sum(sum(times) for times in expected) == pytest.approx(sum(sum(arm.ms.values()) for arm in STEPS))
    texts = [text.get_text() for text in axes.texts]
    assert [text for text in texts if "(" in text] == [
        "1.6 ms (-2.4)",
        "1.5 ms (0.0)",
        "0.90 ms (+0.90)",
        "0.050 ms (-0.060)",
    ]
    assert chart is not None
    assert chart.tips["bar-0-1"] == "expert GEMMs, fp8: 1.6 ms (-2.4)"
    assert "quantisation, bf16: 0 ms" in chart.description
    assert axes.get_xlim()[0] == 0


def test_arms_of_a_step_differ_in_colour_and_pattern_and_grey_has_no_colour() -> None:
    arms = [StepTimes(at, f"arm {at}", {"norms": 1.0 + at}, is_grey=at == 2) for at in range(10)]
    _, axes = drawn(bars.steps("t", arms))
    looks = [(to_hex(box.get_facecolor()), box.get_hatch()) for box in boxes(axes, "bar-").values()]
    assert len(set(looks)) == 10
    assert looks[2][0] == drawing.COLOURS["c5"]
    key = axes.get_legend()
    assert key is not None
    assert [to_hex(patch.get_facecolor()) for patch in key.get_patches()] == [colour for colour, _ in looks]


def test_quality_has_its_whiskers_zero_and_noise_floor_in_place() -> None:
    series = [
        Series(1, "fp8", {0: Point(0.4, 0.2, 0.6)}),
        Series(2, "nvfp4", {0: Point(2.0, 1.0, 3.0)}),
        Series(3, "third", {0: Point(-0.1, None, None)}),
    ]
    _, axes = drawn(points.quality("ppl", series, 0.05))
    for arm in series:
        assert_drawn(whiskers(axes)[f"{arm.index}-0"], arm.points[0], axis=0)
    band = boxes(axes, "noise")[""]
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.05, 0.1))
    (zero,) = [line for line in axes.lines if line.get_gid() == "zero"]
    assert set(zero.get_xdata()) == {0}


def test_nothing_gives_no_chart() -> None:
    assert points.speed("t", []) is points.speed("t", [Series(0, "a", {})]) is None
    assert points.speed("t", [Series(0, "a", {8: Point(1.0, 0.9, 1.1)})]) is None, "one batch size has nothing to join"
    assert bars.steps("t", []) is bars.steps("t", [StepTimes(0, "a", {"norms": 0.0})]) is None
    assert points.quality("t", [], 0.1) is None


def test_the_speed_chart_has_the_rates_of_the_comparison_and_leaves_emulated_arms_out() -> None:
    comparison = compared_arms.comparison()
    (chart,) = charts.speed(comparison)
    _, axes = drawn(chart)
    by_label = whiskers(axes)
    assert by_label.keys() == {f"{arm}-{batch}" for arm in (0, 1) for batch in (1, 8, 32)}
    for index, arm in enumerate(comparison.arms[:2]):
        for batch in (1, 8, 32):
            rate = arm.speed[f"b{batch}_i512_o256"]["output_tok_s"]
            assert_drawn(by_label[f"{index}-{batch}"], Point(rate.median, rate.low, rate.high), axis=1)
    assert {text.get_text() for text in axes.texts} >= {"1.040x", "1.29x", "1.44x"}
    emulated = replace(comparison, arms=tuple(replace(arm, emulated=True) for arm in comparison.arms))
    assert charts.speed(emulated) == []
    halved = replace(comparison, arms=tuple(replace(arm, gpus=2) for arm in comparison.arms))
    _, axes = drawn(charts.speed(halved)[0])
    rate = comparison.arms[1].speed["b8_i512_o256"]["output_tok_s"].median
    assert whiskers(axes)["1-8"].lines[0].get_ydata()[0] == pytest.approx(rate / 2), "figures are per GPU"


def test_the_step_chart_is_of_the_phase_that_decides_and_shows_all_of_a_step() -> None:
    comparison = compared_arms.comparison()
    shape = comparison.pairs[0].shapes[0]
    assert shape.breakdown
    assert shape.kernels
    for rules, phase in ((Rules(), "decode"), (Rules(decide_on="ttft"), "prefill")):
        chart = charts.steps(replace(comparison, rules=rules))
        assert chart is not None
        assert chart.title == f"Time of a {phase} step, batch 1, 512 tokens in, 256 out"
        _, axes = drawn(chart)
        by_id = boxes(axes, "bar-")
        change = shape.kernels[phase]
        assert change.step_ms
        assert change.busy_ms
        for at in (0, 1):
            idle = change.step_ms[at] - change.busy_ms[at]
            kernels = sum(sides[at] for sides in shape.breakdown[phase].values())
            widths = [box.get_width() for name, box in by_id.items() if name.endswith(f"-{at}")]
            assert sum(widths) == pytest.approx(kernels + idle)


def test_what_does_not_explain_the_measured_ratio_is_grey_and_says_so() -> None:
    comparison = replace(compared_arms.with_unexplained_prefill(), rules=Rules(decide_on="ttft"))
    chart = charts.steps(comparison)
    assert chart is not None
    assert "do not explain the measured speed of fp8" in chart.caption
    _, axes = drawn(chart)
    faces = {name: to_hex(box.get_facecolor()) for name, box in boxes(axes, "bar-").items()}
    assert (faces["0-0"], faces["0-1"]) == (drawing.CYCLE[0], drawing.COLOURS["c5"])
    explained = charts.steps(replace(comparison, rules=Rules()))
    assert explained is not None
    assert "Grey" not in explained.caption


def test_scores_of_random_weights_are_not_drawn() -> None:
    comparison = compared_arms.comparison()
    assert charts.quality(comparison) is not None
    pairs = tuple(
        replace(pair, quality=pair.quality and replace(pair.quality, random_weights=True)) for pair in comparison.pairs
    )
    assert charts.quality(replace(comparison, pairs=pairs)) is None


def test_an_svg_can_be_read_without_seeing_and_takes_the_page_s_colours() -> None:
    chart = points.speed("Speed <of> $x$", RATES)
    assert chart is not None
    text = drawing.svg(chart, "figure-7")
    root = ET.fromstring(text)
    title, description = root.find(f"{NS}title"), root.find(f"{NS}desc")
    assert root.get("role") == "img"
    assert title is not None
    assert description is not None
    assert (title.text, description.text) == (chart.title, chart.description)
    assert (root.get("aria-labelledby"), root.get("aria-describedby")) == (title.get("id"), description.get("id"))
    assert all(str(element.get("id", "figure-7-")).startswith("figure-7-") for element in root.iter())
    assert not re.search(r"#[0-9a-f]{6}\b", text), "every colour is a variable of the page"
    assert not root.findall(f".//{NS}style")
    assert "8" in [element.text for element in root.iter(f"{NS}text")], "text stays text"
    tips = {part.get("id"): tip.text for part in root.iter() if (tip := part.find(f"{NS}title")) is not None}
    assert tips["figure-7-point-1-8"] == "fp8 at batch 8: 1,030", "every point has a tip"
    assert len(tips) == 1 + 5


def test_the_picture_says_it_all_in_one_png(tmp_path: Path) -> None:
    file = tmp_path / "report.png"
    comparison = compared_arms.comparison()
    assert picture.write(comparison, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]
    nothing = replace(comparison, pairs=(), arms=comparison.arms[3:4])
    assert not picture.write(nothing, file)


def colours(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", text))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, ground: str) -> float:
    high, low = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> dict[str, dict[str, str]]:
    style = resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    return {"light": colours(light), "dark": colours(light) | colours(dark.split("\n}\n")[0])}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_stands_out_from_the_page(theme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    theme_colours = themes()[theme]
    for at in range(len(drawing.CYCLE)):
        assert contrast(theme_colours[f"c{at}"], theme_colours["page"]) >= 4.5, "numbers in bars have the page's colour"
    for name in ("text", "soft", "link"):
        assert contrast(theme_colours[name], theme_colours["page"]) >= 4.5
    assert contrast(theme_colours["text"], theme_colours["panel"]) >= 4.5
    assert contrast(theme_colours["text"], theme_colours["band"]) >= 4.5


def test_themes_differ_and_print_is_light() -> None:
    theme_colours = themes()
    assert all(theme_colours["light"][f"c{at}"] != theme_colours["dark"][f"c{at}"] for at in range(len(drawing.CYCLE)))
    assert luminance(theme_colours["light"]["page"]) == pytest.approx(1)
    assert luminance(theme_colours["dark"]["page"]) < 0.02
    style = resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8")
    assert style.count("prefers-color-scheme") == 1, "the one dark block holds for screens alone"
    assert not re.search(r"url\(|@import|@font-face", style)


def test_charts_are_drawn_in_the_colours_of_the_light_theme() -> None:
    assert themes()["light"].items() >= drawing.COLOURS.items()
    assert len(set(drawing.COLOURS.values())) == len(drawing.COLOURS)
