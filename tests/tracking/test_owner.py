"""Runs whose process was killed outright are set to killed by the next command, and nobody else's run is."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from moe_eval.cli import main
from moe_eval.records import disk
from moe_eval.records.labels import Status
from moe_eval.tracking import owner, plan_run
from moe_eval.tracking.owner import PROCESS_TAG
from tests.doubles import recorded_arms
from tests.doubles.harness_runs import RECORD, arm_of, runs, written

RUN = "a" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that goes on."""
    folder = tmp_path / "run"
    folder.mkdir()
    recorded_arms.write(folder, [recorded_arms.arm(name, {1: [[100.0, 101.0]] * 3}) for name in ("bf16", "fp8")])
    record = recorded_arms.run(["bf16", "fp8"], ("latency",), run_id=RUN)
    disk.write_record(folder / "run.json", replace(record, status=Status.RUNNING, ended=None))
    return folder


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Starts a process that makes a call, until it says so or waits in it."""
    begun = []

    def start(call: Callable[[], object]) -> int:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            plan_run.store.log_files = lambda *_: (os.write(write, b"."), time.sleep(300))  # type: ignore[assignment]
            with suppress(BaseException):
                call()
                os.write(write, b".")
                time.sleep(300)
            os._exit(1)
        os.close(write)
        begun.append(pid)
        assert os.read(read, 1) == b"."
        os.close(read)
        return pid

    yield start
    for pid in begun:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def of_run() -> list[Run]:
    return [run for run in runs() if run.data.tags["moe_eval.run_id"].startswith(RUN)]


@pytest.mark.parametrize("command", ["log", "compare"])
def test_runs_of_a_killed_process_are_killed_by_the_next_command_and_not_before(
    store: Path, folder: Path, fork: Callable[..., int], command: str, tmp_path: Path
) -> None:
    pid = fork(lambda: plan_run.log(folder))  # it stops in the middle of the first arm
    written()
    arguments = {"log": ["benchmark_results/" + RECORD.run_id], "compare": ["moe_eval", "--output_dir", "out"]}
    main([command, *arguments[command]])
    assert [run.info.status for run in of_run()] == ["RUNNING"] * 2, "it lives"
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has taken note
    main([command, *arguments[command]])
    assert {arm_of(run): run.info.status for run in of_run()} == {"parent": "KILLED", "bf16": "KILLED"}
    for run in of_run():
        assert (run.data.tags["moe_eval.status"], run.data.tags["moe_eval.error"]) == ("killed", owner.KILLED)
        assert run.info.end_time == run.info.start_time, "nothing was heard of it later"
    plan_run.log(folder)
    assert {arm_of(run): run.info.status for run in of_run()} == dict.fromkeys(("parent", "bf16", "fp8"), "KILLED") | {
        "bf16": "FINISHED",
        "fp8": "FINISHED",
    }


def test_a_run_that_goes_on_is_the_new_process_s(store: Path, folder: Path, fork: Callable[..., int]) -> None:
    pid = fork(lambda: plan_run.open_run(folder))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    (before,) = of_run()
    opened = plan_run.open_run(folder)
    (after,) = of_run()
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "RUNNING")
    assert after.data.tags[PROCESS_TAG] == owner.tags()[PROCESS_TAG] != before.data.tags[PROCESS_TAG]
    assert plan_run.log(folder) == opened
    assert len(of_run()) == 3


@pytest.mark.parametrize(
    ("process", "status"),
    [
        ("{machine}:0000000000000000", "KILLED"),  # of another boot, or whose number has gone to a new process
        ("000000000000:0000000000000000", "RUNNING"),  # of another machine
        (None, "RUNNING"),  # of a version that did not tell, or somebody else's
    ],
)
def test_only_runs_of_this_machine_are_judged(store: Path, process: str | None, status: str) -> None:
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment("moe_eval")
    machine = owner.tags()[PROCESS_TAG].partition(":")[0]
    tags = {} if process is None else {PROCESS_TAG: process.format(machine=machine)}
    run_id = client.create_run(experiment_id, 1000, tags).info.run_id
    client.log_metric(run_id, "progress/tasks_done", 1, timestamp=5000)
    living = client.create_run(experiment_id, 1000, owner.tags()).info.run_id
    owner.end_killed(client, experiment_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == (status, 5000 if status == "KILLED" else None)
    assert client.get_run(living).info.status == "RUNNING"


def test_the_tag_is_of_the_process_the_boot_and_the_machine_and_names_none(
    fork: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = owner.tags()[PROCESS_TAG]
    assert re.fullmatch(r"[0-9a-f]{12}:[0-9a-f]{16}", tag)
    machine, process = tag.split(":")
    assert owner.tags()[PROCESS_TAG] == tag
    assert owner._process(fork(lambda: None)) not in (None, process)
    monkeypatch.setattr(owner, "_boot", lambda: "another")
    assert owner.tags()[PROCESS_TAG].split(":")[1] != process
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert owner.tags()[PROCESS_TAG].split(":")[0] != machine
    monkeypatch.setattr(owner, "_boot", lambda: Path("/nowhere").read_text())
    assert owner.tags() == {}


def test_a_store_that_cannot_be_written_is_read_all_the_same() -> None:
    class Refusing:
        def search_runs(self, *_: object) -> list[Run]:
            raise PermissionError("read only")

    owner.end_killed(Refusing(), "1")  # type: ignore[arg-type]
