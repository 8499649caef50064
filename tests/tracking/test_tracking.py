"""Records of the harness in MLflow: what a run there holds, and that it is there once."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas
import pytest

from moe_eval import cli, tracking
from moe_eval.imports import harness_samples
from moe_eval.records.harness import HarnessRecord
from moe_eval.records.labels import Status
from moe_eval.records.tasks import TasksRecord
from moe_eval.tracking import task_tables
from moe_eval.tracking.arm import Arm
from tests.doubles import compared_tasks, harness_results
from tests.doubles.harness_runs import DATASET, METRICS, PARAMS, RECORD, runs, written


def described(run_id: str, experiment: str, command: str) -> str:
    """What is printed of a run in the first experiment of a store without a server."""
    client = mlflow.MlflowClient()
    entry = client.get_experiment_by_name(experiment)
    assert entry is not None
    runs_page = f"http://127.0.0.1:5000/#/experiments/{entry.experiment_id}/runs"
    kind = "workflowType=machine_learning"
    return (
        f"run {run_id} in experiment {experiment} (start `{command}`, then open {runs_page}/{run_id}?{kind}, "
        f"all runs: {runs_page}?{kind}&viewStateShareKey=moe_eval)"
    )


def test_without_any_variable_the_store_is_made_in_the_working_directory(tmp_path: Path) -> None:
    logged = tracking.log_run(written())
    assert (tmp_path / "mlflow.db").is_file()
    assert {file.name for file in (tmp_path / "mlruns").rglob("*.json*")} == {
        "record.json",
        "results.json",
        "samples_moe_sample.jsonl",
    }
    assert logged.describe() == described(logged.run_id, "moe_eval", "mlflow ui")
    [run] = runs()
    assert (run.info.run_id, run.info.status) == (logged.run_id, "FINISHED")


def test_artifacts_lie_beside_a_database_that_is_elsewhere(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, folder = tmp_path / "shared", tmp_path / "here"
    shared.mkdir()
    folder.mkdir()
    record = written().absolute()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, shared / 'store.db')}")
    tracking.log_run(record)
    assert list(folder.iterdir()) == []
    assert "record.json" in {file.name for file in (shared / "mlruns").rglob("*")}


def test_a_run_holds_the_whole_record(store: Path) -> None:
    logged = tracking.log_run(written())
    [run] = runs()
    assert run.data.params == PARAMS
    assert run.data.metrics == METRICS
    assert run.info.run_name == "tiny-moe · NVIDIA H100 · transformers · bf16"
    assert run.info.start_time == 1767323045_000
    assert run.info.end_time == run.info.start_time + 12_500
    assert {key: value for key, value in run.data.tags.items() if key.startswith("moe_eval.")} == {
        "moe_eval.run_id": RECORD.run_id,
        "moe_eval.status": "finished",
        "moe_eval.model": "tiny-moe",
        "moe_eval.tasks": "moe_sample",
        "moe_eval.engine": "transformers",
        "moe_eval.checkpoint.precision": "bf16",
        "moe_eval.gpu": "NVIDIA H100",
        "moe_eval.git": "abc123-dirty",
        "moe_eval.versions": "torch 2.8",
        "moe_eval.content": run.data.tags["moe_eval.content"],
    }
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(
        "first note\n\nsecond note\n\n| metric | value |\n|---|---:|\n| quality/word_ppl | 254.5 |\n"
    )
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(logged.run_id)}
    assert files == {"record.json", "results.json", "samples_moe_sample.jsonl"}
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("moe_sample", "0123456789abcdef")
    tags = {tag.key: tag.value for tag in entry.tags}
    assert tags["mlflow.data.context"] == "evaluation"
    assert (tags["split"], tags["documents"], tags["source"]) == ("test", "14", "local:moe_sample")


@pytest.mark.parametrize(
    ("source", "configuration"),
    [("hub:EleutherAI/arithmetic:2da", "2da"), ("hub:baber/piqa", None)],
)
def test_a_data_set_of_the_hub_is_named_as_such(store: Path, source: str, configuration: str | None) -> None:
    tracking.log_run(written(replace(RECORD, datasets=(replace(DATASET, source=source),))))
    [entry] = runs()[0].inputs.dataset_inputs
    described: dict[str, str | None] = json.loads(entry.dataset.source)
    assert entry.dataset.source_type == "hugging_face"
    assert described["path"] == source.split(":")[1]
    assert described["config_name"] == configuration


def test_a_run_logged_while_it_ran_is_logged_again_when_it_has_ended_and_then_left_alone(store: Path) -> None:
    folder = written(replace(RECORD, status=Status.RUNNING, metrics={}))
    tracking.log_run(folder)
    RECORD.write(folder)
    logged = tracking.log_run(folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(dict(RECORD.metrics))
    assert tracking.log_run(folder) == logged
    assert len(runs()) == 1


@pytest.mark.parametrize(
    ("status", "word"), [(Status.FAILED, "FAILED"), (Status.KILLED, "KILLED"), (Status.RUNNING, "KILLED")]
)
def test_a_run_that_did_not_end_well_is_told_apart(store: Path, status: Status, word: str) -> None:
    error = None if status is Status.RUNNING else "Why: so"
    broken = HarnessRecord(RECORD.run_id, status, RECORD.started, {}, {"tasks": ["a"]}, error=error)
    tracking.log_run(written(broken))
    [run] = runs()
    assert run.info.status == word
    assert run.data.tags["moe_eval.status"] == word.lower()
    assert run.data.tags.get("moe_eval.error") == broken.error
    assert run.info.run_name == "shipped model · CPU · ?"


def test_names_of_store_and_experiment_are_the_user_s(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty_store, "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my arms")
    logged = tracking.log_run(written())
    command = "mlflow ui --backend-store-uri sqlite:///elsewhere.db"
    assert logged.describe() == described(logged.run_id, "my arms", command)
    assert len(runs("sqlite:///elsewhere.db", "my arms")) == 1
    assert not Path("mlflow.db").exists()


def test_what_mlflow_limits_does_not_keep_a_record_out(store: Path) -> None:
    """Long values, more parameters and metrics than one call takes, empty values, and numbers that are none."""
    many = {f"harness/task_{index}/acc": float(index) for index in range(1100)}
    model_args = {"long": "x" * 10_000, **{f"option_{index}": index for index in range(250)}}
    figures = {**many, "quality/word_ppl": float("inf"), "harness/a/f1": float("nan")}
    tracking.log_run(written(replace(RECORD, model_args=model_args, metrics=figures, notes=("n" * 10_000,))))
    [run] = runs()
    assert run.data.params["model_args.long"].startswith("xxx")
    assert run.data.params["model_args.option_249"] == "249"
    assert len(run.data.metrics) == 1100, "what is no number has no key"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("nnn")
    assert len(note) < 8000
    assert note.endswith("The artifacts hold the rest.")


def test_the_process_s_own_mlflow_is_left_as_it_was(store: Path) -> None:
    """simple_evaluate may run inside a program that logs to MLflow itself."""
    mlflow.set_experiment("the program's own")
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    tracking.log_run(written())
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")} == before
    with mlflow.start_run() as run:
        pass
    assert [entry.info.run_id for entry in runs(experiment="the program's own")] == [run.info.run_id]


def test_a_checkpoint_is_a_model_that_holds_the_metrics_of_its_run(store: Path) -> None:
    logged = tracking.log_run(
        written(replace(RECORD, labels={"engine": {"checkpoint": "Org/Qwen1.5-MoE", "dtype": "x"}}))
    )
    (run,) = runs()
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert [entry.model_id for entry in client.get_run(logged.run_id).inputs.model_inputs] == [model.model_id]
    assert (model.name, model.source_run_id, str(model.status)) == ("Qwen1_5-MoE", logged.run_id, "READY")
    assert model.tags["mlflow.model.isExternal"] == "true"
    assert model.params == {"checkpoint": "Org/Qwen1.5-MoE", "dtype": "x"}
    assert {metric.key: metric.value for metric in model.metrics} == METRICS


def test_samples_are_tables_that_mlflow_reads(store: Path, tmp_path: Path) -> None:
    folder, beside = written(), harness_results.write(tmp_path / "m", {"t": [1.0, 0.0, 1.0]})
    (folder / "results.json").write_text(next(beside.glob("results_*")).read_text())
    (folder / "samples_t.jsonl").write_text(next(beside.glob("samples_*")).read_text())
    logged = tracking.log_run(folder)
    table = mlflow.MlflowClient().load_table(logged.experiment_id, "samples/t.json", [logged.run_id])
    assert table["acc,none"].tolist() == [1.0, 0.0, 1.0]
    assert table["prompt"].tolist() == ["question 0", "question 1", "question 2"]


def test_an_arm_has_a_table_of_every_task(tmp_path: Path) -> None:
    folder = harness_results.write(tmp_path / "m", {"x": [1.0], "y": [0.0] * 1500})
    results = harness_samples.read(folder)
    record = TasksRecord("fp8", "fp8", Status.FINISHED, results=results)
    tables = Arm("fp8", [record], [], [], is_whole=True).tables
    assert tables.keys() == {"samples/x.json", "samples/y.json"}
    hostile = replace(results, tasks=(replace(results.tasks[0], task="../../etc/x y"),))
    assert task_tables.samples(hostile).keys() == {"samples/.._.._etc_x_y.json"}
    table = json.loads(tables["samples/y.json"])
    assert len(table["data"]) == 1000
    assert {len(row) for row in table["data"]} == {len(table["columns"])}


def test_flips_are_a_table_and_the_tag_of_tables_stays_small() -> None:
    (text,) = task_tables.flips(compared_tasks.comparison()).values()
    table = pandas.read_json(io.StringIO(text), orient="split")
    assert table["reference score"].tolist() == [1.0] * 6 + [0.0] * 4 + [-20.5]
    assert table["other answer"][2] == "second 2"
    assert table["change"].tolist() == ["loss"] * 6 + ["gain"] * 4 + ["loss"]
    (tag,) = task_tables.tags(f"samples/task_{at}.json" for at in range(1000)).values()
    assert len(tag) <= 5000
    assert json.loads(tag)[0] == {"path": "samples/task_0.json", "type": "table"}
    assert task_tables.flips(None) == task_tables.tags([]) == {}


def test_a_run_in_the_former_form_is_replaced_once(store: Path) -> None:
    """As 0.1.0 logged it: without a digest of what it holds, named by precision and tasks."""
    client = mlflow.MlflowClient()
    tags = {"moe_eval.run_id": RECORD.run_id, "moe_eval.status": "finished"}
    old = client.create_run(client.create_experiment("moe_eval"), 1767323045_000, tags, "tiny-moe bf16 moe_sample")
    client.set_terminated(old.info.run_id, "FINISHED")
    folder = written()
    logged = tracking.log_run(folder)
    assert logged.run_id != old.info.run_id
    assert tracking.log_run(folder) == logged
    assert [run.info.run_name for run in runs()] == ["tiny-moe · NVIDIA H100 · transformers · bf16"]
    assert len(client.search_logged_models([logged.experiment_id])) == 1


@pytest.fixture
def log_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return lambda *folders: (cli.main(["log", *map(str, folders)]), *capsys.readouterr())


def test_command_logs_folders_and_says_where(store: Path, log_command: Any) -> None:
    folder = written()
    code, out, err = log_command(folder)
    assert (code, err) == (0, "")
    assert out == f"{folder}: {described(runs()[0].info.run_id, 'moe_eval', 'mlflow ui')}\n"


def test_command_refuses_a_folder_without_a_record(tmp_path: Path, log_command: Any) -> None:
    code, out, err = log_command(tmp_path)
    assert (code, out) == (2, "")
    assert err == f"moe-eval: {tmp_path} holds no record.json and no run.json. Give the folder of a run.\n"
