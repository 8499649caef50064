"""The order of a plan's steps."""

from __future__ import annotations

from itertools import groupby

import pytest

from moe_eval.runner import steps
from moe_eval.runner.interleave import Schedule
from moe_eval.runner.steps import EVALUATORS, ROUTING_LOAD, Step
from tests.runner.stage import SHAPES


def plan(mode: str, blocks: int, arms: str = "ab", **evaluators: tuple[str, ...]) -> list[Step]:
    chosen = {arm: evaluators.get(arm, EVALUATORS) for arm in arms}
    schedule = Schedule(mode, blocks, 2, 5)  # type: ignore[arg-type]
    return steps.order(chosen, SHAPES, SHAPES[:1], schedule, routed=list(arms))


def test_one_load_an_arm_does_everything_and_traces_last() -> None:
    found = plan("sequential", 1)
    assert [arm for arm, _ in groupby(found, lambda step: (step.arm, step.load))] == [
        ("a", 0), ("b", 0), ("a", ROUTING_LOAD), ("b", ROUTING_LOAD),
    ]  # fmt: skip
    assert [step.kind for step in found if step.arm == "a"] == [
        "perplexity", "noise", "latency", "latency", "kernels", "routing",
    ]  # fmt: skip
    assert "noise" not in {step.kind for step in found if step.arm == "b"}
    assert len({(step.arm, step.name) for step in found}) == len(found), "every step has a file of its own"


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_reloaded_arms_are_timed_in_every_block_and_begin_in_turn(blocks: int) -> None:
    found = plan("reloaded", blocks)
    latency = [step for step in found if step.kind == "latency"]
    for arm in "ab":
        assert [(step.block, step.load) for step in latency if step.arm == arm and step.shape == SHAPES[0]] == [
            (block, block) for block in range(blocks)
        ]
    first = [next(step.arm for step in latency if step.block == block) for block in range(blocks)]
    assert first == [("a", "b")[block % 2] for block in range(blocks)]


def test_arms_that_fit_together_take_turns_there_and_back() -> None:
    latency = [step for step in plan("interleaved", 2) if step.kind == "latency" and step.shape == SHAPES[0]]
    assert "".join(step.arm for step in latency) == "abba" + "baab"
    assert [(step.block, step.turn) for step in latency] == [
        (0, 0),
        (0, 0),
        (0, 1),
        (0, 1),
        (1, 0),
        (1, 0),
        (1, 1),
        (1, 1),
    ]
    kinds = [step.kind for step in plan("interleaved", 2)]
    assert kinds.index("kernels") > max(at for at, kind in enumerate(kinds) if kind == "latency")


def test_an_arm_without_speed_is_not_timed() -> None:
    found = plan("interleaved", 1, "abc", c=("perplexity",))
    assert {step.kind for step in found if step.arm == "c"} == {"perplexity"}
