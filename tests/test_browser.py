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
from tests.servers import recorded_run, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(os.environ.get("MOE_EVAL_PICTURES", ROOT / "build" / "pictures"))
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed here")


@dataclass(frozen=True)
class Seen:
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
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    folder = tmp_path_factory.mktemp("browser")
    recorded = recorded_run(folder / "run")
    with served(folder, f"sqlite:///{folder / 'server.db'}") as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["log", str(recorded)]) == 0
        client = MlflowClient(uri)
        (experiment,) = [each for each in client.search_experiments() if each.name == "moe_eval"]
        runs = {str(each.info.run_name): each.info.run_id for each in client.search_runs([experiment.experiment_id])}
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
            page = browser.new_page(viewport={"width": 1600, "height": 1400})
            page.set_default_timeout(60_000)
            yield Seen(page, uri, recorded, runs, experiment.experiment_id)
            browser.close()


def test_the_experiment_shows_the_run_and_its_arms(seen: Seen) -> None:
    seen.open(f"experiments/{seen.experiment}/runs")
    seen.page.get_by_text("moe-eval run").first.wait_for()
    seen.page.get_by_role("row").filter(has_text="moe-eval run").first.get_by_role("button").first.click()
    for arm in ("bf16", "fp8"):
        seen.page.get_by_text(arm, exact=True).first.wait_for()
    seen.picture("experiment")


def test_two_arms_line_up_in_the_compare_view(seen: Seen) -> None:
    chosen = urllib.parse.quote(json.dumps([seen.runs["bf16"], seen.runs["fp8"]]))
    seen.open(f"compare-runs?runs={chosen}&experiments={urllib.parse.quote(json.dumps([seen.experiment]))}")
    seen.page.get_by_text("Comparing 2 Runs").wait_for()
    seen.page.get_by_text("quality/ln_ppl_ratio", exact=True).first.wait_for()
    text = seen.page.inner_text("body")
    assert "bf16" in text
    assert "fp8" in text
    client = MlflowClient(seen.uri)
    for arm in ("bf16", "fp8"):
        shown = client.get_run(seen.runs[arm]).data.metrics["quality/token_ppl"]
        assert f"{shown:.4g}"[:4] in text, f"the perplexity of {arm} is on the page"
    seen.picture("compare")


def test_the_report_is_read_where_it_is_stored(seen: Seen) -> None:
    seen.open(f"experiments/{seen.experiment}/runs/{seen.runs['moe-eval run']}/artifacts/report.html")
    report = seen.page.frame_locator("iframe")
    assert report.locator("h1").inner_text() == "fp8 against bf16"
    (pair,) = json.loads((seen.folder / "comparison.json").read_text(encoding="utf-8"))["pairs"]
    assert (pair["verdict"], pair["sentence"][:8]) == ("pays", "fp8 pays")
    assert pair["sentence"] in " ".join(report.locator("#verdict").inner_text().split())
    assert report.locator("svg[role=img]").count() >= 2
    seen.picture("report")


def test_the_report_asks_the_network_for_nothing(seen: Seen) -> None:
    asked: list[str] = []
    page = seen.page.context.browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto((seen.folder / "report.html").as_uri())
    page.locator("h1").wait_for()
    assert asked == [(seen.folder / "report.html").as_uri()]
    page.emulate_media(color_scheme="dark")
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / "report-dark.png", full_page=True)
    page.close()
