"""MLflow's own pages in a real Chromium: what a person sees of a run, its arms side by side, and the report."""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from moe_eval.cli import main
from tests.conftest import ROOT
from tests.doubles.servers import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(os.environ.get("MOE_EVAL_PICTURES", ROOT / "build" / "pictures"))
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed here")


@dataclass(frozen=True)
class Browser:
    """A browser's page on a server that holds a recorded run, and the ids of its runs by name."""

    page: Any
    uri: str
    folder: Path
    runs: dict[str, str]
    experiment: str

    def open(self, path: str) -> None:
        self.page.goto(f"{self.uri}/#/{path}")

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def browser(recorded: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    folder = tmp_path_factory.mktemp("browser")
    store = shutil.copy(empty_store, folder / "server.db")
    with served(folder, f"sqlite:///{store}") as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["log", str(recorded)]) == 0
        client = MlflowClient(uri)
        (experiment,) = [entry for entry in client.search_experiments() if entry.name == "moe_eval"]
        runs = {str(run.info.run_name): run.info.run_id for run in client.search_runs([experiment.experiment_id])}
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.sync_playwright() as started:
            chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
            page = chromium.new_page(viewport={"width": 1600, "height": 1400})
            page.set_default_timeout(60_000)
            yield Browser(page, uri, recorded, runs, experiment.experiment_id)
            chromium.close()


def test_the_experiment_shows_the_run_and_its_arms(browser: Browser) -> None:
    browser.open(f"experiments/{browser.experiment}/runs")
    browser.page.get_by_text("moe-eval run").first.wait_for()
    browser.page.get_by_role("row").filter(has_text="moe-eval run").first.get_by_role("button").first.click()
    for arm in ("bf16", "fp8"):
        browser.page.get_by_text(arm, exact=True).first.wait_for()
    browser.picture("experiment")


def test_two_arms_line_up_in_the_compare_view(browser: Browser) -> None:
    chosen = urllib.parse.quote(json.dumps([browser.runs["bf16"], browser.runs["fp8"]]))
    browser.open(f"compare-runs?runs={chosen}&experiments={urllib.parse.quote(json.dumps([browser.experiment]))}")
    browser.page.get_by_text("Comparing 2 Runs").wait_for()
    browser.page.get_by_text("latency/b1_i512_o257/e2e_ms", exact=True).first.wait_for()
    client = MlflowClient(browser.uri)
    for arm in ("bf16", "fp8"):
        browser.page.get_by_text(arm, exact=True).first.wait_for()
        value = client.get_run(browser.runs[arm]).data.metrics["quality/token_ppl"]
        browser.page.get_by_text(f"{value:.4g}"[:4]).first.wait_for()
    browser.picture("compare")


def test_the_report_is_read_where_it_is_stored(browser: Browser) -> None:
    browser.open(f"experiments/{browser.experiment}/runs/{browser.runs['moe-eval run']}/artifacts/report.html")
    report = browser.page.frame_locator("iframe")
    assert report.locator("h1").inner_text() == "fp8 against bf16"
    (pair,) = json.loads((browser.folder / "comparison.json").read_text(encoding="utf-8"))["pairs"]
    assert (pair["verdict"], pair["sentence"][:8]) == ("pays", "fp8 pays")
    assert pair["sentence"] in " ".join(report.locator("#verdict").inner_text().split())
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
