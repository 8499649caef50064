"""MLflow's own pages in a real Chromium: what a person sees of a run, its arms side by side, and the report.

One server and one store for all pages. Pictures of them go to build/pictures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from moe_eval.records import by_arm
from moe_eval.tracking import log_run
from tests.conftest import ROOT
from tests.doubles.harness_runs import arm_of
from tests.doubles.servers import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(os.environ.get("MOE_EVAL_PICTURES", ROOT / "build" / "pictures"))
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed here")


@dataclass(frozen=True)
class Browser:
    """A browser's page on a server that holds a recorded run.

    Attributes:
        sentence: that was printed when the run was logged.
        runs: the ids of its runs by arm, and of the parent.
    """

    page: Any
    uri: str
    folder: Path
    sentence: str
    runs: dict[str, str]
    experiment: str

    @property
    def pair(self) -> dict[str, Any]:
        (pair,) = json.loads((self.folder / "comparison.json").read_text(encoding="utf-8"))["pairs"]
        assert isinstance(pair, dict)
        return pair

    def open(self, path: str) -> None:
        self.page.goto("about:blank")  # else the page that is open keeps what it had chosen
        self.page.goto(f"{self.uri}/#/{path}")

    def see(self, *texts: str) -> None:
        for text in texts:
            self.page.get_by_text(text).first.wait_for()

    def see_form(self, expression: str) -> None:
        """Wait for a text of this form, white space aside."""
        self.page.wait_for_function(
            r"form => new RegExp(form).test(document.body.innerText.replace(/\s+/g, ' '))", arg=expression
        )

    def picture(self, name: str) -> None:
        """Keep what is on the first screen. None of it may be NaN."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")
        boxes = [entry.bounding_box() for entry in self.page.get_by_text("NaN", exact=True).all()]
        assert not [box for box in boxes if box and box["y"] < self.page.viewport_size["height"]]


@pytest.fixture(scope="module")
def browser(recorded: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    folder = tmp_path_factory.mktemp("browser")
    store = shutil.copy(empty_store, folder / "server.db")
    with served(folder, f"sqlite:///{store}") as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        logged = log_run(recorded)
        client = MlflowClient(uri)
        runs = {arm_of(run): run.info.run_id for run in client.search_runs([logged.experiment_id])}
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.sync_playwright() as started:
            chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
            page = chromium.new_page(viewport={"width": 2200, "height": 1200})
            page.set_default_timeout(60_000)
            yield Browser(page, uri, recorded, logged.describe(), runs, logged.experiment_id)
            chromium.close()


def test_the_printed_link_lands_on_the_verdict(browser: Browser) -> None:
    link, table = re.findall(r"http\S+[^\s,)]", browser.sentence)
    assert f"#/experiments/{browser.experiment}/runs/{browser.runs['parent']}?workflowType=machine_learning" in link
    assert f"#/experiments/{browser.experiment}/runs?workflowType=machine_learning" in table
    browser.page.goto(link)
    browser.see("x · NVIDIA H100 80GB HBM3 · vllm · bf16, fp8", "Description", "headline/speedup")
    browser.see_form(r"fp8 (against bf16: )?pays")
    text = " ".join(browser.page.locator("body").inner_text().split())
    assert text.index("Description") < text.index("headline/speedup")
    browser.picture("parent")


def test_the_table_of_runs_has_headlines_of_the_parent_and_its_arms(browser: Browser) -> None:
    _, table = re.findall(r"http\S+[^\s,)]", browser.sentence)
    browser.page.goto(table)
    row = browser.page.get_by_role("row").filter(has_text="bf16, fp8").first
    row.wait_for()
    browser.see("headline/speedup", "headline/ppl_change_percent", "headline/energy_ratio", "fp8 pays")
    browser.picture("landing")
    row.get_by_role("button").first.click()
    metrics = {arm: MlflowClient(browser.uri).get_run(run_id).data.metrics for arm, run_id in browser.runs.items()}
    for arm in ("bf16", "fp8"):
        browser.see(f"vllm · {arm}")
    for name in ("speedup", "ppl_change_percent", "energy_ratio"):
        values = {arm: metrics[arm][f"headline/{name}"] for arm in metrics}
        for value in values.values():
            browser.page.get_by_role("gridcell").filter(has_text=f"{value:.6g}"[:5]).first.wait_for()
    browser.picture("runs")


def test_two_arms_line_up_in_the_compare_view(browser: Browser) -> None:
    chosen = urllib.parse.quote(json.dumps([browser.runs["bf16"], browser.runs["fp8"]]))
    browser.open(f"compare-runs?runs={chosen}&experiments={urllib.parse.quote(json.dumps([browser.experiment]))}")
    browser.see("Comparing 2 Runs", "x · NVIDIA H100 80GB HBM3 · vllm · bf16", "x · NVIDIA H100 80GB HBM3 · vllm · fp8")
    browser.see("headline/speedup")
    text = browser.page.locator("body").inner_text()
    keys = re.findall(r"(?:headline|latency|quality|fairness)/\w+", text)
    assert keys[0].startswith("headline/"), "the first plot is of a headline"
    assert "No common artifacts" not in text
    browser.see("quality.json")
    browser.picture("compare")


def test_an_arm_tells_its_verdict_model_and_data(browser: Browser) -> None:
    browser.open(f"experiments/{browser.experiment}/runs/{browser.runs['fp8']}?workflowType=machine_learning")
    browser.see("x · NVIDIA H100 80GB HBM3 · vllm · fp8", "headline/speedup", "moe_sample")
    browser.see_form(re.escape(browser.pair["sentence"][:40]))
    browser.see_form(r"Logged models.{0,40}\bx\b|\bx\b.{0,20}(Ready|Model)")
    browser.picture("child")


def test_artifacts_of_an_arm_are_shown_and_read_as_records(browser: Browser) -> None:
    browser.open(f"experiments/{browser.experiment}/runs/{browser.runs['fp8']}/artifacts/quality.json")
    browser.see("latency.json", "quality.json", "ln_ppl_ratio")
    quality = next(arm.quality for arm in by_arm.read(browser.folder) if arm.name == "fp8")
    assert quality is not None
    assert quality.figures is not None
    browser.see(quality.figures.dataset_digest)
    browser.picture("artifacts")


def test_the_report_is_read_where_it_is_stored(browser: Browser) -> None:
    browser.open(f"experiments/{browser.experiment}/runs/{browser.runs['parent']}/artifacts/report.html")
    report = browser.page.frame_locator("iframe")
    report.locator("h1").wait_for()
    pair = browser.pair
    assert (pair["verdict"], pair["sentence"][:8]) == ("pays", "fp8 pays")
    assert report.locator("svg[role=img]").count() >= 2
    browser.picture("report")


def test_the_report_asks_the_network_for_nothing(browser: Browser) -> None:
    requests: list[str] = []
    page = browser.page.context.browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.goto((browser.folder / "report.html").as_uri())
    page.locator("h1").wait_for()
    assert requests == [(browser.folder / "report.html").as_uri()]
    page.emulate_media(color_scheme="dark")
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / "report-dark.png", full_page=True)
    page.close()
