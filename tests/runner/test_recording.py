"""Loads under Nsight Systems: what is captured, what becomes of the reports, and what may be wrong with them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moe_eval.data.workload import Shape
from moe_eval.engines.base import EngineSettings
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.run import EvaluatorName
from moe_eval.runner.arm_process import ArmDied, ArmFailed, ArmProcess, Load
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.tasks import Task
from tests.conftest import SHIPPED
from tests.doubles import nsys
from tests.doubles.arm_process import Stage
from tests.doubles.executed import ordered, run
from tests.doubles.plays import SHAPES

TRACED = (Shape(1, 8, 3), Shape(2, 8, 3))
NSYS = NsysSettings()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run's folder, with a stand-in for nsys on PATH. Its name holds what nsys takes for a variable."""
    monkeypatch.setenv("PATH", str(nsys.install(tmp_path / "bin")), prepend=os.pathsep)
    return RunFolder(tmp_path / "a %h run")


def plan(arms: str = "a", evaluators: tuple[EvaluatorName, ...] = ("kernels",)) -> list[Task]:
    return ordered(arms=arms, evaluators=evaluators, traced=TRACED, is_recorded=True)


def record(folder: RunFolder, task: Task) -> KernelsRecord:
    result = folder.result(task)
    assert result is not None
    assert result.kernels is not None, result.error
    return result.kernels


def kernels_of(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if task.kind == "kernels"]


def test_kernels_have_a_load_of_their_own_under_nsys(stage: Stage, folder: RunFolder) -> None:
    tasks = plan("ab", ("latency", "kernels"))
    assert run(folder, tasks, nsys=NSYS) == {}
    by_process = {request.process: set[str]() for request in stage.asked}
    for request in stage.asked:
        by_process[request.process].add(request.task)
        options = request.load.settings.options if request.load else {}
        assert ("open" in options) == bool(stage.launchers[request.process - 1]), "engines open captures there alone"
    recorded = [tasks_done for process, tasks_done in by_process.items() if stage.launchers[process - 1]]
    assert recorded == [{"load", "capture"}] * 2, "nothing is timed under nsys"
    assert stage.most_alive == 1
    for launcher in filter(None, stage.launchers):
        assert launcher[:2] == ("nsys", "profile")
        assert "--capture-range-end=repeat" in launcher
    for task in kernels_of(tasks):
        assert task.shape is not None
        assert record(folder, task).shape == task.shape.name
        assert (folder.of_arm(task.arm) / f"trace_{task.shape.name}.sqlite.gz").is_file()
    assert folder.missing(tasks) == []


def test_the_overhead_is_over_the_timed_load(stage: Stage, folder: RunFolder) -> None:
    stage.seconds = lambda arm, batch_size: 1.0 + batch_size
    tasks = plan(evaluators=("latency", "kernels"))
    assert run(folder, tasks, nsys=NSYS) == {}
    for task in kernels_of(tasks):
        assert task.shape is not None
        # a first token in 250 ms, and two of three further ones
        expected = 250 + 2 / 3 * (1000 * (1 + task.shape.batch_size) - 250)
        of_shape = record(folder, task)
        assert of_shape.unprofiled_ms == pytest.approx(expected)
        assert of_shape.profiled_ms == 750
        assert of_shape.profiler_overhead == pytest.approx(750 / expected - 1)
        assert any("of the timed load" in note for note in of_shape.notes)


def test_without_a_timed_load_the_overhead_is_labelled(stage: Stage, folder: RunFolder) -> None:
    (task, _) = tasks = plan()
    assert run(folder, tasks, nsys=NSYS) == {}
    of_shape = record(folder, task)
    assert of_shape.unprofiled_ms == 625
    assert any("of the same load under Nsight Systems" in note for note in of_shape.notes)


def test_one_shape_needs_one_capture(stage: Stage, folder: RunFolder) -> None:
    tasks = plan()[:1]
    assert run(folder, tasks, nsys=NSYS) == {}
    assert "--capture-range-end=stop" in stage.launchers[0]
    assert sorted(file.name for file in folder.reports.iterdir()) == ["a_b1_i8_o3.nsys-rep"]


def test_a_finished_shape_is_not_traced_again(stage: Stage, folder: RunFolder) -> None:
    first, second = tasks = plan()
    assert run(folder, tasks, nsys=NSYS) == {}
    before = (folder.reports / "a_b1_i8_o3.nsys-rep").stat().st_mtime_ns
    folder.file(second).unlink()
    stage.asked.clear()
    assert run(folder, tasks, nsys=NSYS) == {}
    assert [request.task for request in stage.asked] == ["load", "capture"]
    assert (folder.reports / "a_b1_i8_o3.nsys-rep").stat().st_mtime_ns == before
    assert record(folder, first).shape == "b1_i8_o3"


def test_a_shape_that_breaks_the_arm_down_costs_no_other(stage: Stage, folder: RunFolder) -> None:
    tasks = ordered(arms="a", evaluators=("kernels",), traced=(*TRACED, Shape(3, 8, 3)), is_recorded=True)
    stage.fails["a", "capture", "b2_i8_o3"] = "out of memory"
    assert run(folder, tasks, nsys=NSYS) == {"a kernels_b2_i8_o3": "out of memory"}
    assert stage.order("load") == ["a", "a"], "once more for what is left"
    assert [folder.done(task) for task in tasks] == [True, False, True]


def test_reports_of_a_load_that_was_killed_are_nobody_s(
    stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.reports.mkdir(parents=True)
    for number in (1, 2):
        (folder.reports / f"a_captures.{number}.nsys-rep").write_text("of another run")
    monkeypatch.setenv(nsys.MODE, "no report")
    failed = run(folder, plan(), nsys=NSYS)
    assert all("wrote no report" in reason for reason in failed.values())
    assert len(failed) == 2


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        ("no report", ["wrote no report of it. Three reasons are likely.", "log.txt", "--profiler torch"]),
        ("no importer", ["a_captures.1.qdstrm and made no report of it. Install ", "libdw1"]),
        ("no export", ["unrecognised command 'export'", "The command is: nsys export --type=sqlite ", "nsys-rep'"]),
        ("slow", ["did not end within 60 s and was ended. Give a longer --timeout."]),
    ],
)
def test_what_nsys_does_not_deliver_fails_the_kernels_and_nothing_else(
    stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, mode: str, parts: list[str]
) -> None:
    stage.has_ended = mode != "slow"
    monkeypatch.setenv(nsys.MODE, "no report" if mode == "slow" else mode)
    tasks = plan("ab", ("latency", "kernels"))
    failed = run(folder, tasks, nsys=NSYS)
    assert set(failed) == {f"{task.arm} {task.name}" for task in kernels_of(tasks)}
    for part in ["kernels not run: ", *parts]:
        assert part in failed["a kernels_b1_i8_o3"]
    assert "hunter" not in str(failed)
    monkeypatch.delenv(nsys.MODE)
    stage.has_ended = True
    assert run(folder, tasks, nsys=NSYS) == {}, "they are tried again"


def test_more_reports_than_captures_are_nobody_s(
    stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where every worker of an engine makes one: the second is not the second shape's."""
    finish = nsys.finish
    monkeypatch.setattr(nsys, "finish", lambda words, count: finish(words, 2 * count))
    failed = run(folder, plan(), nsys=NSYS)
    assert len(failed) == 2
    assert all("wrote 4 reports of 2 captures. Trace one --batch_size a run." in reason for reason in failed.values())


def test_an_arm_that_nsys_does_not_start_says_where_to_look(stage: Stage, folder: RunFolder) -> None:
    stage.fails["a", "load"] = ArmDied("its process ended with code 1 and left no result")
    failed = run(folder, plan(), nsys=NSYS)
    assert len(failed) == 2
    assert all("under Nsight Systems. Read the end of" in reason for reason in failed.values())
    assert stage.order("load") == ["a"]
    stage.fails["a", "load"] = "It does not fit."
    assert set(run(folder, plan(), nsys=NSYS).values()) == {"It does not fit."}, "what the arm says itself stays"


def test_a_raw_report_is_beside_what_is_logged_on_request_alone(
    stage: Stage, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = plan()[:1]
    assert run(folder, tasks, nsys=NsysSettings(("--trace=cuda,nvtx,osrt",), keep_report=True)) == {}
    assert [file.name for file in folder.of_arm("a").glob("trace_*.nsys-rep")] == ["trace_b1_i8_o3.nsys-rep"]
    assert "secrets among them. Share trace_" in capsys.readouterr().err
    options = [word for word in stage.launchers[0] if word.startswith("--trace=")]
    assert options == ["--trace=cuda,nvtx,osrt"], "the user's is in place of ours"


def test_a_launcher_that_cannot_start_is_told() -> None:
    load = Load("transformers", EngineSettings(str(SHIPPED), device="cpu"), str(SHIPPED))
    with pytest.raises(ArmFailed, match="/no/nsys cannot be started"):
        ArmProcess(load, launcher=("/no/nsys",))
    refusing = (sys.executable, "-c", "import sys; sys.exit(3)")
    with ArmProcess(load, launcher=refusing) as process, pytest.raises(ArmFailed, match="ended with code 3"):
        process.load()


def test_torch_s_profiler_stays_in_the_timed_load() -> None:
    assert {task.load for task in kernels_of(ordered(traced=SHAPES))} == {0}
