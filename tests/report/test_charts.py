"""The geometry of charts against the numbers they were given, by their own axes, and the colours against the page."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from importlib import resources

import pytest

from moe_eval.report import charts, svg
from moe_eval.report.charts import Point, Series

NS = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ET.Element:
    root = ET.fromstring(text)
    assert root.tag == f"{NS}svg"
    assert root.get("role") == "img"
    title, desc = root.find(f"{NS}title"), root.find(f"{NS}desc")
    assert title is not None
    assert desc is not None
    assert title.text
    assert desc.text
    assert (root.get("aria-labelledby"), root.get("aria-describedby")) == (title.get("id"), desc.get("id"))
    inside(root)
    return root


def inside(root: ET.Element) -> None:
    """Nothing is drawn outside the picture."""
    _, _, wide, high = map(float, root.get("viewBox", "").split())
    for each in root.iter():
        if each.tag in (f"{NS}pattern", f"{NS}path") or (each.tag == f"{NS}circle" and each.get("class") == "dot"):
            continue
        for keys, limit in ((("x", "x1", "x2", "cx"), wide), (("y", "y1", "y2", "cy"), high)):
            for key in keys:
                assert -0.01 <= float(each.get(key, "0")) <= limit + 0.01, ET.tostring(each)
        if each.tag == f"{NS}rect":
            assert float(each.get("x", "0")) + float(each.get("width", "0")) <= wide + 0.01
        if each.tag == f"{NS}text":
            size = svg.width_of(each.text or "")
            before = {"start": 0.0, "middle": size / 2, "end": size}[each.get("text-anchor", "start")]
            x = float(each.get("x", "0"))
            assert x - before >= -1, each.text
            assert x - before + size <= wide + 1, each.text


def groups(root: ET.Element, **wanted: str) -> list[ET.Element]:
    return [
        each for each in root.iter(f"{NS}g")
        if all(each.get(f"data-{key}") == value for key, value in wanted.items()) and each.keys()
    ]  # fmt: skip


def number(each: ET.Element | None, key: str) -> float:
    assert each is not None
    return float(each.get(key, "nan"))


def axis(root: ET.Element, kind: str, pattern: str) -> list[tuple[float, float]]:
    """Places and values of ticks: gridlines paired with the texts at their height, or x of texts."""
    return [
        (float(each.get(kind, "0")), float(found[1].replace(",", "")))
        for each in root.iter(f"{NS}text")
        if each.get("class") == "tick" and (found := re.fullmatch(pattern, each.text or ""))
    ]  # fmt: skip


RATIOS = [
    Series(1, "fp8", {1: Point(1.04, 0.98, 1.10), 8: Point(1.29, 1.27, 1.32), 64: Point(1.46, 1.44, 1.48)}),
    Series(2, "nvfp4", {1: Point(0.9, None, None), 8: Point(1.7, 1.2, 2.4)}),
]


def test_points_and_whiskers_lie_where_the_axis_says() -> None:
    root = parsed(charts.ratios("f", "Speed-up", RATIOS))
    ticks = axis(root, "y", r"([\d.]+)x")
    assert len(ticks) >= 2
    (y1, v1), (y2, v2) = ticks[0], ticks[-1]

    def value_at(y: float) -> float:
        share = (y + 4 - y1) / (y2 - y1)  # a tick's text has its baseline 4 below the line
        return math.exp(math.log(v1) + share * (math.log(v2) - math.log(v1)))

    for series in RATIOS:
        for batch, point in series.points.items():
            (group,) = groups(root, arm=series.name, batch=str(batch))
            lines = [each for each in group if each.tag == f"{NS}line"]
            if point.low is None or point.high is None:
                assert not lines
                assert "f" not in {each.get("class", "")[7:8] for each in group}, "a point without interval is hollow"
                continue
            shaft = lines[0]
            assert value_at(number(shaft, "y1")) == pytest.approx(point.low, rel=1e-3)
            assert value_at(number(shaft, "y2")) == pytest.approx(point.high, rel=1e-3)
            if series.name == "fp8":
                box = group.find(f"{NS}rect")
                middle = number(box, "y") + number(box, "height") / 2
                assert value_at(middle) == pytest.approx(point.value, rel=1e-3)
    (one,) = [each for each in root.iter(f"{NS}line") if each.get("class") == "one"]
    assert value_at(number(one, "y1")) == pytest.approx(1, rel=1e-3)


def test_the_batch_axis_is_logarithmic_and_arms_differ_in_shape() -> None:
    root = parsed(charts.ratios("f", "Speed-up", RATIOS))
    x = {value: place for place, value in axis(root, "x", r"(\d+)")}
    assert (x[64] - x[8]) / (x[8] - x[1]) == pytest.approx(1, rel=1e-4)
    shafts = [group[0].get("x1") for group in groups(root, batch="8")]
    assert len(set(shafts)) == len(RATIOS), "arms of one batch size stand side by side"
    shapes = {name: {each.tag for each in groups(root, arm=name)[0] if "marker" in each.get("class", "")}
              for name in ("fp8", "nvfp4")}  # fmt: skip
    assert shapes["fp8"] != shapes["nvfp4"]


def test_many_markers_differ() -> None:
    looks = {re.sub(r'"[\d. ,-]+"', "", svg.marker(which, 10, 10)) + str(which % svg.MARKERS) for which in range(35)}
    assert len(looks) == 35


@pytest.mark.parametrize(
    "series", [[Series(1, "a", {4: Point(1.0, 1.0, 1.0)})], [Series(0, "a", {1: Point(900.0, 0.001, 5e4)})]]
)
def test_extreme_ratios_are_drawn_inside(series: list[Series]) -> None:
    root = parsed(charts.ratios("f", "t", series))
    assert axis(root, "y", r"([\d.,]+)x")


BARS = [
    ("bf16", {"expert_gemm": 4.0, "attention": 1.5, "norm": 0.5}),
    ("fp8", {"expert_gemm": 1.6, "attention": 1.5, "quant_dequant": 0.9, "norm": 0.5}),
]
ORDER = ("expert_gemm", "attention", "norm", "quant_dequant")


def test_stacked_bars_are_in_proportion_and_add_up() -> None:
    root = parsed(charts.stacked("f", "ms", BARS, ORDER))
    scale = None
    for name, parts in BARS:
        at = None
        for key in ORDER:
            found = groups(root, arm=name, category=key)
            if not parts.get(key):
                assert not found
                continue
            box = found[0].find(f"{NS}rect")
            scale = scale or number(box, "width") / parts[key]
            assert number(box, "width") == pytest.approx(scale * parts[key], abs=2e-3)
            assert at is None or number(box, "x") == pytest.approx(at, abs=2e-3)
            at = number(box, "x") + number(box, "width")
        total = sum(parts.values())
        assert at == pytest.approx(10 + (scale or 0) * total, abs=5e-3)
        assert f"{total:.3f} ms" in [each.text for each in root.iter(f"{NS}text")]
    places = axis(root, "x", r"([\d.]+)(?: ms)?")
    zero, two = next(x for x, v in places if v == 0), next(x for x, v in places if v == 2)
    assert two - zero == pytest.approx(2 * (scale or 0), abs=2e-3)


def test_a_category_looks_alike_whether_or_not_others_are_there() -> None:
    def look(bars: list[tuple[str, dict[str, float]]]) -> tuple[str | None, str | None]:
        (group,) = groups(parsed(charts.stacked("f", "ms", bars, ORDER)), arm="fp8", category="quant_dequant")
        return group[0].get("class"), group.findtext(f"{NS}text")

    assert look(BARS) == look([("fp8", {"quant_dequant": 1.0})])
    assert look(BARS)[1] == str(ORDER.index("quant_dequant") + 1)


def test_more_categories_than_colours_differ_in_pattern() -> None:
    names = [f"c{at}" for at in range(16)]
    root = parsed(charts.stacked("f", "ms", [("a", dict.fromkeys(names, 1.0))], names))
    looks = [
        tuple(
            each.get("fill") or each.get("class") for each in groups(root, arm="a", category=name)[0].iter(f"{NS}rect")
        )
        for name in names
    ]
    assert len(set(looks)) == 16
    ids = {each.get("id") for each in root.iter(f"{NS}pattern")}
    used = {found for each in root.iter() for found in re.findall(r"url\(#(.+)\)", each.get("fill", ""))}
    assert used
    assert used <= ids


def test_the_waterfall_begins_at_one_step_and_ends_at_the_other() -> None:
    changes = [("expert GEMM", -2.4), ("quantise", 0.9), ("norm", 0.0), ("waiting", 0.3), ("residual", -0.05)]
    root = parsed(charts.waterfall("f", "ms", (("bf16", 6.0), ("fp8", 4.75)), changes))
    rows = groups(root)
    assert [each.get("data-row") for each in rows] == ["bf16", "expert GEMM", "quantise", "waiting", "residual", "fp8"]
    boxes = [each.find(f"{NS}rect") for each in rows]
    zero, scale = number(boxes[0], "x"), number(boxes[0], "width") / 6.0
    level = 6.0
    for box, row, (_, change) in zip(boxes[1:-1], rows[1:-1], [each for each in changes if each[1]], strict=True):
        assert number(box, "x") == pytest.approx(zero + scale * min(level, level + change), abs=5e-3)
        assert number(box, "width") == pytest.approx(scale * abs(change), abs=5e-3)
        assert row.get("data-kind") == ("cost" if change > 0 else "gain")
        assert len(row) == (2 if change > 0 else 1), "what costs time is hatched as well as coloured"
        level += change
    assert number(boxes[-1], "x") == pytest.approx(zero, abs=5e-3)
    assert number(boxes[-1], "width") == pytest.approx(scale * level, abs=5e-3)


def test_small_changes_are_one_row_of_the_waterfall() -> None:
    changes = [("a", 0.001), ("expert GEMM", -2.4), ("b", -0.004), ("c", 0.002), ("waiting", 0.3)]
    root = parsed(charts.waterfall("f", "ms", (("bf16", 6.0), ("fp8", 3.899)), changes))
    rows = [each.get("data-row") for each in groups(root)]
    assert rows == ["bf16", "expert GEMM", "waiting", "3 smaller changes", "fp8"]
    boxes = [each.find(f"{NS}rect") for each in groups(root)]
    end = number(boxes[-1], "x") + number(boxes[-1], "width")
    assert number(boxes[-2], "x") == pytest.approx(end, abs=5e-3), "the last change ends where the other step does"


def test_quality_has_its_whiskers_zero_and_noise_floor_in_place() -> None:
    series = [
        Series(1, "fp8", {0: Point(0.004, 0.002, 0.006)}), Series(2, "nvfp4", {0: Point(0.02, 0.01, 0.03)}),
        Series(3, "other", {0: Point(-0.001, None, None)}),
    ]  # fmt: skip
    root = parsed(charts.quality("f", "ppl", series, 0.0005))
    places = axis(root, "x", r"([+-]?[\d.]+)")
    (x1, v1), (x2, v2) = [each for each in places if each[1] in (0, 0.02)]

    def value_at(x: float) -> float:
        return v1 + (v2 - v1) * (x - x1) / (x2 - x1)

    for each in series:
        point, (group,) = each.points[0], groups(root, arm=each.name)
        lines = [one for one in group if one.tag == f"{NS}line"]
        if point.low is None:
            assert not lines
            continue
        assert value_at(number(lines[0], "x1")) == pytest.approx(point.low, abs=1e-6)
        assert value_at(number(lines[0], "x2")) == pytest.approx(point.high, abs=1e-6)
    (band,) = [each for each in root.iter(f"{NS}rect") if each.get("class") == "noise"]
    edges = number(band, "x"), number(band, "x") + number(band, "width")
    assert [value_at(x) for x in edges] == pytest.approx([-0.0005, 0.0005], abs=1e-6)


def test_lengths_are_in_proportion() -> None:
    root = parsed(charts.lengths("f", "KLD", [(1, "fp8", 0.002), (2, "nvfp4", 0.03), (3, "same", 0.0)], "nats", 5))
    wide = {each.get("data-arm"): number(each.find(f"{NS}rect"), "width") for each in groups(root)}
    assert wide["nvfp4"] / wide["fp8"] == pytest.approx(15, rel=1e-3)
    assert wide["same"] == 0


def test_nothing_gives_no_chart() -> None:
    assert charts.ratios("f", "t", []) == charts.ratios("f", "t", [Series(0, "a", {})]) == ""
    assert charts.stacked("f", "t", [], ()) == charts.stacked("f", "t", [("a", {"norm": 0.0})], ("norm",)) == ""
    assert charts.waterfall("f", "t", (("a", 0.0), ("b", 0.0)), []) == ""
    assert charts.quality("f", "t", [], 0.1) == charts.lengths("f", "t", [], "nats", 5) == ""
    assert charts.lengths("f", "t", [(0, "a", 0.0)], "nats", 5) == ""


def colours(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", text))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> dict[str, dict[str, str]]:
    style = resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    return {"light": colours(light), "dark": colours(light) | colours(dark.split("\n}\n")[0])}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_stands_out_from_the_page(theme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    found = themes()[theme]
    for at in range(svg.COLOURS):
        assert contrast(found[f"c{at}"], found["page"]) >= 4.5, "numbers in bars have the page's colour"
    for name in ("text", "soft", "link"):
        assert contrast(found[name], found["page"]) >= 4.5
    assert contrast(found["text"], found["panel"]) >= 4.5
    assert contrast(found["text"], found["band"]) >= 4.5


def test_themes_differ_and_print_is_light() -> None:
    found = themes()
    assert all(found["light"][f"c{at}"] != found["dark"][f"c{at}"] for at in range(svg.COLOURS))
    assert luminance(found["light"]["page"]) == pytest.approx(1)
    assert luminance(found["dark"]["page"]) < 0.02
    style = resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8")
    assert style.count("prefers-color-scheme") == 1, "the one dark block holds for screens alone"
    assert not re.search(r"url\(|@import|@font-face", style)
