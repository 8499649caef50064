"""What a person sees of a run in MLflow: names, times, headlines, description, models, artifacts, and links."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from moe_eval import tracking
from moe_eval.comparison import pairs
from moe_eval.records import anonymous, by_arm, disk
from moe_eval.records.comparison import COMPARISON_FILE, ComparisonRecord
from moe_eval.records.headline import Headline, HeadlineFigure
from moe_eval.records.verdicts import Verdict
from moe_eval.tracking import fetch, headlines, store
from moe_eval.tracking.link import Logged
from tests.doubles import chrome_trace, recorded_arms
from tests.doubles.harness_runs import arm_of, runs
from tests.doubles.recorded_arms import GPU, RUN
from tests.doubles.servers import recorded_run

BEGAN = 1767225600_000  # 2026-01-01, when the recorded run began


def made(folder: Path) -> Path:
    """A run of two arms with quality, speed, kernels and the files of its tasks."""
    recorded_run(folder)
    run = json.loads((folder / "run.json").read_text())
    run["evaluators"] = {arm: ["quality", "latency", "kernels"] for arm in ("bf16", "fp8")}
    (folder / "run.json").write_text(json.dumps(run))
    for arm in ("bf16", "fp8"):
        record = recorded_arms.kernels(arm, fp8=arm == "fp8")
        disk.write_record(folder / f"kernels_{arm}_sm90_{record.shape}.json", record)
        of_arm = folder / "arms" / arm
        of_arm.mkdir(parents=True)
        chrome_trace.write(of_arm / "trace_b1_i512_o9.json.gz", layers=1, steps=1)
        (of_arm / "load_0.json").write_text("{}")
    for arm, name, step in (
        ("bf16", "quality", {"ended": "2026-01-01T00:10:00.500+00:00", "seconds": 60.0}),
        ("bf16", "latency_b1_i512_o257_0_0", {"ended": "2026-01-01T00:20:00+00:00", "seconds": 30.0}),
        ("fp8", "quality", {"seconds": 60.0}),  # of an earlier version: the file's own time counts
    ):
        (folder / "arms" / arm / f"{name}.json").write_text(json.dumps(step))
    os.utime(folder / "arms" / "fp8" / "quality.json", (BEGAN / 1000 + 1800, BEGAN / 1000 + 1800))
    return folder


@dataclass(frozen=True)
class Shown:
    """A logged run: its folder, and what MLflow has of it by arm."""

    folder: Path
    client: mlflow.MlflowClient
    by_name: dict[str, Run]

    def files(self, arm: str, path: str = "") -> set[str]:
        return {file.path for file in self.client.list_artifacts(self.by_name[arm].info.run_id, path)}


@pytest.fixture(scope="module")
def shown(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Nobody may change it."""
    place = tmp_path_factory.mktemp("shown")
    folder = made(place / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        uri = f"sqlite:///{shutil.copy(empty_store, place / 'own.db')}"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        tracking.log_run(folder)
    return Shown(folder, mlflow.MlflowClient(uri), {arm_of(run): run for run in runs(uri)})


def test_names_tell_model_gpu_engine_and_arm_and_times_are_the_arms_own(shown: Shown) -> None:
    names = {arm: run.info.run_name for arm, run in shown.by_name.items()}
    start = f"x · {GPU} · vllm"
    assert names == {"parent": f"{start} · bf16, fp8", "bf16": f"{start} · bf16", "fp8": f"{start} · fp8"}
    minutes = {
        arm: [(time - BEGAN) / 60_000 for time in (run.info.start_time, run.info.end_time)]
        for arm, run in shown.by_name.items()
    }
    assert minutes["parent"] == [0, 60]
    assert minutes["bf16"] == [pytest.approx(9 + 0.5 / 60), 20]
    assert minutes["fp8"] == [29, 30]


def test_the_parent_tells_the_verdict_the_headlines_and_the_labels(shown: Shown) -> None:
    parent = shown.by_name["parent"]
    tags, metrics = parent.data.tags, parent.data.metrics
    (pair,) = json.loads((shown.folder / COMPARISON_FILE).read_text())["pairs"]
    assert tags["mlflow.note.content"] == (shown.folder / "report.md").read_text()
    expected = {
        "verdict": "fp8 pays",
        "reference": "bf16",
        "headline_arm": "fp8",
        "model": "x",
        "gpu": GPU,
        "engine": "vllm 0.22.1",
        "versions": "mlflow 3",
    }
    assert {name: tags[f"moe_eval.{name}"] for name in expected} == expected
    assert shown.by_name["fp8"].data.tags["moe_eval.verdict"] == "pays"
    assert shown.by_name["fp8"].data.tags["mlflow.note.content"].startswith(pair["sentence"])
    assert shown.by_name["bf16"].data.tags["moe_eval.verdict"] == "reference"
    by_figure = {headline["figure"]: headline for headline in pair["headlines"]}
    speed, quality = by_figure["speed_up"], by_figure["quality"]
    assert metrics["headline/speedup"] == speed["ratio"]
    assert (metrics["headline/speedup_low"], metrics["headline/speedup_high"]) == (speed["low"], speed["high"])
    assert metrics["headline/ppl_change_percent"] == pytest.approx(100 * (quality["ratio"] - 1))
    assert metrics["headline/ppl_change_percent_low"] == pytest.approx(100 * (quality["low"] - 1))
    assert shown.files("parent") >= {"report.html", "report.md", "report.png", "run.json", "comparison.json"}


def test_headlines_of_an_arm_are_logged_first_and_there_is_no_nan(shown: Shown) -> None:
    reference, other = (shown.by_name[arm].data.metrics for arm in ("bf16", "fp8"))
    for metrics in (reference, other):
        assert not any(math.isnan(value) for value in metrics.values())
        groups = list(dict.fromkeys(key.partition("/")[0] for key in metrics))
        assert (groups[0], groups[-1]) == ("headline", "fairness")
    assert (reference["headline/speedup"], reference["headline/ppl_change_percent"]) == (1, 0)
    assert set(reference) >= set(other) & set(headlines.COLUMNS)


def test_artifacts_of_arms_have_the_same_names(shown: Shown) -> None:
    for arm in ("bf16", "fp8"):
        names = {"quality.json", "latency.json", "breakdown.csv", "trace_b1_i512_o9.json.gz", "kernels"}
        assert shown.files(arm) == names
        assert shown.files(arm, "kernels") == {"kernels/b1_i512_o9.json"}
        run_id = shown.by_name[arm].info.run_id
        table = Path(shown.client.download_artifacts(run_id, "breakdown.csv")).read_text()
        record = recorded_arms.kernels(arm, fp8=arm == "fp8")
        rows = list(csv.DictReader(io.StringIO(table)))
        assert {(row["phase"], row["category"]) for row in rows} == {
            (phase, category) for phase, times in record.phases.items() for category in times.categories
        }
        for row in rows:
            time = record.phases[row["phase"]].categories[row["category"]]
            assert float(row["ms_per_step"]) == pytest.approx(time.ms, rel=1e-4)


def test_checkpoints_are_models_with_the_figures_that_they_are_chosen_by(shown: Shown) -> None:
    experiment = shown.by_name["parent"].info.experiment_id
    models = {model.source_run_id: model for model in shown.client.search_logged_models([experiment])}
    assert len(models) == 2
    for arm in ("bf16", "fp8"):
        run = shown.by_name[arm]
        model = models[run.info.run_id]
        assert model.params["precision"] == arm
        figures = run.data.metrics
        groups = {key.partition("/")[0] for key in figures}
        assert groups >= {"headline", "quality", "latency", "kernels"}
        assert {metric.key: metric.value for metric in model.metrics} == {
            key: value for key, value in figures.items() if key.partition("/")[0] in ("headline", "quality", "memory")
        }
        inputs = shown.client.get_run(run.info.run_id).inputs.model_inputs
        assert [entry.model_id for entry in inputs] == [model.model_id]
    linked = shown.client.get_run(shown.by_name["parent"].info.run_id).inputs.model_inputs
    assert {entry.model_id for entry in linked} == {model.model_id for model in models.values()}


def test_the_table_of_an_experiment_has_the_headlines(shown: Shown) -> None:
    experiment = shown.client.get_experiment(shown.by_name["parent"].info.experiment_id)
    view = json.loads(experiment.tags["mlflow.sharedViewState.moe_eval"])
    assert {f"metrics.`{key}`" for key in headlines.COLUMNS} <= set(view["selectedColumns"])


def former(folder: Path) -> str:
    """Log a run as 0.1.0 did: arms by name, files by their names on disk, the parent's times and figures by arm."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("moe_eval")
    times, content = (BEGAN, BEGAN + 3600_000), "0123456789abcdef"
    tags = {"moe_eval.run_id": RUN, "moe_eval.gpu": GPU, "moe_eval.content": content, "moe_eval.status": "finished"}
    parent = client.create_run(experiment, times[0], tags, "moe-eval run").info.run_id
    client.log_param(parent, "command", "run")
    client.log_metric(parent, "fp8/latency/b1_i512_o257/speedup", 1.1)
    for name in ("run.json", "comparison.json", "report.html", "report.md"):
        client.log_artifact(parent, str(folder / name))
    for arm in ("bf16", "fp8"):
        of_arm = {"moe_eval.run_id": f"{RUN}/{arm}", "mlflow.parentRunId": parent, "moe_eval.gpu": GPU}
        child = client.create_run(experiment, times[0], of_arm, arm).info.run_id
        client.log_param(child, "precision", arm)
        client.log_metric(child, "kernels/b1_i512_o9/decode/norm_ms", math.nan)
        for file in sorted(folder.glob(f"*_{arm}_sm90*.json")):
            client.log_artifact(child, str(file))
        client.set_terminated(child, "FINISHED", times[1])
    client.set_terminated(parent, "FINISHED", times[1])
    return parent


def read_back(run_id: str, folder: Path, place: Path) -> None:
    """The records of a run in MLflow are those of its folder, without what tells of a machine."""
    for pair in zip(by_arm.read(folder), by_arm.read(fetch.fetch(run_id, place)), strict=True):
        recorded, copy = ([arm.latency, arm.quality, *arm.kernels.values()] for arm in pair)
        identity = anonymous.of_publication(recorded)
        assert [anonymous.anonymous(record, identity) for record in recorded] == [
            anonymous.anonymous(record, identity) for record in copy
        ]
        assert pair[0].name == pair[1].name


def test_a_run_in_the_former_form_is_read_then_replaced_and_then_left_alone(store: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    before = former(folder)
    read_back(before, folder, tmp_path)
    logged = tracking.log_run(folder)
    assert logged.run_id != before
    read_back(logged.run_id, folder, tmp_path)
    first = {arm_of(run): run.info.run_id for run in runs()}
    assert first.keys() == {"parent", "bf16", "fp8"}
    assert tracking.log_run(folder) == logged
    assert {arm_of(run): run.info.run_id for run in runs()} == first
    client = mlflow.MlflowClient()
    (folder / "report.md").write_text("another")
    tracking.log_run(folder)
    left = {model.source_run_id for model in client.search_logged_models([logged.experiment_id])}
    assert left == {run.info.run_id for run in runs() if arm_of(run) != "parent"}, "models go with their runs"


def test_the_best_of_several_pairs_stands_on_the_parent_by_plain_keys() -> None:
    arms = [recorded_arms.arm(name, {1: [[ms]] * 4}) for name, ms in (("bf16", 100.0), ("fp8", 80.0), ("nvfp4", 50.0))]
    comparison = pairs.compare(arms)
    keys = headlines.of_parent(comparison)
    assert keys["headline/speedup"] == keys["nvfp4/headline/speedup"] == pytest.approx(2)
    assert keys["fp8/headline/speedup"] == pytest.approx(1.25)
    assert headlines.of_parent(ComparisonRecord("bf16", (), ())) == {}
    assert headlines.of_arm(None, "fp8") == {}


def test_a_figure_without_an_interval_has_no_bounds() -> None:
    arms = [recorded_arms.arm(name, {1: [[100.0]] * 3}) for name in ("bf16", "fp8")]
    memory = Headline(HeadlineFigure.MEMORY_GIB, None, 60.0, 30.0, 2.0)
    unknown = Headline(HeadlineFigure.TTFT_MS, "b1_i1_o1", None, None, None)
    pair = replace(pairs.compare(arms).pairs[0], headlines=(unknown, memory), verdict=Verdict.OPEN)
    assert headlines.of_pair(pair) == {"headline/memory_ratio": 2.0}


def test_a_long_report_is_cut_at_a_line_and_says_so() -> None:
    text = store.description("word\n" * 3000)
    assert len(text) < 8000
    assert text.endswith("\nword\n\nThe artifacts hold the rest.")
    assert store.description("short") == "short"


def test_the_link_opens_the_runs_of_a_server_and_hides_nothing_of_another_store() -> None:
    place = Logged("https://host/mlflow/", "my arms", "a" * 32, "7")
    runs_page = "https://host/mlflow/#/experiments/7/runs"
    assert f"{runs_page}/{'a' * 32}?workflowType=machine_learning" in place.describe()
    assert f"{runs_page}?workflowType=machine_learning" in place.describe()
    assert "mlflow ui" not in place.describe()
    assert "`mlflow ui --backend-store-uri file:/x`" in replace(place, store="file:/x").describe()
