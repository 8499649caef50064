"""Where MLflow does not take a record: one sentence, nothing lost, and nothing in the way of logging it later."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from moe_eval import tracking
from moe_eval.errors import TrackingError, UsageError
from tests.doubles.harness_runs import METRICS, PARAMS, runs, written


def refusal(folder: Path) -> str:
    """The sentence of a record that could not be logged."""
    with pytest.raises(TrackingError) as caught:
        tracking.log_run(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert f"`moe-eval log {folder}`" in sentence
    return sentence


def fail(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_server_that_does_not_answer_is_told_within_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = dict(os.environ)
    began = time.monotonic()
    assert "http://127.0.0.1:9" in refusal(written())
    assert time.monotonic() - began < 30
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:9",
        "http://secret@127.0.0.1:9/path",
        "http://user:p@secret@127.0.0.1:9",
        "http://user:p/secret@127.0.0.1:9",
        "postgresql://127.0.0.1:9/mlflow?user=u&password=secret",
        "postgresql://user:secret@127.0.0.1:9/mlflow",
        "unknown+driver://user:secret@127.0.0.1:9/mlflow",
    ],
)
def test_credentials_in_the_store_s_address_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "0")
    with caplog.at_level(logging.DEBUG):
        sentence = refusal(written())
    assert "127.0.0.1:9" in sentence
    assert "secret" not in sentence + caplog.text + "".join(capfd.readouterr())


def test_the_command_that_logs_later_can_be_pasted(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written().rename("a run's; folder")
    monkeypatch.setattr(mlflow.MlflowClient, "create_run", fail)
    with pytest.raises(TrackingError) as caught:
        tracking.log_run(folder)
    command = str(caught.value).split("`")[1]
    assert shlex.split(command) == ["moe-eval", "log", str(folder)]


def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(store: Path) -> None:
    client = mlflow.MlflowClient()
    gone = client.create_experiment("moe_eval")
    client.delete_experiment(gone)
    folder = written()
    assert f"`mlflow experiments restore --experiment-id {gone}`" in refusal(folder)
    client.restore_experiment(gone)
    assert_logged_whole(folder)


def test_old_file_store_is_explained_and_no_hindrance_to_a_store_that_is_named(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mlruns/0").mkdir(parents=True)
    Path("mlruns/0/meta.yaml").write_text("name: Default\n")
    folder = written()
    sentence = refusal(folder)
    assert "mlflow migrate-filestore" in sentence
    assert "MLFLOW_TRACKING_URI" in sentence
    assert not Path("mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, 'mlflow.db')}")
    tracking.log_run(folder)
    assert len(runs()) == 1


def test_a_broken_installation_of_mlflow_is_one_sentence(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written()
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
            patch.setitem(sys.modules, name, None)  # an import of it raises
        assert "MLflow did not take the run (ModuleNotFoundError" in refusal(folder)
    assert_logged_whole(folder)


def assert_logged_whole(folder: Path) -> None:
    tracking.log_run(folder)
    [run] = runs()
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.metrics) == (PARAMS, METRICS)
    assert len(mlflow.MlflowClient().list_artifacts(run.info.run_id)) == 3


@pytest.mark.parametrize("step", ["create_run", "log_batch", "log_inputs", "log_artifacts", "set_terminated", "a kill"])
def test_a_failure_in_the_middle_leaves_nothing_that_keeps_the_record_out(
    store: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = written()
    with monkeypatch.context() as patch:
        if step == "a kill":
            patch.setattr(mlflow.MlflowClient, "log_artifacts", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tracking.log_run(folder)
        else:
            patch.setattr(mlflow.MlflowClient, step, fail)
            assert "no space left on device" in refusal(folder)
    assert not runs()
    assert_logged_whole(folder)


def test_half_a_run_that_could_not_be_taken_back_does_not_pass_for_the_record(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes away in the middle refuses the clean-up too."""
    folder = written()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifacts", fail)
        patch.setattr(mlflow.MlflowClient, "delete_run", fail)
        refusal(folder)
    assert_logged_whole(folder)


def test_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no record\.json"):
        tracking.log_run(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_old_file_store_is_used_where_the_user_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.MlflowClient("file:mlruns").create_experiment("an old one")
    tracking.log_run(written())
    assert len(runs("file:mlruns")) == 1
    assert not Path("mlflow.db").exists()
