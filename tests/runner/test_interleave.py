"""The order in which arms run, and what is kept of them when one breaks down; the arms' processes are made up."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moe_eval.data import workload
from moe_eval.data.workload import Shape
from moe_eval.engines.base import EngineSettings
from moe_eval.runner import interleave
from moe_eval.runner.arm_process import ArmFailed, Load
from moe_eval.runner.interleave import ArmRun, Conductor, Schedule
from tests.doubles.nvml import ONE, Card, Fake

WORK = workload.from_seed(0, workload.shapes([2, 1], 4, 3), 50)
FROZEN = Path("workload.json")  # the made-up arms do not read it
SHAPES = [shape.name for shape in WORK.shapes]


@dataclass
class Stage:
    """Stands in for ArmProcess and writes down what every arm, named by its checkpoint's folder, is asked to do.

    `fails` maps (arm, task, how many times it works) to what it fails with; a loaded arm takes `memory` of `card`.
    """

    fails: dict[tuple[str, str, int], str | BaseException] = field(default_factory=dict)
    card: Card | None = None
    memory: int = 0
    events: list[tuple[str, str]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    pause: float = 0.0
    routing: dict[str, Any] = field(default_factory=dict)

    def __call__(self, load: Load | None) -> Process:
        return Process(self, load)

    def order(self, task: str) -> str:
        """The arms in the order in which they did this."""
        return "".join(name for name, each in self.events if each == task)


class Process:
    """One made-up arm."""

    def __init__(self, stage: Stage, load: Load | None) -> None:
        self.stage, self.asked_to = stage, load
        self.name = "machine" if load is None else load.settings.checkpoint.rpartition("/")[2]
        self.loaded = False

    def __enter__(self) -> Process:
        self.stage.open.append(self.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.stage.open.remove(self.name)
        self.stage.events.append((self.name, "end"))
        if self.loaded and self.stage.card:
            self.stage.card.used -= self.stage.memory

    def load(self) -> dict[str, Any]:
        self.ask("load")
        self.loaded = True
        if self.stage.card:
            self.stage.card.used += self.stage.memory
        return {"engine": {"name": "made up", "precision": self.name}}

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        stage = self.stage
        works = Counter(stage.events)[self.name, task]
        fails = stage.fails.get((self.name, task, works))
        if fails is not None:
            raise fails if isinstance(fails, BaseException) else ArmFailed(fails)
        stage.events.append((self.name, task))
        stage.asked.append({"arm": self.name, "load": self.asked_to, "task": task, **json.loads(json.dumps(arguments))})
        answer: dict[str, Any] = getattr(self, f"_{task}")(**arguments)
        return answer

    def _load(self) -> dict[str, Any]:
        return {}

    def _rates(self, device: str) -> dict[str, Any]:
        return {"copy_bytes_per_s": 1e9, "matrix_flops_per_s": {"bfloat16": 1e12}, "device": device}

    def _warm_up(self, least: int, **_: Any) -> dict[str, Any]:
        return {"seconds": [0.5] * least, "ended": "noise below 0.5 %"}

    def _measure(self, iterations: int, **_: Any) -> dict[str, Any]:
        started = time.perf_counter()
        time.sleep(self.stage.pause)
        once = {"started": started, "ended": time.perf_counter(), "first": {"host": 0.25}, "last": {"host": 1.0}}
        return {"samples": [{**once, "request_first": None, "energy_j": None}] * iterations}

    def _routing(self, **_: Any) -> dict[str, Any]:
        return dict(self.stage.routing[self.name])


def arms(names: str) -> list[ArmRun]:
    return [ArmRun(each, each, Load("made up", EngineSettings(f"/models/{each}"), "tokens")) for each in names]


@dataclass
class Ran:
    arms: dict[str, ArmRun]
    kept: list[tuple[str, str, int]]
    done: int


def conduct(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, names: str, schedule: Schedule, uuids: tuple[str, ...] = ()
) -> Ran:
    monkeypatch.setattr(interleave, "ArmProcess", stage)
    kept: list[tuple[str, str, int]] = []
    done: list[int] = []

    def keep(arm: ArmRun) -> None:
        kept.append((arm.name, arm.status, sum(len(arm.samples(shape)) for shape in WORK.shapes)))

    runs = arms(names)
    Conductor(runs, WORK, FROZEN, schedule, uuids, keep, done.append).run()
    assert not stage.open
    return Ran({run.name: run for run in runs}, kept, sum(done))


def sizes(arm: ArmRun) -> list[list[int]]:
    """How many samples every block has, shape by shape."""
    return [[len(block) for block in arm.blocks[shape]] for shape in SHAPES]


@pytest.mark.parametrize(
    ("iterations", "blocks", "together", "made"),
    [
        (6, 2, True, Schedule("interleaved", 3, 2, 5)),
        (7, 2, True, Schedule("interleaved", 4, 2, 5)),
        (1, 9, True, Schedule("interleaved", 1, 2, 5)),
        (6, 2, False, Schedule("reloaded", 2, 3, 5)),
        (7, 3, False, Schedule("reloaded", 3, 3, 5)),
        (7, 1, False, Schedule("sequential", 1, 7, 5)),
    ],
)
def test_no_schedule_has_fewer_iterations_than_asked_for(
    iterations: int, blocks: int, together: bool, made: Schedule
) -> None:
    assert interleave.schedule(iterations, 5, blocks, together=together) == made
    assert made.iterations >= iterations


@pytest.mark.parametrize(
    ("names", "turns"), [("ab", "abba baab abba"), ("abc", "abccba bcaacb cabbac"), ("a", "aa aa aa")]
)
def test_arms_that_fit_together_take_turns_forth_and_back_and_each_begins(
    monkeypatch: pytest.MonkeyPatch, names: str, turns: str
) -> None:
    stage = Stage()
    ran = conduct(monkeypatch, stage, names, interleave.schedule(5, 6, 2, together=True), ("GPU-x",))
    assert stage.order("measure") == turns.replace(" ", "") * len(SHAPES)
    for name, run in ran.arms.items():
        own = [task for arm, task in stage.events if arm == name]
        assert own == ["load", *["warm_up", *["measure"] * 6] * len(SHAPES), "end"]
        assert (run.status, run.error) == ("finished", None)
        assert sizes(run) == [[2, 2, 2]] * len(SHAPES)
        assert [len(found["seconds"]) for shape in SHAPES for found in run.warm_ups[shape]] == [6, 6]
    assert ran.done == 2 * 3 * len(SHAPES) * len(names)
    for each in stage.asked[len(names) :]:  # after the loads
        assert (each["workload"], Shape(**each["shape"]) in WORK.shapes) == (str(FROZEN), True)
        assert each["task"] == "warm_up" or each["uuids"] == ["GPU-x"]


def test_arms_that_do_not_fit_are_loaded_again_in_every_block_in_turned_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    ran = conduct(monkeypatch, stage, "ab", interleave.schedule(5, 5, 3, together=False))
    alone = [(name, task) for name in "abbaab" for task in ("load", "end")]
    assert [event for event in stage.events if event[1] in ("load", "end")] == alone, "never two at once"
    assert stage.order("measure") == "".join(name * len(SHAPES) for name in "abbaab")
    for run in ran.arms.values():
        assert sizes(run) == [[2, 2, 2]] * len(SHAPES)
        assert len(run.warm_ups[SHAPES[0]]) == len(run.memory) == 3


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_run_that_is_ended_leaves_what_it_measured_and_no_process(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], together: bool
) -> None:
    stage = Stage(fails={("b", "measure", 1): error()})
    monkeypatch.setattr(interleave, "ArmProcess", stage)
    runs, kept = arms("ab"), []
    with pytest.raises(error):
        Conductor(runs, WORK, FROZEN, interleave.schedule(4, 5, 2, together=together), (), kept.append, print).run()
    assert (stage.open, kept[-2:]) == ([], runs)
    for run in runs:
        assert (run.status, run.error) == ("failed", f"the run was ended ({error.__name__}) before it was complete")
        assert run.samples(WORK.shapes[0])


def test_one_block_of_arms_that_do_not_fit_is_sequential(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    ran = conduct(monkeypatch, stage, "ab", interleave.schedule(7, 5, 1, together=False))
    told = [("running", 7), ("running", 14), ("finished", 14)]
    assert [row[1:] for row in ran.kept if row[0] == "b"] == told, "as soon as it is measured"
    assert stage.order("load") == "ab"
    assert [sizes(run) for run in ran.arms.values()] == [[[7]] * len(SHAPES)] * 2


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("task", "works"), [("load", 0), ("warm_up", 1), ("measure", 0), ("measure", 1)])
def test_an_arm_that_fails_is_left_behind_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, task: str, works: int, together: bool
) -> None:
    stage, schedule = Stage(fails={("b", task, works): "no memory"}), interleave.schedule(4, 5, 2, together=together)
    ran = conduct(monkeypatch, stage, "abc", schedule)
    bad = ran.arms.pop("b")
    assert (bad.status, bad.error) == ("failed", "no memory")
    told = [row[1] for row in ran.kept if row[0] == "b"]
    assert (told[-1], told.count("failed")) == ("failed", 1), "it was not asked again"
    got = sum(len(bad.samples(shape)) for shape in WORK.shapes)
    assert got == Counter(stage.order("measure"))["b"] * (1 if together else schedule.per_block), "what it had is kept"
    assert (got == 0) == (works == 0)
    for run in ran.arms.values():
        assert run.status == "finished"
        assert sizes(run) == [[2, 2]] * len(SHAPES)


@pytest.mark.parametrize("together", [True, False])
def test_memory_before_and_after_is_written_down(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    card = Card(ONE, used=2 << 30)
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    schedule = interleave.schedule(4, 5, 2, together=together)
    ran = conduct(monkeypatch, Stage(card=card, memory=20 << 30), "ab", schedule, (ONE,))
    for run in ran.arms.values():
        each = {"before": 2 << 30, "after": 2 << 30, **({"together": 2} if together else {})}
        assert run.memory == [each] * (1 if together else 2)
        assert run.blind is None


def test_memory_that_never_comes_back_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave.memory, "_FREED_SECONDS", 0.3)
    card = Card(ONE, used=1 << 30)
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    stage = Stage(card=card, memory=20 << 30)
    monkeypatch.setattr(Process, "__exit__", lambda self, *_: stage.open.remove(self.name))
    ran = conduct(monkeypatch, stage, "a", interleave.schedule(2, 5, 1, together=False), (ONE,))
    assert ran.arms["a"].memory == [{"before": 1 << 30, "after": 21 << 30}]


def test_without_nvml_the_reason_is_kept_and_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    run = conduct(monkeypatch, Stage(), "a", interleave.schedule(2, 5, 1, together=True), (ONE,)).arms["a"]
    assert run.memory == [{"before": None, "after": None, "together": 1}]
    assert "nvidia-ml-py is not installed" in str(run.blind)
    assert run.gpu[SHAPES[0]][0] == {"block": 0, "gpus": [], "slow_samples": [None]}


def test_a_gpu_that_is_lost_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(ONE, fails={"nvmlDeviceGetPerformanceState": "NVMLError_GpuIsLost"})
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    plain = Process._warm_up

    def wait(self: Process, **asked: Any) -> dict[str, Any]:
        for thread in threading.enumerate():
            if thread.name == "moe-eval-nvml":
                thread.join(5)  # it ends when the GPU is lost
        return plain(self, **asked)

    monkeypatch.setattr(Process, "_warm_up", wait)
    run = conduct(monkeypatch, Stage(), "a", interleave.schedule(2, 5, 1, together=True), (ONE,)).arms["a"]
    assert run.status == "finished"
    assert str(run.blind).startswith(f"NVML lost {ONE}")


def test_iterations_at_a_low_clock_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(ONE, clocks=[900], default=1980)
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    run = conduct(monkeypatch, Stage(pause=0.4), "a", interleave.schedule(1, 5, 1, together=False), (ONE,)).arms["a"]
    (seen,) = run.gpu[SHAPES[0]]
    assert (seen["slow_samples"], seen["gpus"][0]["sm_mhz_median"]) == ([True], 900)


def test_routing_is_counted_once_for_the_largest_batch_by_an_engine_that_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(fails={("b", "load", 0): "no such option"}, routing={"a": {"1": {}, "2": {}}, "c": {"1": {}}})
    monkeypatch.setattr(interleave, "ArmProcess", stage)
    runs = arms("abc")
    interleave.route(runs, WORK, FROZEN, options={"tell": True}, experts=16)
    assert [run.routing for run in runs] == [stage.routing["a"], "not measured: no such option", stage.routing["c"]]
    assert stage.order("routing") == "ac"
    for each in (each for each in stage.asked if each["task"] == "routing"):
        assert (Shape(**each["shape"]), each["workload"]) == (WORK.shapes[0], str(FROZEN))
        assert (each["experts"], each["batch_sizes"]) == (16, [1, 2])
        assert each["load"].settings.options == {"tell": True}
    assert runs[0].load.settings.options == {}, "the timed arm is loaded as it was"


def test_an_arm_measured_against_itself_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(routing={"a": {"1": {}}, "c": {"1": {"other": 1}}})
    monkeypatch.setattr(interleave, "ArmProcess", stage)
    first, other = arms("ac")
    again = ArmRun("a-again", "bf16", first.load)
    interleave.route([first, again, other], WORK, FROZEN, options={}, experts=16)
    assert stage.order("routing") == "ac"
    assert first.routing == again.routing == stage.routing["a"]
    assert other.routing == stage.routing["c"]
