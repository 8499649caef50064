"""`moe-eval compare` on runs in MLflow: children of one run, stores that are not there, experiments that are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from moe_eval.cli import main
from tests.doubles.harness_runs import arm_of
from tests.doubles.servers import free_port


@pytest.fixture(scope="module")
def logged(
    recorded: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, dict[str, str]]:
    """A run's folder, the store it was logged to, and its ids there by arm."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('logged') / 'own.db')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["log", str(recorded)]) == 0
    client = MlflowClient(uri)
    logged_runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return recorded, uri, {arm_of(run): str(run.info.run_id) for run in logged_runs}


def test_children_of_one_run_have_the_quality_that_was_recorded(
    logged: tuple[Path, str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, uri, ids = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["compare", ids["bf16"], ids["fp8"], "--output_dir", str(tmp_path)]) == 0
    of_run, apart = (
        json.loads((place / "comparison.json").read_text(encoding="utf-8"))["pairs"][0] for place in (folder, tmp_path)
    )
    assert apart["quality"] == of_run["quality"]
    assert apart["sentence"] == of_run["sentence"]
    assert apart["quality"]["ln_ppl_ratio"] is not None


def test_a_run_is_not_compared_with_itself_in_mlflow(
    logged: tuple[Path, str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, uri, ids = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for sources in ((ids["parent"],) * 2, (str(folder), ids["parent"]), (ids["fp8"], "moe_eval")):
        assert main(["compare", *sources, "--output_dir", str(tmp_path / "out")]) == 2
        assert "comes twice" in capsys.readouterr().err


def test_the_report_from_mlflow_tells_how_it_was_measured(
    logged: tuple[Path, str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri, ids = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["compare", ids["parent"], "--output_dir", str(tmp_path)]) == 0
    assert "2026-01-01T00:00:00+00:00" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("named", [None, "sqlite:///{here}/absent.db"])
def test_no_store_is_made_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], named: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", named.format(here=tmp_path))
    assert main(["compare", "typo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "typo is no folder, and there is no MLflow store at " in line
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_reached_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("foo", "0" * 32):
        assert main(["compare", name, "--output_dir", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name} is no folder, and MLflow at http://127.0.0.1:" in line
        assert "cannot be reached" in line
        assert "secret" not in line


def test_an_experiment_that_was_deleted_is_named_with_the_way_back(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'own.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    made = client.create_experiment("gone")
    client.delete_experiment(made)
    assert main(["compare", "gone", "--output_dir", str(tmp_path / "out")]) == 2
    assert f"`mlflow experiments restore --experiment-id {made}`" in capsys.readouterr().err
