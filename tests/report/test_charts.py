"""The geometry of charts against the numbers they were drawn from, and the colours against the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_eval.report import bars, charts, drawing, points
from moe_eval.report.drawing import Chart
from moe_eval.report.points import Point, Series
from tests.doubles import compared_arms

NS = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with drawing.style():
        yield


def drawn(chart: Chart | None) -> tuple[Figure, Axes]:
    """The figure of a chart, which holds all that it draws."""
    assert chart is not None
    assert chart.title
    assert chart.description
    figure = chart.draw()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    outside = figure.get_tightbbox(canvas.get_renderer())
    wide, high = figure.get_size_inches()
    assert outside.x0 >= -0.02, "nothing is drawn outside the picture"
    assert outside.y0 >= -0.02
    assert outside.x1 <= wide + 0.02
    assert outside.y1 <= high + 0.02
    return figure, axes


def boxes(axes: Axes, start: str) -> dict[str, Rectangle]:
    """Bars by the rest of their id."""
    patches = {str(patch.get_gid()): patch for patch in axes.patches if isinstance(patch, Rectangle)}
    return {name.removeprefix(start): patch for name, patch in patches.items() if name.startswith(start)}


def whiskers(axes: Axes) -> dict[str, ErrorbarContainer]:
    return {str(bar.get_label()): bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)}


def assert_drawn(bar: ErrorbarContainer, point: Point, axis: int) -> None:
    """A marker at the point, hollow without an interval, and whiskers at the interval's ends."""
    line, _, (*bars_of_point,) = bar.lines
    assert line is not None
    assert list(line.get_data()[axis]) == [point.value]
    assert (to_hex(line.get_markerfacecolor()) == drawing.COLOURS["page"]) == (point.low is None)
    assert bool(bars_of_point) == (point.low is not None)
    for whisker in bars_of_point:
        assert [end[axis] for end in whisker.get_segments()[0]] == pytest.approx([point.low, point.high])


RATIOS = [
    Series(1, "fp8", {1: Point(1.04, 0.98, 1.10), 8: Point(1.29, 1.27, 1.32), 64: Point(1.46, 1.44, 1.48)}),
    Series(2, "nvfp4", {1: Point(0.9, None, None), 8: Point(1.7, 1.2, 2.4)}),
]


def test_points_and_whiskers_lie_where_the_numbers_say() -> None:
    _, axes = drawn(points.ratios("Speed-up", RATIOS, 0.01))
    by_label = whiskers(axes)
    assert len(by_label) == 5
    for series in RATIOS:
        for batch, point in series.points.items():
            assert_drawn(by_label[f"{series.index}-{batch}"], point, axis=1)
    lines = {str(line.get_gid()): set(line.get_ydata()) for line in axes.lines}
    assert (lines["same"], lines["gain"]) == ({1}, {1.01})


def test_the_axes_are_logarithmic_and_arms_differ_in_shape_and_place() -> None:
    _, axes = drawn(points.ratios("Speed-up", RATIOS, 0.01))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "8", "64"]
    assert len(axes.get_yticks()) >= 2
    lines = [whiskers(axes)[label].lines[0] for label in ("1-8", "2-8")]
    assert lines[0].get_xdata()[0] < 8 < lines[1].get_xdata()[0], "arms of one batch size stand side by side"
    assert lines[0].get_marker() != lines[1].get_marker()
    assert len({(drawing.CYCLE[at % 7], drawing.MARKERS[at % 5]) for at in range(35)}) == 35


@pytest.mark.parametrize(
    "series",
    [
        [Series(1, "a", {4: Point(1.0, 1.0, 1.0)})],
        [Series(0, "a", {1: Point(900.0, 0.001, 5e4)})],
        [Series(at, "long name " * 30, {1: Point(1.0, 0.9, 1.1), 2: Point(1.0, 0.9, 1.1)}) for at in range(9)],
        [Series(0, "a", {batch: Point(1.0, 0.9, 1.1) for batch in range(1, 40)})],
    ],
)
def test_extreme_ratios_are_drawn_inside(series: list[Series]) -> None:
    _, axes = drawn(points.ratios("t", series, 0.01))
    assert any(text.get_text().endswith("x") for text in axes.get_yticklabels())


BARS = [
    ("bf16", {"expert_gemm": 4.0, "attention": 1.5, "norm": 0.5}),
    ("fp8", {"expert_gemm": 1.6, "attention": 1.5, "quant_dequant": 0.9, "norm": 0.5}),
]
ORDER = ("expert_gemm", "attention", "norm", "quant_dequant")


def test_stacked_bars_are_in_proportion_and_add_up() -> None:
    _, axes = drawn(bars.stacked("ms", BARS, ORDER))
    by_id = boxes(axes, "bar-")
    for row, (name, times) in enumerate(BARS):
        end = 0.0
        for index, key in enumerate(ORDER):
            box = by_id.pop(f"{row}-{index}", None)
            assert (box is not None) == (key in times)
            if box is not None:
                assert (box.get_x(), box.get_width()) == pytest.approx((end, times[key]))
                end += times[key]
        assert f"{name}: {sum(times.values()):.3f} ms" in [text.get_text() for text in axes.texts]
    assert not by_id
    assert axes.get_xlim()[0] == 0


def test_a_category_looks_alike_whether_or_not_others_are_there() -> None:
    def look(chart: Chart | None, box: str) -> tuple[str, str, str]:
        figure, axes = drawn(chart)
        patch = boxes(axes, "bar-")[box]
        (label,) = [text.get_text() for text in figure.legends[0].get_texts() if "quant dequant" in text.get_text()]
        return to_hex(patch.get_facecolor()), str(patch.get_hatch()), label.split()[0]

    first = look(bars.stacked("ms", BARS, ORDER), "1-3")
    assert first == look(bars.stacked("ms", [("fp8", {"quant_dequant": 1.0})], ORDER), "0-3")
    assert first[2] == str(ORDER.index("quant_dequant") + 1)


def test_more_categories_than_colours_differ_in_pattern() -> None:
    names = [f"c{at}" for at in range(16)]
    chart = bars.stacked("ms", [("a", dict.fromkeys(names, 1.0))], names)
    _, axes = drawn(chart)
    patches = boxes(axes, "bar-").values()
    assert len({(to_hex(patch.get_facecolor()), patch.get_hatch()) for patch in patches}) == 16
    assert chart is not None
    assert len(drawing.svg(chart, "f")) < 60_000


def test_the_waterfall_begins_at_one_step_and_ends_at_the_other() -> None:
    changes = [("expert GEMM", -2.4), ("quantise", 0.9), ("norm", 0.0), ("waiting", 0.3), ("residual", -0.05)]
    _, axes = drawn(bars.waterfall("ms", (("bf16", 6.0), ("fp8", 4.75)), changes))
    rows = boxes(axes, "row-")
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["bf16", "expert GEMM", "quantise", "waiting", "residual", "fp8"]
    assert (rows["0"].get_x(), rows["0"].get_width()) == (0, 6.0)
    level = 6.0
    for at, change in enumerate((change for _, change in changes if change), 1):
        row = rows[f"{at}"]
        assert (row.get_x(), row.get_width()) == pytest.approx((level, change))
        assert (row.get_hatch() != "") == (change > 0), "what costs time is hatched as well as coloured"
        assert to_hex(row.get_facecolor()) == drawing.COLOURS["c1" if change > 0 else "c2"]
        level += change
    assert (rows["5"].get_x(), rows["5"].get_width()) == pytest.approx((0, level))


def test_small_changes_are_one_row_of_the_waterfall() -> None:
    changes = [("a", 0.001), ("expert GEMM", -2.4), ("b", -0.004), ("c", 0.002), ("waiting", 0.3)]
    _, axes = drawn(bars.waterfall("ms", (("bf16", 6.0), ("fp8", 3.899)), changes))
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["bf16", "expert GEMM", "waiting", "3 smaller changes", "fp8"]
    rows = boxes(axes, "row-")
    end = rows["3"].get_x() + rows["3"].get_width()
    assert end == pytest.approx(rows["4"].get_width()), "the last change ends where the other step does"


def test_quality_has_its_whiskers_zero_and_noise_floor_in_place() -> None:
    series = [
        Series(1, "fp8", {0: Point(0.004, 0.002, 0.006)}),
        Series(2, "nvfp4", {0: Point(0.02, 0.01, 0.03)}),
        Series(3, "third", {0: Point(-0.001, None, None)}),
    ]
    _, axes = drawn(points.quality("ppl", series, 0.0005))
    for arm in series:
        assert_drawn(whiskers(axes)[f"{arm.index}"], arm.points[0], axis=0)
    band = boxes(axes, "noise")[""]
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.0005, 0.001))
    (zero,) = [line for line in axes.lines if line.get_gid() == "zero"]
    assert set(zero.get_xdata()) == {0}


def test_lengths_are_in_proportion() -> None:
    _, axes = drawn(bars.lengths("KLD", [(1, "fp8", 0.002), (2, "nvfp4", 0.03), (3, "same", 0.0)], "nats", 5))
    assert [box.get_width() for box in boxes(axes, "arm-").values()] == [0.002, 0.03, 0.0]


def test_nothing_gives_no_chart() -> None:
    assert points.ratios("t", [], 0.01) is points.ratios("t", [Series(0, "a", {})], 0.01) is None
    assert bars.stacked("t", [], ()) is bars.stacked("t", [("a", {"norm": 0.0})], ("norm",)) is None
    assert bars.waterfall("t", (("a", 0.0), ("b", 0.0)), []) is None
    assert points.quality("t", [], 0.1) is bars.lengths("t", [], "nats", 5) is None
    assert bars.lengths("t", [(0, "a", 0.0)], "nats", 5) is None


def test_bars_and_waterfalls_are_drawn_from_the_comparison() -> None:
    comparison = compared_arms.comparison()
    shape = comparison.pairs[0].shapes[1]
    by_title = {
        chart.title: chart for phases in charts.steps(comparison).values() for phase in phases for chart in phase.charts
    }
    assert shape.breakdown
    assert shape.kernels
    _, axes = drawn(by_title[f"Kernel time per step by category, {shape.name}, decode"])
    order = list(charts.SHOWN_CATEGORIES)
    lengths = {name: box.get_width() for name, box in boxes(axes, "bar-").items()}
    for category, values in shape.breakdown["decode"].items():
        for row, ms in enumerate(values):
            assert lengths.get(f"{row}-{order.index(category)}", 0) == pytest.approx(ms)
    change = shape.kernels["prefill"]
    assert change.step_ms
    _, axes = drawn(by_title[f"From a step of bf16 to one of fp8, {shape.name}, prefill"])
    names = [text.get_text() for text in axes.get_yticklabels()]
    rows = dict(zip(names, (box.get_width() for box in boxes(axes, "row-").values()), strict=True))
    assert (rows["bf16"], rows["fp8"]) == pytest.approx(change.step_ms)
    assert rows["expert GEMM"] == pytest.approx(change.categories["expert_gemm"].change_ms)
    assert rows["waiting"] == pytest.approx(change.waiting_change_ms)


def test_what_does_not_explain_the_measured_ratio_is_grey() -> None:
    (grey,) = {drawing.COLOURS["c5"]}

    def faces(axes: Axes, start: str) -> set[str]:
        return {to_hex(patch.get_facecolor()) for patch in boxes(axes, start).values()}

    ends = (("bf16", 6.0), ("fp8", 5.0))
    changes = [("expert GEMM", -2.0), ("quantise", 1.0)]
    figure, axes = drawn(bars.waterfall("ms", ends, changes, is_grey=True))
    assert faces(axes, "row-") == {to_hex(patch.get_facecolor()) for patch in figure.legends[0].get_patches()} == {grey}
    assert [patch.get_hatch() != "" for patch in boxes(axes, "row-").values()] == [False, False, True, False]
    figure, axes = drawn(bars.stacked("ms", BARS, ORDER, grey=["fp8"]))
    assert faces(axes, "bar-1") == {grey}
    assert faces(axes, "bar-0") == {drawing.CYCLE[at] for at in range(3)}
    key = [to_hex(patch.get_facecolor()) for patch in figure.legends[0].get_patches()]
    assert key == [drawing.CYCLE[at] for at in range(4)], "the key keeps its colours"


def test_a_phase_that_is_not_explained_is_grey_and_says_so() -> None:
    for chart, is_explained in (
        (chart, phase.name == "decode")
        for phases in charts.steps(compared_arms.with_unexplained_prefill()).values()
        for phase in phases
        for chart in phase.charts
    ):
        _, axes = drawn(chart)
        stacked = boxes(axes, "bar-1")
        faces = {to_hex(patch.get_facecolor()) for patch in (stacked or boxes(axes, "row-")).values()}
        assert ("do not explain the measured ratio" in chart.caption) is not is_explained
        assert (faces == {drawing.COLOURS["c5"]}) is not is_explained


def test_an_svg_can_be_read_without_seeing_and_takes_the_page_s_colours() -> None:
    chart = points.ratios("Speed-up <of> $x$", RATIOS, 0.01)
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


def test_the_picture_of_the_ratios_is_a_png(tmp_path: Path) -> None:
    file = tmp_path / "report.png"
    assert charts.ratios_png(compared_arms.comparison(), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]


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
