"""Tasks done by made-up arms: what is loaded when, what a failure costs, and that nothing is done twice or lost."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

import pytest

from moe_eval.data.workload import Shape
from moe_eval.errors import UsageError
from moe_eval.machine import nvml
from moe_eval.records.labels import Status
from moe_eval.records.run import Mode
from moe_eval.runner import loads
from moe_eval.runner.arm_process import ArmDied
from moe_eval.runner.execute import Executor
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.tasks import Task
from tests.doubles.arm_process import Process, Stage, routing
from tests.doubles.executed import contents, ordered, run, turn
from tests.doubles.nvml import ONE, Card, Fake
from tests.doubles.plays import SHAPES


class Killed(BaseException):
    """The runner's process is gone: nothing that it would do at the end is done."""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_every_arm_is_loaded_once_and_no_two_at_once(stage: Stage, folder: RunFolder) -> None:
    assert run(folder, ordered()) == {}
    assert stage.order("load") == ["a", "b", "a", "b"], "once for everything, and once to tell routed experts"
    assert (stage.most_alive, stage.alive) == (1, set())
    assert folder.missing(ordered()) == []
    assert sorted(stage.order("warm_up")) == ["a"] * 2 + ["b"] * 2


def test_arms_that_take_turns_stay_loaded_and_are_warm_before_the_first_turn(stage: Stage, folder: RunFolder) -> None:
    assert run(folder, ordered("turns", 2)) == {}
    assert "".join(stage.order("load")) == "ab" + "ab" + "ba", "the second pair is there to tell routed experts"
    assert stage.most_alive == 2
    timed = [(request.arm, request.task) for request in stage.asked if request.task in ("warm_up", "measure")]
    assert timed[:2] == [("a", "warm_up"), ("b", "warm_up")]
    assert "".join(arm for arm, task in timed if task == "measure") == "abba" * 2 + "baab" * 2


@pytest.mark.parametrize("mode", ["alternating", "turns"])
def test_a_later_shape_knows_how_long_its_load_has_worked(stage: Stage, folder: RunFolder, mode: Mode) -> None:
    assert run(folder, ordered(mode, 1 if mode == "alternating" else 2, evaluators=("latency",))) == {}
    warm_ups = [request for request in stage.asked if request.task == "warm_up"]
    worked: dict[int, float] = {}
    for request in warm_ups:
        assert request.arguments["worked"] == (worked.get(request.process, 0) if mode == "alternating" else 0)
        shape = Shape(**request.arguments["shape"])
        result = folder.result(Task("latency", request.arm, 0, shape, 0))
        assert result is not None
        assert result.latency is not None
        worked[request.process] = worked.get(request.process, 0) + sum(result.latency.warm_up.seconds)
    assert max(worked.values()) > 0
    assert len(warm_ups) > len(worked), "several shapes"


def test_all_arms_are_there_before_the_first_turn_of_any(stage: Stage, folder: RunFolder) -> None:
    plan = ordered("turns", 1, "abc", ("latency",))
    assert run(folder, plan) == {}
    first = [(request.arm, request.task) for request in stage.asked][:9]
    assert first[:6] == [(arm, task) for task in ("load", "warm_up") for arm in "abc"]
    assert first[6:] == [(arm, "measure") for arm in "abc"]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_loads_on_different_gpus_begin_before_any_is_awaited(stage: Stage, folder: RunFolder, engine: str) -> None:
    plan = ordered("turns", 2, "abc", ("latency",))
    stage.fails["b", "load"] = "out of memory"
    failed = run(folder, plan, {"a": (ONE,), "b": ("GPU-2",), "c": ("GPU-2",)}, engine=engine)
    assert set(failed) == {f"b {task.name}" for task in plan if task.arm == "b"}
    assert stage.events[:2] == [("a", "begin"), ("b", "begin")]
    loading = [(arm, task) for arm, task in stage.events if task in ("begin", "load")]
    assert loading[:5] == [("a", "begin"), ("b", "begin"), ("a", "load"), ("c", "begin"), ("c", "load")]


def test_the_process_of_the_next_load_imports_while_one_loads(stage: Stage, folder: RunFolder) -> None:
    assert run(folder, ordered("alternating", 2, evaluators=("latency",)), engine="vllm") == {}
    assert stage.events[:2] == [("a", "import"), ("a", "imported")], "of the first load, before any"
    lives = [(arm, task) for arm, task in stage.events[2:] if task != "warm_up"]
    loads = "ab" + "ab" + "ba"  # with those that tell routing, in the middle
    for place, following in enumerate(loads[1:]):
        ends = [index for index, (_, task) in enumerate(lives) if task == "end"]
        begin = ends[place - 1] + 1 if place else 0
        assert [event for event in lives[begin : begin + 6] if event[1] != "imported"][:3] == [
            (loads[place], "begin"),
            (following, "import"),
            (loads[place], "load"),
        ]
        measured = next(at for at, (_, task) in enumerate(lives) if at > begin and task in ("measure", "routing"))
        assert (following, "imported") in lives[begin:measured], "nothing is measured beside an import"
    assert (stage.started, stage.most_alive, stage.alive) == (len(loads), 2, set())


def test_a_process_that_could_not_import_is_replaced(stage: Stage, folder: RunFolder) -> None:
    stage.fails["b", "import"] = ArmDied("killed")
    assert run(folder, ordered("alternating", 2, evaluators=("latency",)), engine="vllm") == {}
    assert (stage.started, stage.alive) == (6 + 1, set())


def test_a_process_ends_whose_load_is_not_tried(stage: Stage, folder: RunFolder) -> None:
    stage.fails["b", "load", 0] = ArmDied("killed")
    failed = run(folder, ordered("alternating", 2, evaluators=("latency",)), engine="vllm")
    assert {name[0] for name in failed} == {"b"}
    assert stage.alive == set()


def test_an_arm_that_cannot_be_there_keeps_no_other_from_its_turns(stage: Stage, folder: RunFolder) -> None:
    plan = ordered("turns", 2, "abc", ("latency",))
    stage.fails["b", "load"] = "out of memory"
    failed = run(folder, plan)
    assert set(failed) == {f"b {task.name}" for task in plan if task.arm == "b"}
    assert set(failed.values()) == {"out of memory"}


def test_loads_that_take_turns_live_at_once_and_end_before_the_next_are_loaded(stage: Stage, folder: RunFolder) -> None:
    at_work: list[set[int]] = []
    stage.before = lambda _, task: at_work.append(set(stage.alive)) if task == "measure" else None
    assert run(folder, ordered("turns", 3, evaluators=("latency",))) == {}
    measured = [request.process for request in stage.asked if request.task == "measure"]
    assert all(process in alive for process, alive in zip(measured, at_work, strict=True))
    pairs = [frozenset(alive) for alive in at_work]
    assert [len(pair) for pair in dict.fromkeys(pairs)] == [2, 2, 2], "three pairs of processes"
    assert not frozenset.intersection(*dict.fromkeys(pairs))
    assert all(pairs.count(pair) == 2 * 2 * len(SHAPES) for pair in pairs), "two turns of either at every shape"
    lives = "".join({"load": "+", "end": "-"}.get(task, "") for _, task in stage.events)
    assert lives == "++--" + "+-+-" + "++--" * 2, "routing is told by one arm at a time"
    for arm in "ab":
        assert [load.together for load in folder.loads(arm)] == [2, 2, 2]


def test_loads_that_alternate_live_alone_and_in_turned_order(stage: Stage, folder: RunFolder) -> None:
    assert run(folder, ordered("alternating", 4, evaluators=("latency",))) == {}
    assert stage.most_alive == 1
    loads = [(request.arm, request.process) for request in stage.asked if request.task == "load"]
    assert "".join(arm for arm, _ in loads) == "ab" + "ab" + "ba" + "ab" + "ba"
    processes = [(request.arm, request.process) for request in stage.asked if request.task == "measure"]
    timed = dict.fromkeys(processes)
    assert "".join(arm for arm, _ in timed) == "ab" + "ba" + "ab" + "ba"
    assert all(processes.count(process) == len(SHAPES) for process in timed)
    for arm in "ab":
        assert [load.together for load in folder.loads(arm)] == [1] * 4


def test_an_arm_that_cannot_be_loaded_is_tried_once_a_load(stage: Stage, folder: RunFolder) -> None:
    stage.fails["b", "load"] = "out of memory"
    assert run(folder, ordered("turns", 3, evaluators=("latency",)))
    assert stage.order("load").count("b") == 3, "and not to tell routed experts"


@pytest.mark.parametrize("mode", ["turns", "alternating"])
def test_a_torn_load_is_measured_again_whole(stage: Stage, folder: RunFolder, mode: Mode) -> None:
    """Arms of one load that were measured on two days would bring a day's drift into their ratio."""
    plan = ordered(mode, 3)
    run(folder, plan)
    whole = contents(folder)
    torn = next(task for task in plan if (task.kind, task.arm, task.load) == ("latency", "b", 1))
    folder.file(torn).unlink()
    stage.asked.clear()
    again = [task for task in plan if (task.kind, task.load, task.shape) == ("latency", 1, torn.shape)]
    assert folder.missing(plan) == again
    assert {task.arm for task in again} == {"a", "b"}
    assert run(folder, plan) == {}
    assert "".join(stage.order("load")) == "ba"
    assert "".join(stage.order("measure")) == ("baab" if mode == "turns" else "ba")
    assert contents(folder).keys() == whole.keys()


def test_an_arm_that_fails_at_a_shape_tears_no_other_shape(stage: Stage, folder: RunFolder) -> None:
    plan = ordered("alternating", 2)
    stage.fails["b", "measure", SHAPES[0].name] = "out of memory"
    failed = run(folder, plan)
    assert set(failed) == {f"b latency_{SHAPES[0].name}_{load}_0" for load in (0, 1)}
    stage.fails.clear()
    stage.asked.clear()
    missing = [(task.arm, task.shape, task.load) for task in folder.missing(plan)]
    assert missing == [("a", SHAPES[0], 0), ("b", SHAPES[0], 0), ("b", SHAPES[0], 1), ("a", SHAPES[0], 1)]
    assert run(folder, plan) == {}
    assert stage.order("measure") == ["a", "b", "b", "a"]


def test_a_task_that_fails_is_written_down_and_costs_no_other(stage: Stage, folder: RunFolder) -> None:
    stage.fails[("a", "measure", SHAPES[0].name)] = "out of memory"
    plan = ordered()
    assert run(folder, plan) == {"a latency_b1_i8_o4_0_0": "out of memory"}
    failed = folder.result(next(task for task in plan if task.kind == "latency"))
    assert failed is not None
    assert (failed.status, failed.error) == (Status.FAILED, "out of memory")
    assert failed.output[0] == "arm a began"
    before = contents(folder)
    stage.fails.clear()
    stage.asked.clear()
    assert run(folder, plan) == {}
    assert "".join(stage.order("load")) == "ab", "a ratio takes both of one load"
    assert [request.task for request in stage.asked] == ["load", "warm_up", "measure"] * 2, "nothing else is repeated"
    assert {name for name, content in contents(folder).items() if before.get(name) != content} == {
        "arms/a/latency_b1_i8_o4_0_0.json"
    }


def test_an_arm_that_dies_fails_the_rest_of_its_load_and_is_loaded_again_for_the_next(
    stage: Stage, folder: RunFolder
) -> None:
    stage.fails["a", "measure", SHAPES[0].name] = ArmDied("a rank died")
    plan = ordered("alternating", 2, "a", ("latency",))
    stage.before = lambda _, task: stage.fails.clear() if task == "load" and stage.order("load") else None
    failed = run(folder, plan)
    assert failed == {f"a latency_{shape.name}_0_0": "a rank died" for shape in SHAPES} | {"a routing": "a rank died"}
    assert stage.order("load") == ["a", "a"]


def test_an_arm_that_cannot_be_loaded_fails_its_tasks_and_the_others_go_on(stage: Stage, folder: RunFolder) -> None:
    stage.fails[("a", "load")] = "no such checkpoint"
    failed = run(folder, ordered())
    assert len(failed) == sum(task.arm == "a" for task in ordered())
    assert set(failed.values()) == {"no such checkpoint"}
    assert stage.order("load") == ["a", "b", "b"], "it is not tried again to tell routed experts"
    assert all(folder.done(task) for task in ordered() if task.arm == "b")


def test_an_arm_that_breaks_down_in_a_warm_up_for_another_fails_its_own_next_task(
    stage: Stage, folder: RunFolder
) -> None:
    plan = ordered("turns", 2)
    stage.fails["b", "warm_up", SHAPES[0].name] = "its process ended with signal SIGKILL"

    def before(arm: str, task: str) -> None:
        if arm == "b" and task == "load":
            stage.fails.pop(("b", "warm_up", SHAPES[0].name), None) if stage.order("warm_up") else None

    stage.before = before
    failed = run(folder, plan)
    reason = "its process ended with signal SIGKILL, in a warm-up before a's turn"
    assert failed == {"b latency_b1_i8_o4_0_0": reason}
    task = next(task for task in plan if task.kind == "latency" and task.arm == "b")
    result = folder.result(task)
    assert result is not None
    assert (result.status, result.error, result.output) == (Status.FAILED, reason, ("arm b began",))
    assert run(folder, plan) == {}


def test_a_second_ctrl_c_leaves_no_arm_alive(stage: Stage, folder: RunFolder) -> None:
    def before(_: str, task: str) -> None:
        if task in ("measure", "end"):
            raise KeyboardInterrupt

    stage.before = before
    with pytest.raises(KeyboardInterrupt):
        run(folder, ordered("turns", 2))
    assert (stage.most_alive, stage.alive) == (2, set())


@pytest.mark.parametrize("mode", ["alternating", "turns"])
def test_a_run_that_is_killed_anywhere_ends_as_an_undisturbed_one(
    stage: Stage, tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ordered(mode, 2)
    whole = RunFolder(tmp_path / "whole")
    run(whole, plan)
    answers = len(stage.asked)
    for at in [*random.Random(1).sample(range(answers), 8), 0]:
        folder = RunFolder(tmp_path / f"killed-{at}")
        answers_left = [at]

        def before(arm: str, task: str, answers_left: list[int] = answers_left) -> None:
            answers_left[0] -= 1
            if answers_left[0] < 0:
                raise Killed

        stage.before = before
        monkeypatch.setattr(Executor, "__exit__", lambda *_: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            run(folder, plan)
        monkeypatch.undo()
        monkeypatch.setattr(loads, "ArmProcess", stage)
        stage.before = lambda arm, task: None
        assert run(folder, plan) == {}
        resumed, undisturbed = contents(folder), contents(whole)
        assert resumed.keys() == undisturbed.keys()
        assert {name for name in resumed if resumed[name] != undisturbed[name]} <= {
            name for name in resumed if name.endswith(".npz") or "load_" in name
        }


def test_two_runs_in_one_folder_exclude_each_other(folder: RunFolder) -> None:
    second = RunFolder(folder.path)
    with folder.locked(0), pytest.raises(UsageError, match="Another run is at work"), second.locked(0.3):
        pass
    with folder.locked(0):
        pass


@pytest.mark.parametrize("mode", ["turns", "alternating"])
def test_memory_before_and_after_is_written_down(
    stage: Stage, folder: RunFolder, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of arms that are loaded together it is known of all of them, and blamed on none."""
    stage.card, stage.memory = Card(ONE, used=2 << 30), 20 << 30
    monkeypatch.setitem(sys.modules, "pynvml", Fake([stage.card]))
    together, plan = mode == "turns", ordered(mode, 2)
    assert run(folder, plan, (ONE,)) == {}
    for arm in "ab":
        loads = [(load.before, load.after, load.together) for load in folder.loads(arm)]
        assert loads == [(2 << 30, 2 << 30, 2 if together else 1)] * 2
        assert turn(folder, plan, arm).nvml is None


def test_memory_that_never_comes_back_shows(stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_FREED_SECONDS", 0.3)
    stage.card, stage.memory = Card(ONE, used=1 << 30), 20 << 30
    monkeypatch.setitem(sys.modules, "pynvml", Fake([stage.card]))
    monkeypatch.setattr(Process, "end", Process.kill)
    assert run(folder, ordered(arms="a", evaluators=("latency",)), (ONE,)) == {}
    (load,) = folder.loads("a")
    assert (load.before, load.after) == (1 << 30, 21 << 30)


def test_without_nvml_the_reason_is_kept_and_nothing_is_made_up(
    stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    plan = ordered(arms="a", evaluators=("latency",))
    assert run(folder, plan, (ONE,)) == {}
    (load,) = folder.loads("a")
    assert (load.before, load.after) == (None, None)
    result = turn(folder, plan)
    assert "nvidia-ml-py is not installed" in str(result.nvml)
    assert (result.gpus, result.slow_samples) == ((), (None, None))


def test_a_gpu_that_is_lost_ends_no_run(stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(ONE, fails={"nvmlDeviceGetPerformanceState": "NVMLError_GpuIsLost"})
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))

    def wait(_: str, task: str) -> None:
        for thread in threading.enumerate():
            if task == "measure" and thread.name == "moe-eval-nvml":
                thread.join(5)  # it ends when the GPU is lost

    stage.before = wait
    plan = ordered(arms="a", evaluators=("latency",))
    assert run(folder, plan, (ONE,)) == {}
    result = turn(folder, plan)
    assert str(result.nvml).startswith(f"NVML lost {ONE}")


def test_iterations_at_a_low_clock_are_flagged(
    stage: Stage, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Fake([Card(ONE, clocks=[900], default=1980)]))
    stage.pause = 0.4
    plan = ordered(arms="a", evaluators=("latency",))
    assert run(folder, plan, (ONE,)) == {}
    result = turn(folder, plan)
    assert (result.slow_samples, result.gpus[0].sm_mhz_median) == ((True, True), 900)


def test_routing_is_counted_once_for_the_largest_batch_by_an_engine_that_tells(stage: Stage, folder: RunFolder) -> None:
    plan = ordered(arms="abc", evaluators=("latency",))
    stage.fails["b", "load", 1] = "no such option"
    assert run(folder, plan, (ONE,)) == {"b routing": "no such option"}
    tasks = {task.arm: folder.result(task) for task in plan if task.kind == "routing"}
    assert [result and result.routing for result in tasks.values()] == [
        {size: routing(size) for size in (1, 2)},
        None,
        {size: routing(size) for size in (1, 2)},
    ]
    requests = [request for request in stage.asked if request.task == "routing"]
    assert [request.arm for request in requests] == ["a", "c"]
    for request in requests:
        assert request.load is not None
        assert request.load.settings.options == {"tell": True}
        assert request.arguments["shape"] == {"batch_size": 2, "input_len": 8, "output_len": 4}
        assert request.arguments["workload"] == str(folder.path / "workload.json")
        assert (request.arguments["experts"], request.arguments["batch_sizes"]) == (4, [1, 2])
    timed = [request.load for request in stage.asked if request.task == "measure"]
    assert all(load is not None and load.settings.options == {} for load in timed), "timed arms are loaded as they were"


def test_arms_are_scored_on_the_tokens_of_the_first_that_was_scored(stage: Stage, folder: RunFolder) -> None:
    plan = ordered(arms="abc", evaluators=("quality",))
    stage.fails["a", "quality"] = "out of memory"
    run(folder, plan)
    stage.fails.clear()

    def references() -> list[tuple[str, str | None]]:
        files = [(request.arm, request.arguments["reference"]) for request in stage.asked if request.task == "quality"]
        stage.asked.clear()
        return [(arm, file and Path(file).name) for arm, file in files]

    assert references() == [("a", None), ("a", None), ("b", None), ("c", "ppl_b_cpu.npz")]
    assert run(folder, plan) == {}
    assert references() == [("a", None), ("a", "ppl_a_cpu.npz")], "b was not scored before it, and noise is a repeat"
    folder.file(plan[-1]).unlink()
    assert run(folder, plan) == {}
    assert references() == [("c", "ppl_a_cpu.npz")]


def test_measurements_meter_the_gpus_of_the_arms(stage: Stage, folder: RunFolder) -> None:
    run(folder, ordered(arms="a"), ("GPU-x",))
    for request in stage.asked:
        if request.task in ("warm_up", "measure"):
            assert request.arguments["workload"] == str(folder.path / "workload.json")
        if request.task == "measure":
            assert request.arguments["uuids"] == ["GPU-x"]
