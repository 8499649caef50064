"""The order of a plan's tasks."""

from __future__ import annotations

from itertools import groupby

import pytest

from moe_eval.records.run import EVALUATORS, EvaluatorName, Mode, Schedule
from moe_eval.runner import tasks
from moe_eval.runner.tasks import ROUTING_LOAD, Task
from tests.doubles.plays import SHAPES


def plan(mode: Mode, blocks: int, arms: str = "ab", **evaluators: tuple[EvaluatorName, ...]) -> list[Task]:
    chosen = {arm: evaluators.get(arm, EVALUATORS) for arm in arms}
    return tasks.order(chosen, SHAPES, SHAPES[:1], Schedule(mode, blocks, 2, 5), routed=list(arms))


def test_one_load_an_arm_does_everything_and_traces_last() -> None:
    order = plan("sequential", 1)
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


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_reloaded_arms_are_timed_in_every_block_and_begin_in_turn(blocks: int) -> None:
    latency = [task for task in plan("reloaded", blocks) if task.kind == "latency"]
    for arm in "ab":
        assert [(task.block, task.load) for task in latency if task.arm == arm and task.shape == SHAPES[0]] == [
            (block, block) for block in range(blocks)
        ]
    first = [next(task.arm for task in latency if task.block == block) for block in range(blocks)]
    assert first == [("a", "b")[block % 2] for block in range(blocks)]


@pytest.mark.parametrize(
    ("arms", "turns"), [("ab", "abba baab abba"), ("abc", "abccba bcaacb cabbac"), ("a", "aa aa aa")]
)
def test_arms_that_fit_together_take_turns_forth_and_back_and_each_begins(arms: str, turns: str) -> None:
    order = plan("interleaved", 3, arms)
    latency = [task for task in order if task.kind == "latency"]
    assert "".join(task.arm for task in latency) == turns.replace(" ", "") * len(SHAPES)
    of_first = [(task.block, task.turn) for task in latency if task.shape == SHAPES[0]]
    assert of_first == [(block, turn) for block in range(3) for turn in (0, 1) for _ in arms]
    kinds = [task.kind for task in order]
    assert kinds.index("kernels") > max(index for index, kind in enumerate(kinds) if kind == "latency")


def test_an_arm_without_speed_is_not_timed() -> None:
    order = plan("interleaved", 1, "abc", c=("quality",))
    assert {task.kind for task in order if task.arm == "c"} == {"quality"}
