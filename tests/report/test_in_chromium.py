"""The report in a real Chromium: on a screen, on a phone, in the dark and on paper."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.comparison import headlines
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.ratios import Interval
from moe_eval.report.page import render
from tests.conftest import ROOT
from tests.doubles import compared_arms, compared_tasks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(os.environ.get("MOE_EVAL_PICTURES", ROOT / "build" / "pictures"))
PAPER = {"width": 688, "height": 1016}  # CSS pixels of A4 without margins of 14 mm
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed here")

# what lies outside of the window, text of a chart outside of it, and text that stands out too little from the page
_FAULTS = """() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(part => {
      const share = part / 255
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4
    })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const contrast = (one, two) => {
    const [low, high] = [luminance(one), luminance(two)].sort((a, b) => a - b)
    return (high + 0.05) / (low + 0.05)
  }
  const page = getComputedStyle(document.body).backgroundColor, faults = []
  if (document.documentElement.scrollWidth > innerWidth) faults.push("it scrolls sideways")
  for (const svg of document.querySelectorAll(".charts svg")) {
    const box = svg.getBoundingClientRect()
    if (box.left < 0 || box.right > innerWidth + 0.5 || box.width < 250) faults.push("a chart is cut")
    for (const text of svg.querySelectorAll("text")) {
      const part = text.getBoundingClientRect(), size = parseFloat(getComputedStyle(text).fontSize)
      if (part.left < box.left - 1 || part.right > box.right + 1 || part.bottom > box.bottom + 1)
        faults.push(`${text.textContent} is cut`)
      if (size * box.width / svg.viewBox.baseVal.width < 8.5) faults.push(`${text.textContent} is small`)
      if (contrast(getComputedStyle(text).fill, page) < 4.5) faults.push(`${text.textContent} is faint`)
    }
  }
  return faults
}"""


def four_shapes() -> ComparisonRecord:
    """Two arms and four shapes."""
    comparison = compared_arms.comparison()
    pair = comparison.pairs[0]
    last, name = pair.shapes[-1], "b64_i512_o256"
    arms = [
        replace(arm, speed={**arm.speed, name: {"output_tok_s": Interval(rate, 0.98 * rate, 1.02 * rate, 4)}})
        for arm, rate in zip(comparison.arms[:2], (2500.0, 3500.0), strict=True)
    ]
    pair = replace(pair, shapes=(*pair.shapes, replace(last, name=name, batch_size=64)))
    (pair,) = headlines.with_headlines([pair], {arm.name: arm for arm in arms}, comparison.rules)
    return replace(comparison, arms=tuple(arms), pairs=(pair,))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    file = folder / "report.html"
    comparison = four_shapes()
    tasks = compared_tasks.comparison(compared_tasks.HOSTILE).pairs[0].tasks
    comparison = replace(comparison, pairs=(replace(comparison.pairs[0], tasks=tasks),))
    file.write_text(render(comparison, compared_arms.run()), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    page = chromium.new_page()
    page.set_default_timeout(60_000)
    yield page
    page.close()


def faults(page: Any, name: str) -> list[str]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"report-{name}.png", full_page=True)
    found: list[str] = page.evaluate(_FAULTS)
    return found


def unfold_a_document_that_flipped(page: Any, width: int) -> None:
    """Its prompt is text from outside: it is shown within the window, and nothing of it runs."""
    title = page.title()
    page.get_by_role("heading", name="Documents that flipped").click()
    example = page.locator(".example").first
    prompt = example.locator("pre").first
    assert not prompt.is_visible()
    example.locator("summary").click()
    prompt.wait_for()
    box = prompt.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert "<script>document.title = 'run'</script>" in prompt.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img, .example script").count() == 0
    assert page.title() == title


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(page: Any, address: str, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    assert faults(page, f"{width}-{scheme}") == []
    unfold_a_document_that_flipped(page, width)
    page.goto(f"{address}#all")
    assert page.get_by_text("Verdict by shape: fp8 against bf16").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    # the elements are the same in every view: after the first one, only what depends on the style
    rules = (
        None if (width, scheme) == (1280, "light") else {"runOnly": ["color-contrast", "scrollable-region-focusable"]}
    )
    violations = axe.Axe().run(page, options=rules).response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations] == []


def test_it_is_short_and_says_the_answer_first(page: Any, address: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollHeight") <= 3500
    text = page.locator("body").inner_text()
    assert len(text.split()) < 900
    assert "Time per step: fp8 against bf16" not in text, "tables are folded"
    tiles = page.locator(".tiles li").all()
    assert len(tiles) == 6
    assert all(tile.bounding_box()["y"] < 500 for tile in tiles), "tiles are seen without scrolling"
    for tile in ("Speed-up\n1.44x", "Quality\n+0.40 %", "Weights per GPU\n29 GiB"):
        assert tile in re.sub(r"\n+", "\n", text)


def test_a_point_of_a_chart_has_its_tip_and_the_network_is_asked_for_nothing(page: Any, address: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    assert requests == [address]
    tips = page.locator(".charts svg g > title").all_text_contents()
    assert len([tip for tip in tips if " at batch " in tip]) == 2 * 4
    assert any(tip.startswith("fp8 at batch 32: ") and tip.endswith("1.44x") for tip in tips)


def test_on_paper_the_first_page_is_the_answer_and_all_is_printed_on_request(page: Any, address: str) -> None:
    def pages() -> int:
        return len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True)))

    page.set_viewport_size(PAPER)
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(address)
    assert faults(page, "print") == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for part in (page.locator("#verdict"), page.locator("figure").first):
        box = part.bounding_box()
        assert box["y"] + box["height"] <= PAPER["height"]
    assert pages() == 1
    page.goto(f"{address}#all")
    assert pages() > 1


def test_ten_arms_stay_readable_on_a_phone(page: Any, tmp_path: Path) -> None:
    comparison = four_shapes()
    arms = [replace(comparison.arms[1], name=f"fp8 with the backend {at}") for at in range(9)]
    pairs = [replace(comparison.pairs[0], other=arm.name) for arm in arms]
    comparison = replace(comparison, arms=(comparison.arms[0], *arms), pairs=tuple(pairs))
    (tmp_path / "report.html").write_text(render(comparison, None), encoding="utf-8")
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert faults(page, "ten-arms") == []
    assert page.locator(".tiles").count() == 9
