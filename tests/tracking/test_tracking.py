"""Records in MLflow: what a run there holds, and that it is there once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run, ViewType

from moe_eval import cli, tracking
from moe_eval.records.disk import DatasetFacts, HarnessRecord

DATASET = DatasetFacts("moe_sample", "1.0", "local:moe_sample", "test", 14, "0123456789abcdef")
METRICS = {"quality/word_ppl": 254.5, "quality/tokens": 376298.0, "harness/moe_sample/word_perplexity": 254.5}
RECORD = HarnessRecord(
    run_id="0123456789abcdef0123456789abcdef",
    status="finished",
    started="2026-01-02T03:04:05+00:00",
    model_args={"pretrained": "/models/tiny-moe", "dtype": "bfloat16"},
    settings={"tasks": ["moe_sample"], "limit": None},
    seconds=12.5,
    labels={
        "engine": {"name": "transformers", "precision": "bf16", "checkpoint": "/models/tiny-moe", "graphs": []},
        "prefix_token_id": 0,
        "scored": {"moe_sample": {"requests": 14, "tokens": 5}},
    },
    machine={"cores": 2, "gpus": [{"name": "NVIDIA H100", "memory_bytes": 1}]},
    versions={"torch": "2.8"},
    git="abc123-dirty",
    metrics=METRICS,
    datasets=(DATASET,),
    notes=("first note", "second note"),
)
PARAMS = {
    "model_args.pretrained": "/models/tiny-moe",
    "model_args.dtype": "bfloat16",
    "harness.tasks": "moe_sample",
    "harness.limit": "None",
    "engine.name": "transformers",
    "engine.precision": "bf16",
    "engine.checkpoint": "/models/tiny-moe",
    "engine.graphs": "",
    "prefix_token_id": "0",
    "machine.cores": "2",
    "machine.gpus.0.name": "NVIDIA H100",
    "machine.gpus.0.memory_bytes": "1",
    "versions.torch": "2.8",
    "git": "abc123-dirty",
    "seconds": "12.5",
}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated store: making one takes MLflow seconds, copying it does not."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def _own_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, and none of MLflow's variables and globals left by or for anyone else."""
    monkeypatch.chdir(tmp_path)
    for name in [*(name for name in os.environ if name.startswith("MLFLOW_")), "MLFLOW_EXPERIMENT_ID"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def written(record: HarnessRecord = RECORD) -> Path:
    """A run's folder below the working directory."""
    folder = Path("benchmark_results") / record.run_id
    folder.mkdir(parents=True)
    record.write(folder)
    (folder / "results.json").write_text('{"results": {}}')
    (folder / "samples_moe_sample.jsonl").write_text('{"doc_id": 0}\n')
    return folder


def runs(uri: str | None = None, experiment: str = "moe_eval") -> list[Run]:
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], run_view_type=ViewType.ACTIVE_ONLY))


def test_without_any_variable_the_store_is_made_in_the_working_directory(tmp_path: Path) -> None:
    logged = tracking.log_run(written())
    assert (tmp_path / "mlflow.db").is_file()
    assert {file.name for file in (tmp_path / "mlruns").rglob("*.json*")} == {
        *("record.json", "results.json", "samples_moe_sample.jsonl")
    }
    assert logged.describe() == f"run {logged.run_id} in experiment moe_eval (mlflow ui)"
    [run] = runs()
    assert (run.info.run_id, run.info.status) == (logged.run_id, "FINISHED")


def test_a_run_holds_the_whole_record(store: Path) -> None:
    logged = tracking.log_run(written())
    [run] = runs()
    assert run.data.params == PARAMS
    assert run.data.metrics == METRICS
    assert run.info.run_name == "tiny-moe bf16 moe_sample"
    assert run.info.start_time == 1767323045_000
    assert run.info.end_time == run.info.start_time + 12_500
    ours = {key: value for key, value in run.data.tags.items() if key.startswith("moe_eval.")}
    assert ours == {
        "moe_eval.run_id": RECORD.run_id,
        "moe_eval.status": "finished",
        "moe_eval.engine": "transformers",
        "moe_eval.checkpoint.precision": "bf16",
        "moe_eval.gpu": "NVIDIA H100",
    }
    assert run.data.tags["mlflow.note.content"] == "first note\n\nsecond note"
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(logged.run_id)}
    assert files == {"record.json", "results.json", "samples_moe_sample.jsonl"}


def test_a_run_s_data_set_is_an_input_with_its_digest(store: Path) -> None:
    tracking.log_run(written())
    [run] = runs()
    [found] = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("moe_sample", "0123456789abcdef")
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags["mlflow.data.context"] == "evaluation"
    assert (tags["split"], tags["documents"], tags["source"]) == ("test", "14", "local:moe_sample")


@pytest.mark.parametrize(
    ("source", "configuration"),
    [("hub:EleutherAI/arithmetic:2da", "2da"), ("hub:baber/piqa", None)],
)
def test_a_data_set_of_the_hub_is_named_as_such(store: Path, source: str, configuration: str | None) -> None:
    tracking.log_run(written(replace(RECORD, datasets=(replace(DATASET, source=source),))))
    [found] = runs()[0].inputs.dataset_inputs
    said: dict[str, Any] = json.loads(found.dataset.source)
    assert found.dataset.source_type == "hugging_face"
    assert said["path"] == source.split(":")[1]
    assert said["config_name"] == configuration


def test_a_run_logged_while_it_ran_is_logged_again_when_it_has_ended(store: Path) -> None:
    folder = written(replace(RECORD, status="running", metrics={}))
    tracking.log_run(folder)
    RECORD.write(folder)
    tracking.log_run(folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(dict(RECORD.metrics))


def test_logging_again_changes_nothing(store: Path) -> None:
    folder = written()
    first = tracking.log_run(folder)
    assert tracking.log_run(folder) == first
    assert len(runs()) == 1


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("killed", "KILLED"), ("running", "KILLED")])
def test_a_run_that_did_not_end_well_is_told_apart(store: Path, status: Any, shown: str) -> None:
    broken = HarnessRecord(
        RECORD.run_id, status, RECORD.started, {}, {"tasks": ["a"]}, error=None if status == "running" else "Why: so"
    )
    tracking.log_run(written(broken))
    [run] = runs()
    assert run.info.status == shown
    assert run.data.tags["moe_eval.status"] == shown.lower()
    assert run.data.tags.get("moe_eval.error") == broken.error
    assert run.info.run_name == "shipped model ? a"


def test_names_of_store_and_experiment_are_the_user_s(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(empty_store, "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my arms")
    logged = tracking.log_run(written())
    assert logged.describe().endswith("experiment my arms (mlflow ui --backend-store-uri sqlite:///elsewhere.db)")
    assert len(runs("sqlite:///elsewhere.db", "my arms")) == 1
    assert not Path("mlflow.db").exists()


def test_what_mlflow_limits_does_not_keep_a_record_out(store: Path) -> None:
    """Long values, more parameters and metrics than one call takes, empty values, and numbers that are none."""
    many = {f"harness/task_{index}/acc": float(index) for index in range(1100)}
    tracking.log_run(
        written(
            replace(
                RECORD,
                model_args={"long": "x" * 10_000, **{f"option_{index}": index for index in range(250)}},
                metrics={**many, "quality/word_ppl": float("inf"), "harness/a/f1": float("nan")},
                notes=("n" * 10_000,),
            )
        )
    )
    [run] = runs()
    assert run.data.params["model_args.long"].startswith("xxx")
    assert run.data.params["model_args.option_249"] == "249"
    assert len(run.data.metrics) == 1102
    assert run.data.tags["mlflow.note.content"].startswith("nnn")


def test_the_process_s_own_mlflow_is_left_as_it_was(store: Path) -> None:
    """simple_evaluate may run inside a program that logs to MLflow itself."""
    mlflow.set_experiment("the program's own")
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    tracking.log_run(written())
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")} == before
    with mlflow.start_run() as run:
        pass
    assert [each.info.run_id for each in runs(experiment="the program's own")] == [run.info.run_id]


@pytest.fixture
def log_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return lambda *folders: (cli.main(["log", *map(str, folders)]), *capsys.readouterr())


def test_command_logs_folders_and_says_where(store: Path, log_command: Any) -> None:
    folder = written()
    code, out, err = log_command(folder)
    assert (code, err) == (0, "")
    assert out == f"{folder}: run {runs()[0].info.run_id} in experiment moe_eval (mlflow ui)\n"


def test_command_refuses_a_folder_without_a_record(tmp_path: Path, log_command: Any) -> None:
    code, out, err = log_command(tmp_path)
    assert (code, out) == (2, "")
    assert err == f"moe-eval: {tmp_path} holds no record.json; give the folder of a run.\n"
