"""Runs of `perf` and `ppl` by made-up arms: their own files beside each other, repeats, skips and failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.records import disk, run_files
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityRecord
from moe_eval.records.run import Schedule
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.plan import schedule
from moe_eval.runner.tasks import TaskResult
from tests.doubles import plays
from tests.doubles.arm_process import FACTS, MACHINE, Process, Stage, routing

FIRST, SECOND = (shape.name for shape in plays.SHAPES)


def perf(folder: Path, **changes: object) -> list[str]:
    return plays.execute_in(folder, **{"command": "perf", "evaluators": ("latency",), "resume": False, **changes})


def ppl(folder: Path, **changes: object) -> list[str]:
    return plays.execute_in(folder, **{"command": "ppl", "evaluators": ("quality",), "resume": False, **changes})


def latency(folder: Path, arm: str) -> LatencyRecord:
    return disk.read_record(folder / f"perf_{arm}_cpu.json", LatencyRecord, schemas=(2,), maker="moe-eval perf")


def quality(folder: Path, arm: str) -> QualityRecord:
    return disk.read_record(folder / f"ppl_{arm}_cpu.json", QualityRecord, schemas=(2,), maker="moe-eval ppl")


def test_perf_and_ppl_share_a_folder(tmp_path: Path, stage: Stage) -> None:
    assert perf(tmp_path) == []
    before = plays.files(tmp_path)
    assert ppl(tmp_path) == []
    after = plays.files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [run.command for run in run_files.read_run(tmp_path)] == ["perf", "ppl"]
    assert {name.partition("/")[0] for name in after if "/" in name} == {"perf_arms", "ppl_arms"}
    timed, scored = latency(tmp_path, "bf16"), quality(tmp_path, "bf16")
    assert timed.origin.run_id != scored.origin.run_id
    assert (timed.status, scored.status) == (Status.FINISHED, Status.FINISHED)
    assert scored.figures is not None
    assert scored.noise_floor is not None, "the reference is scored twice"
    assert quality(tmp_path, "fp32").noise_floor is None
    arrays = {"ppl_bf16_cpu.npz", "ppl_bf16_cpu.batch1.npz", "ppl_fp32_cpu.npz"}
    assert {file.name for file in tmp_path.glob("*.npz")} == arrays


def test_the_reference_can_be_measured_a_second_time(tmp_path: Path, stage: Stage) -> None:
    assert perf(tmp_path, repeat_reference=True) == []
    (run,) = run_files.read_run(tmp_path)
    assert list(run.evaluators) == ["bf16", "bf16-again", "fp32"]
    again, reference = latency(tmp_path, "bf16-again"), latency(tmp_path, "bf16")
    assert (again.arm, again.precision, again.precision_planned) == ("bf16-again", "bf16", "bf16")
    assert again.origin.run_id == reference.origin.run_id
    assert again.routing == reference.routing == {size: routing(size) for size in (1, 2)}
    assert stage.order("routing") == ["bf16", "fp32"], "what is loaded alike is not counted twice"
    assert again.memory[0].together == 3
    loads = [request.load for request in stage.asked if request.task == "measure" and request.arm == "bf16"]
    assert len({repr(load) for load in loads}) == 1, "both are loaded alike"
    turns = [request.process for request in stage.asked if request.task == "measure"][:6]
    assert turns == turns[::-1], "A B C C B A"


def test_a_repeat_of_the_reference_is_scored_and_its_noise_is_not(tmp_path: Path, stage: Stage) -> None:
    assert ppl(tmp_path, repeat_reference=True) == []
    assert quality(tmp_path, "bf16-again").figures == quality(tmp_path, "bf16").figures
    assert quality(tmp_path, "bf16-again").noise_floor is None


def test_a_skipped_arm_leaves_a_record(tmp_path: Path, stage: Stage) -> None:
    assert perf(tmp_path, precisions=("bf16", "fp8")) == []
    assert ppl(tmp_path, precisions=("fp8", "nvfp4")) == [], "nothing is left to run"
    skipped: list[LatencyRecord | QualityRecord] = [latency(tmp_path, "fp8"), quality(tmp_path, "nvfp4")]
    for record in skipped:
        assert record.status is Status.SKIPPED
        assert "no checkpoint of it was named" in str(record.error)
    perf_run, ppl_run = run_files.read_run(tmp_path)
    assert [entry.arm for entry in perf_run.skipped] == ["fp8"]
    assert (ppl_run.status, ppl_run.tasks) == (Status.FINISHED, 0)


def test_a_run_leaves_no_record_of_what_it_skips(tmp_path: Path, stage: Stage) -> None:
    assert plays.execute_in(tmp_path, precisions=("bf16", "fp8")) == []
    assert not list(tmp_path.glob("*fp8*"))


@pytest.mark.parametrize("task", ["load", "warm_up", "measure"])
@pytest.mark.parametrize("free", [1 << 40, 3 << 29])
def test_an_arm_that_fails_has_its_reason_and_the_others_go_on(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, task: str, free: int
) -> None:
    plays.memory(monkeypatch, free)
    stage.fails["fp32", task, 0 if task == "load" else 1] = "out of memory"
    failed = perf(tmp_path, precisions=("bf16", "fp32", "fp16"), iterations=4, loads=2)
    assert failed
    record = latency(tmp_path, "fp32")
    assert (record.status, str(record.error).startswith("out of memory")) == (Status.FAILED, True)
    measured = sum(event == ("fp32", "measure") for event in stage.events)
    per_turn = 1 if free > 1 << 32 else 2
    assert sum(row.num_iterations for row in record.shapes) == measured * per_turn, "what it had is kept"
    for arm in ("bf16", "fp16"):
        finished = latency(tmp_path, arm)
        assert finished.status is Status.FINISHED
        assert [[len(load) for load in row.loads] for row in finished.shapes] == [[2, 2]] * 2
    (run,) = run_files.read_run(tmp_path)
    assert (run.status, run.error) == (Status.FAILED, "some tasks failed; their records say why")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("free", [1 << 40, 3 << 29])
def test_a_run_that_is_ended_leaves_what_it_measured_and_no_process(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], free: int
) -> None:
    plays.memory(monkeypatch, free)
    stage.fails["fp32", "measure", 1] = error()
    with pytest.raises(error):
        perf(tmp_path, iterations=4, loads=2)
    assert stage.alive == set()
    for arm in plays.ARMS:
        record = latency(tmp_path, arm)
        assert (record.status, record.error) == (Status.FAILED, "the run ended before it was measured")
        assert record.shapes[0].num_iterations
    (run,) = run_files.read_run(tmp_path)
    assert run.status is Status.KILLED
    stage.fails.clear()
    assert perf(tmp_path, iterations=4, loads=2, resume=True) == []
    assert latency(tmp_path, "fp32").status is Status.FINISHED


def test_arms_that_do_not_fit_together_are_loaded_alone_in_turned_order(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays.memory(monkeypatch, 3 << 29)
    assert perf(tmp_path, iterations=5, loads=3) == []
    loaded = [(arm, task) for arm, task in stage.events if task in ("load", "end") and arm != MACHINE]
    first, later = ["bf16", "fp32"], ["fp32", "bf16", "bf16", "fp32"]
    order = [*first, *first, *later]  # routing is told after the first loads
    assert loaded == [(arm, task) for arm in order for task in ("load", "end")], "never two at once"
    assert stage.order("measure") == [arm for arm in [*first, *later] for _ in plays.SHAPES]
    record = latency(tmp_path, "fp32")
    assert [[len(load) for load in row.loads] for row in record.shapes] == [[2, 2, 2]] * 2
    assert [len(row.warm_ups) for row in record.shapes] == [1, 1], "equal warm-ups count as one"
    assert len(record.memory) == 3


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("iterations", "loads", "per_load"), [(6, 2, 3), (7, 2, 4), (1, 9, 1), (7, 1, 7), (20, 4, 5)])
def test_no_schedule_has_fewer_iterations_than_the_request(
    tmp_path: Path, iterations: int, loads: int, per_load: int, together: bool
) -> None:
    plan = schedule(plays.request(tmp_path, iterations=iterations, loads=loads), together=together)
    mode = "turns" if together else "alternating"
    assert plan == Schedule(mode, loads, per_load, 5)
    assert plan.per_turn == (1 if together else per_load)
    assert plan.iterations == loads * per_load >= iterations


def test_more_loads_until_decided_have_as_many_iterations(tmp_path: Path) -> None:
    plan = schedule(plays.request(tmp_path, iterations=20, loads=4, most_loads=8), together=True)
    assert plan == Schedule("turns", 8, 5, 5, until_decided=True)


def test_files_of_an_earlier_command_are_kept_beside_those_of_the_next(
    tmp_path: Path, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perf(tmp_path) == []
    assert ppl(tmp_path) == []
    before = plays.files(tmp_path)
    capsys.readouterr()
    stage.fails["bf16", "load"] = "out of memory"
    assert perf(tmp_path, precisions=("bf16",))
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert capsys.readouterr().err.startswith("moe-eval: 4 files of an earlier command were moved to ")
    names = {"perf_run.json", "perf_rates.json", "perf_bf16_cpu.json", "perf_arms"}
    assert {file.name for file in earlier.iterdir()} == names
    for name, content in plays.files(earlier).items():
        assert before[name] == content
    assert latency(tmp_path, "bf16").status is Status.FAILED
    assert latency(tmp_path, "fp32").status is Status.FINISHED, "what this command does not write stays"
    assert quality(tmp_path, "bf16").status is Status.FINISHED


def test_perf_goes_on_where_it_was_stopped(tmp_path: Path, stage: Stage) -> None:
    stage.fails["fp32", "measure"] = "out of memory"
    assert perf(tmp_path)
    stage.fails.clear()
    stage.asked.clear()
    assert perf(tmp_path, resume=True) == []
    assert not (tmp_path / "earlier").exists()
    with pytest.raises(UsageError, match=r"other options \(batch_size\)"):
        perf(tmp_path, resume=True, batch_size=4)
    assert perf(tmp_path / "new", resume=True) == [], "where there is nothing to go on with, it begins"


def test_a_run_refuses_a_folder_that_holds_a_run(tmp_path: Path, stage: Stage) -> None:
    assert plays.execute_in(tmp_path) == []
    with pytest.raises(UsageError, match=r"holds a run already\. Give --resume"):
        plays.execute_in(tmp_path, resume=False)


def test_secrets_of_the_engine_are_in_no_file(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(FACTS, arguments={"hub_token": "hunter2", "nested": [{"api_key": "hunter2"}], "seed": 3})
    monkeypatch.setattr(Process, "_do_load", lambda *_: {"engine": facts})
    assert plays.execute_in(tmp_path) == []
    assert not [name for name, content in plays.files(tmp_path).items() if b"hunter2" in content]
    engine = latency(tmp_path, "bf16").labels.engine
    assert engine is not None
    assert engine.arguments["seed"] == 3


def test_rates_are_measured_once_a_run_on_the_device_of_the_arms(tmp_path: Path, stage: Stage) -> None:
    assert perf(tmp_path) == []
    assert perf(tmp_path, resume=True) == []
    (rates,) = [request for request in stage.asked if request.task == "rates"]
    assert (rates.load, rates.arguments) == (None, {"device": "cpu", "groups": []})
    record = latency(tmp_path, "bf16")
    assert record.rates is not None
    assert record.rates.device == "made up cpu"


def test_rates_that_cannot_be_measured_are_a_sentence(tmp_path: Path, stage: Stage) -> None:
    stage.fails[MACHINE, "rates"] = "its memory is nearly full"
    assert perf(tmp_path) == []
    record = latency(tmp_path, "bf16")
    assert (record.rates, record.no_rates) == (
        None,
        "the machine's rates were not measured (its memory is nearly full)",
    )


@pytest.mark.parametrize(
    ("content", "fits"),
    [
        ({"status": "finished"}, False),
        ({"status": "failed"}, False),
        ({"status": "failed", "error": "out of memory"}, True),
        ({"status": "finished", "latency": {}}, False),
        ({"status": "finished", "routing": {}}, False),
    ],
)
def test_a_result_that_is_not_of_its_task_counts_as_none(
    tmp_path: Path, stage: Stage, content: Mapping[str, object], fits: bool
) -> None:
    task = next(task for task in plays.run(tmp_path).plan.tasks if task.kind == "latency")
    folder = RunFolder(tmp_path)
    folder.file(task).write_text(json.dumps(content))
    assert isinstance(folder.result(task), TaskResult) is fits


def test_a_folder_of_schema_1_is_not_gone_on_with(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(UsageError, match=r"run\.json has schema 1. This moe_eval reads schema 2"):
        RunFolder(tmp_path).run()
