"""Whole runs of made-up arms that are damaged, moved, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records import disk
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityRecord
from moe_eval.records.run import Skipped
from moe_eval.runner import folder as folders
from moe_eval.runner.folder import RunFolder
from tests.doubles import plays
from tests.doubles.arm_process import Stage
from tests.doubles.executed import everything, in_a_process

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "zeros": lambda whole: bytes(len(whole)),
    "an object": lambda _: b"{}\n",
}
H100 = {"name": "NVIDIA H100", "capability": "9.0", "memory_bytes": 1, "uuid": "GPU-1"}
FOR_ONE = 3 << 29  # bytes of memory that hold one arm of the shipped model and not two
OF_LOAD = {"quality", "measure", "warm_up", "load"}
# what may be damaged, and what is asked of arms then
FILES: list[tuple[str, set[str]]] = [
    ("arms/bf16/quality.json", {"load", "quality"}),
    ("ppl_bf16_cpu.npz", {"load", "quality"}),
    ("arms/bf16/noise.json", {"load", "quality"}),
    ("ppl_bf16_cpu.batch1.npz", {"load", "quality"}),
    ("arms/fp32/latency_b1_i8_o4_0_1.json", {"load", "warm_up", "measure"}),
    ("arms/fp32/load_0.json", OF_LOAD),
    ("arms/fp32/routing.json", {"load", "routing"}),
    ("arms/fp32/load_routing.json", {"load", "routing"}),
    ("rates.json", {"rates"}),
    ("workload_*.json", set()),
    ("perf_fp32_cpu.json", set()),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        plays.set_up(patch)
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert plays.execute_in(folder, resume=False) == []
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.mark.parametrize("case", [(*file, damage) for file in FILES for damage in DAMAGE])
def test_what_is_damaged_is_measured_again_and_nothing_else(
    whole: Path, copy: Path, stage: Stage, capsys: pytest.CaptureFixture[str], case: tuple[str, set[str], str]
) -> None:
    file, again, damage = case
    (damaged,) = copy.glob(file)
    damaged.write_bytes(DAMAGE[damage](damaged.read_bytes()))
    assert plays.execute_in(copy) == []
    lines = capsys.readouterr().err.splitlines()
    assert {request.task for request in stage.asked} == again
    assert len(lines) == (5 if file.endswith("load_0.json") else bool(again - {"rates"}))
    assert all(line.startswith(f"moe-eval: {damaged} is missing or damaged, so ") for line in lines)
    assert everything(RunFolder(copy)) == everything(RunFolder(whole))
    for name in (damaged.name, "rates.json"):
        if (whole / name).exists():
            assert (copy / name).read_bytes() == (whole / name).read_bytes()


def test_the_process_of_the_first_load_imports_before_the_run_is_told(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(registry.named("transformers"), imports_ahead=True)
    monkeypatch.setitem(registry.ENGINES, "transformers", kind)
    plays.memory(monkeypatch, FOR_ONE)
    told: list[list[tuple[str, str]]] = []

    class Told(plays.Quiet):
        def ready(self, *_: object, **__: object) -> None:
            told.append([*stage.events])

    assert plays.run(tmp_path / "run").execute(Told()) == []
    assert told == [[("bf16", "import")]]
    assert stage.events[:3] == [("bf16", "import"), ("bf16", "imported"), ("bf16", "begin")]
    assert stage.alive == set()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_plan_is_one_sentence(copy: Path, stage: Stage, damage: str) -> None:
    (copy / "run.json").write_bytes(DAMAGE[damage]((copy / "run.json").read_bytes()))
    with pytest.raises(UsageError, match=r"run\.json (is damaged|has schema None)"):
        plays.execute_in(copy)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("machine", {"cpu": "another"}, "CPU another and now "),
        ("machine", {"cores": 4096}, "cores 4096 and now "),
        ("machine", {"driver": "1.2"}, "driver 1.2 and now "),
        ("machine", {"gpus": [H100]}, "GPUs NVIDIA H100 GPU-1 and now none"),
        ("versions", {"torch": "1.0"}, f"torch 1.0 and now {hardware.versions()['torch']}"),
        ("versions", {"vllm": "1.0"}, f"vllm 1.0 and now {hardware.versions().get('vllm', 'none')}"),
        ("git", "abc", "revision abc and now "),
    ],
)
def test_a_run_goes_on_where_it_began_and_nowhere_else(
    copy: Path, stage: Stage, key: str, value: Any, sentence: str
) -> None:
    run = json.loads((copy / "run.json").read_text())
    run[key] = {**run[key], **value} if isinstance(value, dict) else value
    (copy / "run.json").write_text(json.dumps(run))
    before = plays.files(copy)
    with pytest.raises(UsageError) as caught:
        plays.execute_in(copy)
    assert f"began elsewhere ({sentence}" in str(caught.value)
    assert "Resume it there, or begin another" in str(caught.value)
    assert plays.files(copy) == before


def test_what_changes_no_measurement_may_be_given_anew(copy: Path, stage: Stage) -> None:
    options = {
        "timeout": 7200,
        "gate": "speed>=1",
        "min_gain": 0.05,
        "decide_on": "tpot",
        "config": "run.yaml",
        "output_dir": "elsewhere",
    }
    assert plays.execute_in(copy, **options) == []
    with pytest.raises(UsageError, match=r"other options \(precisions\)"):
        plays.run_of(replace(plays.request(copy), options={"loads": 1, "precisions": "fp32"})).execute(plays.Quiet())


def test_a_run_that_has_finished_stays_as_it_is_when_it_is_resumed(copy: Path, stage: Stage) -> None:
    before = plays.files(copy)
    time.sleep(1.1)  # times in records are whole seconds
    assert plays.execute_in(copy) == []
    assert plays.files(copy) == before
    assert stage.asked == []


@pytest.mark.parametrize("at", range(3, 20, 2))
def test_a_run_that_is_killed_outright_has_records_of_what_it_measured(tmp_path: Path, stage: Stage, at: int) -> None:
    folder, answers_left = tmp_path / "run", [at]

    def before(_: str, task: str) -> None:
        answers_left[0] -= task != "end"
        if answers_left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    stage.before = before
    assert os.waitpid(in_a_process(lambda: plays.execute_in(folder)), 0)[1] == signal.SIGKILL
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    of_run, tasks = RunFolder(folder), plays.run(folder).plan.tasks
    for task in tasks:
        if task.kind == "quality" and of_run.done(task):
            scored = disk.read_record(folder / f"ppl_{task.arm}_cpu.json", QualityRecord, schemas=(2,), maker="")
            assert (scored.status, scored.figures is None) == (Status.FINISHED, False)
        turns = [turn for turn in tasks if (turn.kind, turn.shape) == ("latency", task.shape)]
        if task.kind == "latency" and all(map(of_run.done, turns)):
            timed = disk.read_record(folder / f"perf_{task.arm}_cpu.json", LatencyRecord, schemas=(2,), maker="")
            assert task.shape is not None
            assert task.shape.name in {row.name for row in timed.shapes}


@pytest.mark.parametrize(("options", "metered"), [({}, 1), ({"tensor_parallel_size": 2}, 2)])
def test_the_gpus_of_an_arm_are_metered_and_no_others(
    tmp_path: Path, stage: Stage, options: dict[str, int], metered: int
) -> None:
    """Of a machine of eight GPUs, seven idle ones would count as throttled, and their energy as the arm's."""
    gpus = tuple(Gpu("made up", "9.0", 80 << 30, f"GPU-{at}") for at in range(8))
    assert plays.execute_in(tmp_path / "run", gpus, engine_options=options) == []
    metered_uuids = {tuple(request.arguments["uuids"]) for request in stage.asked if request.task == "measure"}
    assert metered_uuids == {tuple(gpu.uuid for gpu in gpus[:metered])}


def test_a_run_of_which_everything_failed_has_records_that_say_so(tmp_path: Path, stage: Stage) -> None:
    folder = tmp_path / "run"
    stage.fails = {(arm, "load"): "no such checkpoint" for arm in plays.ARMS}
    assert len(plays.execute_in(folder)) == len(plays.run(folder).plan.tasks)
    for name in ("perf_bf16_cpu.json", "ppl_fp32_cpu.json"):
        record = json.loads((folder / name).read_text())
        assert (record["status"], record["error"]) == ("failed", "no such checkpoint")
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, stage: Stage) -> None:
    stage.fails["bf16", "measure"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt, match="the same command with --resume goes on") as caught:
        plays.execute_in(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "killed"


def test_a_wait_for_another_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_QUIET_SECONDS", 0.1)
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)

    def wait() -> None:
        with second.locked(60):
            pass

    with first.locked():
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(1)
    waiting.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"moe-eval: Another run is at work in {tmp_path}. Waiting up to 60 s for its end."


@pytest.fixture
def begun(tmp_path: Path, stage: Stage) -> Path:
    """A run of two arms that took turns, in want of one task."""
    assert plays.execute_in(tmp_path / "begun") == []
    (tmp_path / "begun" / "arms" / "fp32" / "quality.json").unlink()
    stage.asked.clear()
    return tmp_path / "begun"


def test_a_run_keeps_its_schedule_though_more_memory_is_free(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays.memory(monkeypatch, FOR_ONE)
    folder = tmp_path / "run"
    assert plays.execute_in(folder) == []
    before = plays.files(folder)
    assert json.loads(before["perf_fp32_cpu.json"])["schedule"]["mode"] == "alternating"
    plays.memory(monkeypatch, 1 << 40)
    (latency,) = (folder / "arms" / "fp32").glob("latency_b1_*.json")
    latency.unlink()
    assert plays.execute_in(folder) == []
    again = plays.files(folder)
    for name in ("perf_bf16_cpu.json", "perf_fp32_cpu.json"):
        assert again[name] == before[name], name


def test_a_run_begun_without_an_arm_goes_on_without_it(begun: Path, stage: Stage) -> None:
    run = json.loads((begun / "run.json").read_text())
    del run["evaluators"]["fp32"]
    plan = plays.run(begun).plan
    (begun / "run.json").write_text(json.dumps({**run, "schedule": {**run["schedule"], "mode": "alternating"}}))
    later = plays.run(begun).plan
    assert plan.skipped == ()
    assert later.skipped == (Skipped("fp32", None, "the run that goes on here began without it"),)
    assert {task.arm for task in later.tasks} == {"bf16"}
    assert later.schedule.mode == "alternating"


def test_a_run_does_not_go_on_where_its_arms_no_longer_fit_together(
    begun: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plays.files(begun)
    plays.memory(monkeypatch, FOR_ONE)
    with pytest.raises(UsageError, match=r"planned as .*mode turns.* free now allows .*mode alternating"):
        plays.execute_in(begun)
    assert plays.files(begun) == before
    assert stage.asked == []
    plays.memory(monkeypatch, 1 << 40)
    assert plays.execute_in(begun) == []
