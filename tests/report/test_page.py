"""The page parsed: its numbers against the comparison, its order, and what data can do to it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from moe_eval.report import page
from tests.report import example
from tests.report.parsed import read, replaced

NS = "{http://www.w3.org/2000/svg}"
_EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{}}&lt;\x00\x1b[31m\u202e\ud800\r\n|"


def quantities(text: str) -> list[tuple[float, float]]:
    """Numbers of a cell with half a unit of their last digit."""
    return [
        (float(each.replace(",", "")), 0.5000001 * 10.0 ** -len(each.partition(".")[2]))
        for each in re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?", text)
    ]


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def test_every_number_of_a_table_is_in_the_comparison() -> None:
    made = example.comparison()
    found = read(made)
    known = set(leaves(made))
    known |= {100 * each for each in known}  # shares are shown in percent
    for pair in made["pairs"]:
        for shape in pair["shapes"]:
            for each in shape["kernels"].values():
                known.add(each["step_ms"][1] - each["step_ms"][0])
                known.add(-each["overlap_change_ms"])
    tables = [name for name in found.tables if re.match(r"Speed|Fairness|Ceiling|Time per|Quality|Perplexity", name)]
    assert len(tables) == 6 + 5
    seen = 0
    for name in tables:
        for row in found.tables[name][1:]:
            for cell in row[1:]:
                for value, half in quantities(re.sub(r"[A-Za-z]\w*", "", cell)):
                    assert any(abs(value - each) <= half for each in known), (name, row, cell)
                    seen += 1
    assert seen > 300


def test_the_speed_table_row_by_row() -> None:
    made = example.comparison()
    rows = read(made).tables["Speed: fp8 against bf16 (medians)"]
    heads = rows[0]
    for shape in made["pairs"][0]["shapes"]:
        for metric, words in (("e2e_ms", "end-to-end time, ms"), ("ttft_ms", "time to first token, ms"),
                              ("tpot_ms", "time per output token, ms")):  # fmt: skip
            (cells,) = [row for row in rows if row[:2] == [shape["name"], words]]
            row = dict(zip(heads, cells, strict=True))
            ratio = shape["speed"][metric]
            expected = {
                "bf16": [shape["medians"][metric][0]], "fp8": [shape["medians"][metric][1]],
                "bf16: 95 % interval": shape["intervals"][metric][0],
                "fp8: 95 % interval": shape["intervals"][metric][1], "speed-up": [ratio["value"]],
                "speed-up: 95 % interval": [ratio["low"], ratio["high"]], "blocks": [ratio["blocks"]],
            }  # fmt: skip
            for head, values in expected.items():
                numbers = quantities(row[head])
                assert len(numbers) == len(values)
                assert all(abs(one - two) <= half for (one, half), two in zip(numbers, values, strict=True)), row
            assert row["clock"] == ratio["source"]


def test_time_per_step_adds_up_as_shown() -> None:
    rows = {row[0]: row for row in read(example.comparison()).tables[
        "Time per step: fp8 against bf16, b1_i512_o256, decode (trace, medians)"]}  # fmt: skip
    step = rows.pop("step")
    rows.pop("category")
    changes = sum(float(row[3]) for row in rows.values())
    assert float(step[1]) + changes == pytest.approx(float(step[2]), abs=0.0005 * (len(rows) + 2))


def test_verdicts_come_first_and_headings_are_in_order() -> None:
    made = example.comparison()
    found = read(made)
    shown = "".join(found.text)
    places = [shown.index(text) for pair in made["pairs"] for key in ("sentence", "because", "settled_by")
              if (text := pair[key])]  # fmt: skip
    assert places == sorted(places)
    assert max(places) < shown.index("Speed-up of end-to-end time")
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    words = ["Verdict", "Speed", "Time per step", "Quality", "Labels that differ", "Skipped and failed arms",
             "How it was measured"]  # fmt: skip
    assert [text for text in found.text if text in words][: len(words)] == words
    assert "GPU: NVIDIA H100 80GB HBM3 against NVIDIA B200" in shown
    assert "CUDA out of memory <at load>" in shown
    assert "a6d8fa5e037f3212" in shown


def test_the_page_needs_nothing_beside_it_and_can_be_read_without_seeing() -> None:
    found = read(example.comparison())
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert found.all("html")[0]["lang"] == "en"
    policy = next(each for each in found.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")
    for _, attributes in found.elements:
        assert not {"src", "srcset", "xlink:href", "style"} & set(attributes)
        assert not any(key.startswith("on") for key in attributes)
    first = next(attributes for tag, attributes in found.elements if tag == "a")
    assert first == {"class": "skip", "href": "#verdict"}
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(each.get("scope") in ("col", "row") for each in found.all("th"))
    boxes = [each for each in found.all("div") if each.get("class") == "box"]
    assert len(boxes) == len(found.all("table")) + len(found.all("svg"))
    assert all(each.get("tabindex") == "0" and each.get("aria-label") for each in boxes)
    # three ratios, bars and a waterfall for 3 shapes and 2 phases, perplexity and divergence
    assert len(found.all("svg")) == 3 + 3 * 2 * 2 + 2


def test_charts_hold_the_numbers_in_words() -> None:
    html = page.render(example.comparison(), {})
    told = [ET.fromstring(each).findtext(f"{NS}desc") for each in
            re.findall(r"<svg.*?</svg>", html, re.DOTALL)]  # fmt: skip
    assert told[0] == (
        "fp8 at batch 1: 1.040x (0.981x to 1.102x); fp8 at batch 8: 1.292x (1.268x to 1.317x); fp8 at batch 32: "
        "1.443x (1.441x to 1.445x). Above 1x is faster than the reference."
    )
    assert any("fp8: +0.00401 (+0.00239 to +0.00563); nvfp4: +0.02310 (+0.01830 to +0.02790)" in str(t) for t in told)


def test_bars_and_waterfalls_of_the_page_are_in_proportion_to_the_comparison() -> None:
    made = example.comparison()
    svgs = [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page.render(made, {}), re.DOTALL)]
    shape = made["pairs"][0]["shapes"][1]

    def widths(start: str, *keys: str) -> dict[tuple[str | None, ...], float]:
        (root,) = [each for each in svgs if (each.findtext(f"{NS}title") or "").startswith(start)]
        return {tuple(each.get(key) for key in keys): float(each[0].get("width", "nan"))
                for each in root.iter(f"{NS}g")}  # fmt: skip

    bars = widths(f"Kernel time per step by category, {shape['name']}, decode", "data-arm", "data-category")
    scale = bars["bf16", "expert_gemm"] / shape["breakdown"]["decode"]["expert_gemm"][0]
    for category, values in shape["breakdown"]["decode"].items():
        for arm, ms in zip(("bf16", "fp8"), values, strict=True):
            assert bars.get((arm, category), 0) == pytest.approx(scale * ms, abs=2e-3)
    difference = shape["kernels"]["prefill"]
    rows = widths(f"From a step of bf16 to one of fp8, {shape['name']}, prefill", "data-row")
    before, after = difference["step_ms"]
    assert rows[("fp8",)] / rows[("bf16",)] == pytest.approx(after / before, rel=1e-4)
    gained = -difference["categories"]["expert_gemm"]["change_ms"]
    assert rows[("expert GEMM",)] / rows[("bf16",)] == pytest.approx(gained / before, rel=1e-4)
    assert rows[("waiting",)] / rows[("bf16",)] == pytest.approx(difference["waiting_change_ms"] / before, rel=1e-3)


@pytest.mark.parametrize("long", [0, 100_000])
def test_no_element_comes_from_data_and_long_names_are_cut(long: int) -> None:
    def evil(text: str) -> str:
        return text[:20] + _EVIL + long * "x" + text

    made, run = (replaced(each, evil, keys=True) for each in (example.comparison(), example.run()))
    html = page.render(made, run)
    html.encode()
    assert len(html) < 1_500_000
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ud800-\udfff]", html)
    assert not re.search(r"x{2000}", html)
    found, clean = read(made, run), read(example.comparison())
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in clean.elements}
    assert {key for _, each in found.elements for key in each} <= {key for _, each in clean.elements for key in each}
    assert "alert(1)" in "".join(found.text)
