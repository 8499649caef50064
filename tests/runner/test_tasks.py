"""The order of a plan's tasks."""

from __future__ import annotations

from itertools import groupby

import pytest

from moe_eval.records.run import EVALUATORS, EvaluatorName, Mode, Schedule
from moe_eval.runner import tasks
from moe_eval.runner.tasks import ROUTING_LOAD, Task
from tests.doubles.plays import SHAPES


def plan(mode: Mode, loads: int, arms: str = "ab", **evaluators: tuple[EvaluatorName, ...]) -> list[Task]:
    chosen = {arm: evaluators.get(arm, EVALUATORS) for arm in arms}
    return tasks.order(chosen, SHAPES, SHAPES[:1], Schedule(mode, loads, 2, 5), routed=list(arms))


def test_one_load_an_arm_does_everything_and_traces_last() -> None:
    order = plan("alternating", 1)
    assert [arm for arm, _ in groupby(order, lambda task: (task.arm, task.load))] == [
        ("a", 0),
        ("b", 0),
        ("a", ROUTING_LOAD),
        ("b", ROUTING_LOAD),
    ]
    kinds = [task.kind for task in order if task.arm == "a"]
    assert kinds == ["quality", "noise", "latency", "latency", "kernels", "routing"]
    assert "noise" not in {task.kind for task in order if task.arm == "b"}
    assert len({(task.arm, task.name) for task in order}) == len(order), "every task has a file of its own"


@pytest.mark.parametrize("loads", [2, 3, 4])
def test_arms_that_do_not_fit_together_are_timed_in_every_load_and_begin_in_turn(loads: int) -> None:
    latency = [task for task in plan("alternating", loads) if task.kind == "latency"]
    for arm in "ab":
        of_arm = [(task.load, task.turn) for task in latency if task.arm == arm and task.shape == SHAPES[0]]
        assert of_arm == [(load, 0) for load in range(loads)]
    first = [next(task.arm for task in latency if task.load == load) for load in range(loads)]
    assert first == [("a", "b")[load % 2] for load in range(loads)]


@pytest.mark.parametrize(
    ("arms", "turns"), [("ab", "abba baab abba"), ("abc", "abccba bcaacb cabbac"), ("a", "aa aa aa")]
)
def test_arms_that_fit_together_take_turns_forth_and_back_and_each_begins(arms: str, turns: str) -> None:
    order = plan("turns", 3, arms)
    latency = [task for task in order if task.kind == "latency"]
    of_loads = ["".join(task.arm for task in latency if task.load == load) for load in range(3)]
    assert of_loads == [turn * len(SHAPES) for turn in turns.split()]
    of_first = [(task.load, task.turn) for task in latency if task.shape == SHAPES[0]]
    assert of_first == [(load, turn) for load in range(3) for turn in (0, 1) for _ in arms]


@pytest.mark.parametrize("mode", ["turns", "alternating"])
def test_everything_but_further_times_comes_first_and_traces_come_last_in_their_load(mode: Mode) -> None:
    """A run until decided looks at routing after its first loads, and what is traced is timed no more."""
    order = plan(mode, 3)
    assert [task.load for task in order] == sorted((task.load for task in order), key=[0, ROUTING_LOAD, 1, 2].index)
    assert {task.kind for task in order if task.load > 0} == {"latency"}
    for arm in "ab":
        kinds = [task.kind for task in order if (task.arm, task.load) == (arm, 0)]
        assert kinds.index("kernels") > max(index for index, kind in enumerate(kinds) if kind == "latency")
    assert len({(task.arm, task.name) for task in order}) == len(order), "every task has a file of its own"


def test_an_arm_without_speed_is_not_timed() -> None:
    order = plan("turns", 1, "abc", c=("quality",))
    assert {task.kind for task in order if task.arm == "c"} == {"quality"}
