"""The page parsed: its numbers against the comparison, its order, and what data can do to it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import pairwise

import pytest

from moe_eval.comparison.ratio_wording import ratio_text
from moe_eval.records.ratios import Ratio
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report import markdown
from moe_eval.report.pair_tables import ratio_of
from moe_eval.report.readable import shape_words
from tests.doubles import compared_arms
from tests.doubles.report_page import TITLES, html, parsed, read, replaced

NS = "{http://www.w3.org/2000/svg}"
_EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{}}&lt;$\\frac$\x00\x1b[31m\u202e\ud800\r\n|"
)


def quantities(text: str) -> list[tuple[float, float]]:
    """Numbers of a cell with half a unit of their last digit."""
    return [
        (float(digits.replace(",", "")), 0.5000001 * 10.0 ** -len(digits.partition(".")[2]))
        for digits in re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?", text)
    ]


def leaves(value: object) -> Iterator[float]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def test_every_number_of_a_table_is_in_the_comparison() -> None:
    comparison = compared_arms.comparison()
    page = read(comparison)
    numbers = set(leaves(asdict(comparison)))
    numbers |= {100 * number for number in numbers}  # shares are shown in percent
    for pair in comparison.pairs:
        for shape in pair.shapes:
            for change in (shape.kernels or {}).values():
                assert change.step_ms is not None
                numbers.add(change.step_ms[1] - change.step_ms[0])
                numbers.add(-(change.overlap_change_ms or 0))
    tables = [name for name in page.tables if re.match(r"Speed|Fairness|Ceiling|Time per|Quality|Perplexity", name)]
    assert len(tables) == 4 + 5
    count = 0
    for name in tables:
        for row in page.tables[name][1:]:
            for cell in row[1:]:
                for value, half in quantities(re.sub(r"[A-Za-z]\w*", "", cell)):
                    assert any(abs(value - number) <= half for number in numbers), (name, row, cell)
                    count += 1
    assert count > 200


def test_the_speed_table_row_by_row() -> None:
    comparison = compared_arms.comparison()
    heads, *rows = read(comparison).tables["Speed: fp8 against bf16 (medians)"]
    labels = ("end-to-end time, ms", "time to first token, ms", "time per output token, ms")
    metrics = dict(zip(("e2e_ms", "ttft_ms", "tpot_ms"), labels, strict=True))
    for shape in comparison.pairs[0].shapes:
        for metric, label in metrics.items():
            (cells,) = [row for row in rows if row[:2] == [shape_words(shape.name), label]]
            row = dict(zip(heads, cells, strict=True))
            ratio, sides = ratio_of(shape, metric), shape.figures[metric]
            assert ratio is not None
            assert sides.reference is not None
            assert sides.other is not None
            expected = {"ratio": [ratio.value], "95 % interval of the ratio": [ratio.low, ratio.high]}
            expected["loads"] = [ratio.loads]
            for arm, figure in (("bf16", sides.reference), ("fp8", sides.other)):
                head = f"{arm}: 95 % interval over 4 loads"
                expected |= {arm: [figure.median], head: [figure.low, figure.high]}
            for head, values in expected.items():
                halves = quantities(row[head])
                pairs = zip(halves, values, strict=True)
                assert all(abs(number - value) <= half for (number, half), value in pairs), row
            assert row["clock"] == ratio.source
            assert row["verdict"] == ("open" if shape.batch_size == 1 or metric == "ttft_ms" else "pays")


def test_the_verdict_table_shows_the_ratio_of_the_sentence() -> None:
    heads, *rows = read(compared_arms.comparison()).tables["Verdict by shape: fp8 against bf16"]
    shown = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [tuple(row[head] for head in ("verdict", "speed-up", "95 % interval", "loads")) for row in shown] == [
        ("open", "1.04x", "0.98x to 1.10x", "4"),
        ("pays", "1.292x", "1.268x to 1.317x", "4"),
        ("pays", "1.4430x", "1.4410x to 1.4450x", "4"),
    ]
    ratios = [shape.speed.e2e_ms for shape in compared_arms.comparison().pairs[0].shapes]
    for row, ratio in zip(shown, ratios, strict=True):
        assert ratio is not None
        assert ratio_text(ratio, Rules()) == f"{row['speed-up']} ({row['95 % interval'].replace('x', '')})"


def test_what_decides_has_the_shape_s_verdict_and_energy_is_no_time() -> None:
    comparison = compared_arms.comparison()
    shape = comparison.pairs[0].shapes[1]
    worse = Ratio(0.9, 0.88, 0.92, 4, "nvml")
    by_chance = replace(shape, verdict=Verdict.OPEN, speed=replace(shape.speed, ttft_ms=worse, j_per_tok=worse))
    pair = replace(comparison.pairs[0], shapes=(by_chance,))
    heads, *rows = read(replace(comparison, pairs=(pair,))).tables["Speed: fp8 against bf16 (medians)"]
    assert [row[heads.index("verdict")] for row in rows] == ["open", "slower", "pays", "takes more"]


def test_time_per_step_adds_up_as_shown() -> None:
    tables = read(compared_arms.comparison()).tables
    rows = {
        row[0]: row
        for row in tables[f"Time per step: fp8 against bf16, {shape_words('b1_i512_o256')}, decode (trace, medians)"]
    }
    step = rows.pop("step")
    rows.pop("category")
    changes = sum(float(row[3]) for row in rows.values())
    assert float(step[1]) + changes == pytest.approx(float(step[2]), abs=0.0005 * (len(rows) + 2))


def test_verdicts_come_first_and_headings_are_in_order() -> None:
    comparison = compared_arms.comparison()
    page = read(comparison)
    page_text = "".join(page.text)
    sentences = [text for pair in comparison.pairs for text in (pair.sentence, pair.because, pair.settled_by) if text]
    places = [page_text.index(text) for text in sentences]
    assert places == sorted(places)
    assert page_text.index("Speed-up") < places[0] < max(places) < page_text.index("Speed, 512 tokens in, 256 out")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert [text for text in page.text if text in TITLES][: len(TITLES)] == TITLES
    assert "GPU: NVIDIA H100 80GB HBM3 against NVIDIA B200" in page_text
    assert "mxfp4 failed (CUDA out of memory <at load>)." in page_text
    assert "wikitext_local" in page_text
    assert "One arm was loaded at a time, and the arms alternated." in page_text


@pytest.fixture(scope="module")
def drawn_page() -> str:
    return html(compared_arms.comparison(), compared_arms.run(), drawn=True)


def test_the_page_needs_nothing_beside_it_and_can_be_read_without_seeing(drawn_page: str) -> None:
    page = parsed(drawn_page)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"}
    assert page.all("html")[0]["lang"] == "en"
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")
    for _, attributes in page.elements:
        assert not {"src", "srcset", "xlink:href"} & set(attributes)
        assert not any(key.startswith("on") for key in attributes)
        assert not re.search(r"url\((?!#figure-)", " ".join(map(str, attributes.values())))
    first = next(attributes for tag, attributes in page.elements if tag == "a")
    assert first == {"class": "skip", "href": "#verdict"}
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    boxes = [box for box in page.all("div") if box.get("class") == "box"]
    assert len(boxes) == len(page.all("table"))
    assert all(box.get("tabindex") == "0" and box.get("aria-label") for box in boxes)
    assert len(page.all("svg")) == len(page.all("figcaption")) == 3, "speed, a step and quality"
    assert len(page.all("details")) == len(page.all("summary")) == len(TITLES)
    assert not any("open" in attributes for attributes in page.all("details"))


def test_charts_hold_the_numbers_in_words() -> None:
    svgs = re.findall(r"<svg.*?</svg>", html(compared_arms.comparison()), re.DOTALL)
    descriptions = [ET.fromstring(svg).findtext(f"{NS}desc") for svg in svgs]
    speed, step, quality = map(str, descriptions)
    assert speed.startswith("bf16 at batch 1: 195.3 tok/s (193.4 to 197.3). bf16 at batch 8: ")
    assert re.search(r"fp8 at batch 32: 2,255 tok/s \([\d,]+ to [\d,]+\), 1\.44x\.", speed)
    assert "expert GEMMs, fp8: 1.1 ms (-1.0)" in step
    assert quality == "fp8: +0.40 % (+0.24 to +0.56). nvfp4: +2.3 % (+1.8 to +2.8)."


def test_a_tile_has_its_figure_interval_and_verdict() -> None:
    page = read(compared_arms.comparison())
    text = " ".join("".join(page.text).split())
    assert "Speed-up 1.44x 1.44 to 1.45, end to end ✓ pays" in text
    assert "Quality +0.40 % perplexity, +0.24 to +0.56" in text
    assert "Speed at batch 32, 512 tokens in, 256 out" in text
    assert "Qwen3-30B-A3B · NVIDIA H100 80GB HBM3" in text


def test_nothing_names_a_gpu_by_its_uuid() -> None:
    run, uuid = compared_arms.run(), "GPU-0dfd0723-f12a-4b7d-0f6c-1145af881165"
    gpu = replace(run.machine.gpus[0], uuid=uuid)
    run = replace(run, machine=replace(run.machine, gpus=(gpu,)), options={"devices": f"cuda:{uuid}"})
    comparison = compared_arms.comparison()
    failed = replace(comparison.arms[3], error=f"{uuid} has no memory left")
    comparison = replace(comparison, arms=(*comparison.arms[:3], failed))
    for text in (html(comparison, run), markdown.render(comparison, run)):
        assert "GPU has no memory left" in text
        assert "0dfd0723" not in text
    assert "uuid" not in html(comparison, run)


def test_the_page_is_the_same_each_time(drawn_page: str) -> None:
    assert html(compared_arms.comparison(), compared_arms.run(), drawn=True) == drawn_page


@pytest.mark.parametrize("long", [0, 100_000])
def test_no_element_comes_from_data_and_long_names_are_cut(drawn_page: str, long: int) -> None:
    def evil(text: str) -> str:
        return text[:20] + _EVIL + long * "x" + text

    comparison = replaced(compared_arms.comparison(), evil, keys=True)
    run = replaced(compared_arms.run(), evil, keys=True)
    text = html(comparison, run, drawn=True)
    text.encode()
    assert len(text) < 1_500_000
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ud800-\udfff]", text)
    assert not re.search(r"x{2000}", text)
    page, clean = parsed(text), parsed(drawn_page)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements}
    clean_keys = {key for _, attributes in clean.elements for key in attributes}
    assert {key for _, attributes in page.elements for key in attributes} <= clean_keys
    assert "alert(1)" in "".join(page.text)
