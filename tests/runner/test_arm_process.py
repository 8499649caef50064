"""The process of an arm: it answers, it fails with a sentence, and it never outlives who asked."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moe_eval.data.workload import Shape, from_seed, shapes
from moe_eval.engines.base import EngineSettings
from moe_eval.machine import nsys
from moe_eval.records.samples import WarmUp
from moe_eval.records.shape_latency import Routing
from moe_eval.runner import arm_process, arm_worker
from moe_eval.runner.arm_process import ArmDied, ArmFailed, ArmProcess, Load
from tests.conftest import SHIPPED
from tests.contract.commands import Commands
from tests.doubles import forks
from tests.doubles.executed import in_a_process

SHAPE = Shape(2, 3, 3)
SHIPPED_LOAD = Load("transformers", EngineSettings(str(SHIPPED), device="cpu"), str(SHIPPED))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Whatever a test starts has ended when it is over; other tests may have processes of their own here."""
    before = psutil.Process().children(recursive=True)
    yield
    left = set(psutil.Process().children(recursive=True)) - set(before)
    _, alive = psutil.wait_procs(left, timeout=10)  # a guard looks four times a second whether its arm has gone
    assert not alive


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A workload of two prompts."""
    file = tmp_path / "workload.json"
    file.write_text(json.dumps(from_seed(1, shapes([2], 3, 3), 100).to_json()))
    return file


def test_a_process_imports_before_it_loads() -> None:
    with ArmProcess(SHIPPED_LOAD) as process:
        process.begin_imports()
        process.end_imports()
        process.end_imports()
        assert process.is_alive
        assert process.load().engine is not None


def test_a_process_whose_imports_fail_ends() -> None:
    with ArmProcess(Load("no such engine", EngineSettings("x"), None)) as process:
        process.begin_imports()
        with pytest.raises(ArmDied):
            process.end_imports()


def test_an_arm_loads_once_answers_what_it_is_asked_and_holds_the_workload_against_its_digest(
    frozen: Path, tmp_path: Path
) -> None:
    with ArmProcess(SHIPPED_LOAD) as process:
        labels = process.load()
        assert labels.engine is not None
        assert (labels.engine.name, labels.engine.worker) == ("transformers", "in_process")
        arguments = {"workload": str(frozen), "shape": SHAPE, "experts": 16, "batch_sizes": [1, 2]}
        by_size = process.ask("routing", dict[int, Routing], **arguments)
        assert by_size == process.ask("routing", dict[int, Routing], **arguments)
        assert set(by_size) == {1, 2}
        assert by_size[1].distinct == 4.0, "one token goes through its top-4"
        raw = json.loads(frozen.read_text())
        raw["pool"][1][0] += 1
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps(raw))
        with pytest.raises(ArmFailed, match="digest"):
            process.ask("warm_up", WarmUp, workload=str(changed), shape=SHAPE, minimum=5, uuids=[])


def test_an_arm_in_one_process_ends_without_closing_its_engine(tmp_path: Path) -> None:
    """What a library does when Python ends is not waited for, unless Nsight Systems records it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(print, 'closed', file=sys.stderr, flush=True)\n"
    )
    for session, said in (("", []), ("1", ["closed"])):
        output = tmp_path / f"log{session}"
        environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), nsys.SESSION: session}
        with ArmProcess(replace(SHIPPED_LOAD, environment=environment), output=output) as process:
            process.load()
            assert process.end()
        assert [line for line in output.read_text().splitlines() if line == "closed"] == said


@pytest.mark.parametrize(
    ("worker", "session", "ends"),
    [("in_process", "", True), ("in_process", "1", False), ("spawned", "", False), (None, "", False)],
)
def test_only_an_engine_that_is_all_in_the_process_is_not_closed(
    monkeypatch: pytest.MonkeyPatch, worker: str | None, session: str, *, ends: bool
) -> None:
    """Others have processes that have to end, servers among them, or nothing to end."""
    monkeypatch.setenv(nsys.SESSION, session)
    arm = arm_worker._Arm()
    assert not arm.ends_with_process
    arm.engine = SimpleNamespace(facts=SimpleNamespace(worker=worker))
    assert arm.ends_with_process is ends


@pytest.fixture
def _forks(forked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms need not import anything."""
    monkeypatch.setattr(arm_process, "subprocess", forks.arms(forked))


@pytest.mark.usefixtures("_forks")
def test_an_arm_that_cannot_be_loaded_says_why_and_is_gone(tmp_path: Path) -> None:
    settings = EngineSettings(str(tmp_path / "nowhere"), device="cpu")
    with ArmProcess(Load("transformers", settings, str(SHIPPED))) as process, pytest.raises(ArmFailed, match="nowhere"):
        process.load()


def test_an_arm_that_is_killed_is_told_by_its_signal() -> None:
    with ArmProcess(SHIPPED_LOAD) as process:
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(ArmFailed, match="signal SIGKILL"):
            process.load()


def test_no_arm_outlives_a_parent_that_is_killed_while_it_works(commands: Commands, tmp_path: Path) -> None:
    """The parent dies of SIGKILL in the middle of a request; its arm ends by itself."""
    file = tmp_path / "workload.json"
    file.write_text(json.dumps(from_seed(1, shapes([64], 200, 200), 100).to_json()))
    program = f"""
        from moe_eval.runner.arm_process import ArmProcess, Load
        from moe_eval.engines.base import EngineSettings
        process = ArmProcess(Load("transformers", EngineSettings({str(SHIPPED)!r}, device="cpu"), {str(SHIPPED)!r}))
        process.load()
        print(process._process.pid, flush=True)
        shape = dict(batch_size=64, input_len=200, output_len=200)
        process.ask("routing", dict, workload={str(file)!r}, shape=shape, experts=16, batch_sizes=[64])
    """
    (tmp_path / "parent.py").write_text(textwrap.dedent(program))
    running = commands.start(str(tmp_path / "parent.py"), program="python", folder=tmp_path, double=None)
    end = time.monotonic() + 120
    while not (line := (tmp_path / "stdout").read_text()).endswith("\n"):
        assert time.monotonic() < end, (tmp_path / "stderr").read_text()
        time.sleep(0.05)
    arm = psutil.Process(int(line))
    time.sleep(0.5)
    running.send(signal.SIGKILL)
    gone, _ = psutil.wait_procs([arm], timeout=5)
    assert gone


@pytest.mark.parametrize("launcher", [[], ["env"]])
def test_no_arm_and_no_worker_outlives_a_parent_that_is_killed_while_a_call_blocks_its_interpreter(
    tmp_path: Path, launcher: list[str]
) -> None:
    """A library that starts a worker and does not come back from C, while it is imported."""
    pids = tmp_path / "pids"
    (tmp_path / "transformers.py").write_text(
        "import ctypes, os, subprocess\n"
        "worker = subprocess.Popen(['sleep', '300'])\n"
        f"with open({str(pids)!r} + '~', 'w') as file: file.write(f'{{os.getpid()}} {{worker.pid}}')\n"
        f"os.rename({str(pids)!r} + '~', {str(pids)!r})\n"
        "ctypes.PyDLL(None).sleep(300)  # which keeps the interpreter's lock\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(arm_process.__file__).parents[2])])
    load = replace(SHIPPED_LOAD, environment={"PYTHONPATH": path})
    runner = in_a_process(lambda: ArmProcess(load, output=tmp_path / "log", launcher=launcher).load())
    try:
        end = time.monotonic() + 30
        while not pids.exists():
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.02)
        left = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    finally:
        os.kill(runner, signal.SIGKILL)
        os.waitpid(runner, 0)
    end = time.monotonic() + 5
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_arm_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    with ArmProcess(SHIPPED_LOAD, patience=1, output=tmp_path / "log.txt") as process:
        os.kill(process._process.pid, signal.SIGSTOP)
        with pytest.raises(ArmFailed, match="did not answer within 1 s and was ended"):
            process.load()
        assert process._process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("fate", "sentence"),
    [("exit 1", "ended with code 1"), ("wait", "did not answer within 0.6 s and was ended")],
)
def test_no_rank_outlives_an_arm_of_which_another_died_or_a_collective_hangs(
    tmp_path: Path, fate: str, sentence: str
) -> None:
    """An engine's process that ends, or waits for ever, with a rank of its own that waits for another."""
    file = tmp_path / "rank"
    script = f"sleep 300 & echo $! > {file}; {fate}"
    with ArmProcess(SHIPPED_LOAD, patience=0.6, launcher=["sh", "-c", script, "sh"]) as process:
        with pytest.raises(ArmFailed, match=sentence):
            process.load()
        rank = int(file.read_text())
    end = time.monotonic() + 5
    while psutil.pid_exists(rank) and psutil.Process(rank).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("_forks")
def test_what_an_arm_prints_is_added_to_its_file(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    with ArmProcess(SHIPPED_LOAD, output=log) as process, pytest.raises(ArmFailed, match="AttributeError"):
        process.ask("no_such_task", object)
    assert log.read_text().startswith("before\nTraceback")


def test_a_lock_is_held_until_the_last_arm_has_ended(tmp_path: Path) -> None:
    file = (tmp_path / "lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    with ArmProcess(SHIPPED_LOAD, held=[file.fileno()]):
        file.close()
        with (tmp_path / "lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
