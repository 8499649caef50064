"""What MLflow shows of a run that was resumed, stopped or damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from moe_eval.cli import main
from moe_eval.runner.setup import Setup
from moe_eval.runner.tasks import Task
from moe_eval.tracking import owner, plan_run
from tests.conftest import SHIPPED
from tests.doubles import plays
from tests.doubles.arm_process import Stage
from tests.doubles.executed import in_a_process
from tests.doubles.harness_runs import arm_of


@pytest.fixture
def client(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(uri)


def shown(client: MlflowClient) -> dict[str, tuple[str, str]]:
    """The id and the status of every run by its arm, of which there is one each."""
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {arm_of(run): (run.info.run_id, run.info.status) for run in runs}


def execute(folder: Path) -> list[str]:
    """As `moe-eval run` does: shown in MLflow while it is at work, logged however it ends."""

    class Opening(plays.Quiet):
        def ready(self, tasks: Sequence[Task], seconds: Sequence[float], *, may_end_early: bool) -> None:
            plan_run.open_run(folder)

    try:
        return plays.run(folder).execute(Opening())
    finally:
        plan_run.log(folder)


def test_a_run_that_has_finished_keeps_its_ids_when_it_is_resumed(
    client: MlflowClient, stage: Stage, tmp_path: Path
) -> None:
    execute(tmp_path / "run")
    before = shown(client)
    assert {status for _, status in before.values()} == {"FINISHED"}
    assert plan_run.open_run(tmp_path / "run").run_id == before["parent"][0]
    execute(tmp_path / "run")
    assert shown(client) == before


def test_a_run_that_fails_again_as_before_keeps_its_ids(client: MlflowClient, stage: Stage, tmp_path: Path) -> None:
    stage.fails["fp32", "load"] = "no such checkpoint"
    execute(tmp_path / "run")
    before = shown(client)
    statuses = {name: status for name, (_, status) in before.items()}
    assert statuses == {"parent": "FAILED", "bf16": "FINISHED", "fp32": "FAILED"}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**run, "ended": "2026-01-01T00:00:00+00:00"}))
    execute(tmp_path / "run")
    assert shown(client) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_arms_of_a_run_that_was_stopped_are_killed_and_not_failed(
    client: MlflowClient, stage: Stage, tmp_path: Path, stop: type[BaseException]
) -> None:
    stage.fails = {("fp32", "quality"): "out of memory", ("bf16", "measure"): stop()}
    with pytest.raises(stop):
        execute(tmp_path / "run")
    statuses = {name: status for name, (_, status) in shown(client).items()}
    assert statuses == {"parent": "KILLED", "bf16": "KILLED", "fp32": "FAILED"}


def test_a_run_that_was_killed_outright_is_shown_as_killed_once_it_is_logged(
    client: MlflowClient, stage: Stage, tmp_path: Path
) -> None:
    def before(arm: str, task: str) -> None:
        if (arm, task) == ("fp32", "quality"):
            os.kill(os.getpid(), signal.SIGKILL)

    stage.before = before
    folder = tmp_path / "run"
    assert os.waitpid(in_a_process(lambda: plays.execute_in(folder)), 0)[1] == signal.SIGKILL
    assert main(["log", str(folder)]) == 0
    logged = shown(client)
    assert {name: status for name, (_, status) in logged.items()} == dict.fromkeys(("parent", "bf16", "fp32"), "KILLED")
    parent = client.get_run(logged["parent"][0])
    assert parent.data.tags["moe_eval.status"] == "killed"
    assert client.get_run(logged["bf16"][0]).data.metrics["quality/token_ppl"] > 1


def test_a_run_that_was_killed_outright_and_resumed_is_the_same_run(
    client: MlflowClient, stage: Stage, tmp_path: Path
) -> None:
    def before(arm: str, task: str) -> None:
        if (arm, task) == ("fp32", "quality"):
            os.kill(os.getpid(), signal.SIGKILL)

    folder, stage.before = tmp_path / "run", before
    assert os.waitpid(in_a_process(lambda: execute(folder)), 0)[1] == signal.SIGKILL
    parent_id, _ = shown(client)["parent"]
    (experiment,) = client.search_experiments(filter_string="name = 'moe_eval'")
    owner.end_killed(client, experiment.experiment_id)  # another command has seen it
    assert shown(client) == {"parent": (parent_id, "KILLED")}
    stage.before = lambda *_: None
    assert execute(folder) == []
    assert shown(client)["parent"] == (parent_id, "FINISHED")
    tags = client.get_run(parent_id).data.tags
    assert tags["moe_eval.status"] == "finished"
    assert not tags.keys() & {"moe_eval.error", owner.PROCESS_TAG}


def test_a_run_that_fails_before_its_first_load_is_shown_as_failed(
    client: MlflowClient, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Setup, "conditions", full)
    arms = ["--engine", "transformers", "--model_path", str(SHIPPED), "--precisions", "bf16,fp32"]
    rest = ["--evaluators", "quality", "--dataset", "moe_sample", "--output_dir", str(tmp_path / "run")]
    assert main(["run", *arms, *rest]) != 0
    assert {status for _, status in shown(client).values()} == {"FAILED"}


@pytest.mark.parametrize("content", ["", '{"status": ', "[]", '{"status": "finished", "shapes": [{}]}'])
def test_a_damaged_record_is_named_and_mlflow_is_not_blamed(
    client: MlflowClient, stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    plays.execute_in(tmp_path / "run")
    file = tmp_path / "run" / "perf_fp32_cpu.json"
    file.write_text(content)
    capsys.readouterr()
    assert main(["log", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"moe-eval: {re.escape(str(file))} is (damaged|not a record of moe-eval perf)", line)
    assert "MLflow" not in line
    assert shown(client) == {}


def test_one_folder_that_cannot_be_logged_keeps_no_other_out(
    client: MlflowClient, stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plays.execute_in(tmp_path / "run")
    capsys.readouterr()
    assert main(["log", str(tmp_path / "nothing"), str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing" in line
    assert set(shown(client)) == {"parent", "bf16", "fp32"}


def test_an_arm_has_no_records_of_one_whose_name_begins_alike(
    client: MlflowClient, stage: Stage, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    plays.execute_in(folder)
    run = json.loads((folder / "run.json").read_text())
    run["evaluators"]["bf16_block"] = ["quality"]
    (folder / "run.json").write_text(json.dumps(run))
    record = json.loads((folder / "ppl_fp32_cpu.json").read_text())
    (folder / "ppl_fp32_cpu.json").unlink()
    (folder / "ppl_bf16_block_cpu.json").write_text(json.dumps({**record, "arm": "bf16_block"}))
    plan_run.log(folder)
    logged = shown(client)
    of_arms = {"bf16": {"quality.json", "latency.json"}, "bf16_block": {"quality.json"}}
    for arm, files in of_arms.items():
        assert {artifact.path for artifact in client.list_artifacts(logged[arm][0])} == files
