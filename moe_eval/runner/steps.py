"""The steps of a plan in the order they run; each leaves one file, and what has finished is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moe_eval.data.workload import Shape
from moe_eval.runner.interleave import Schedule

Kind = Literal["perplexity", "noise", "latency", "kernels", "routing"]
EVALUATORS = ("perplexity", "latency", "kernels")
ROUTING_LOAD = -1


@dataclass(frozen=True)
class Step:
    """One thing that is asked of an arm.

    Attributes:
        arm: its name.
        load: which load of the arm, from 0: steps of the same load run in the same process. ROUTING_LOAD is one with
            the options that make an engine tell routed experts.
        shape, block, turn: of a latency step; `shape` of a kernels step.
    """

    kind: Kind
    arm: str
    load: int = 0
    shape: Shape | None = None
    block: int = 0
    turn: int = 0

    @property
    def name(self) -> str:
        """Its file's name, without the suffix."""
        parts: list[object] = [self.kind]
        if self.shape is not None:
            parts.append(self.shape.name)
        if self.kind == "latency":
            parts += [self.block, self.turn]
        return "_".join(map(str, parts))


def order(
    evaluators: Mapping[str, Sequence[str]], shapes: Sequence[Shape], traced: Sequence[Shape], schedule: Schedule,
    *, routed: Sequence[str],
) -> list[Step]:  # fmt: skip
    """All steps of a plan.

    Nothing is timed after a trace in the same process: kernels come last in a load.

    Args:
        evaluators: of every arm by name, the reference first.
        traced: shapes of the kernels evaluator.
        routed: arms whose engine tells which experts tokens go through.
    """
    arms = list(evaluators)
    timed = [arm for arm in arms if "latency" in evaluators[arm]]
    found: list[Step] = []
    if schedule.mode == "interleaved":
        for arm in arms:
            found += _quality(arm, evaluators, arms[0])
        found += _rounds(timed, shapes, schedule.blocks)
        for arm in arms:
            found += _kernels(arm, evaluators, traced)
    else:
        for arm in arms:
            found += _quality(arm, evaluators, arms[0])
            if arm in timed:
                found += [Step("latency", arm, 0, shape, 0) for shape in shapes]
            found += _kernels(arm, evaluators, traced)
        for block in range(1, schedule.blocks):
            for arm in timed if block % 2 == 0 else timed[::-1]:
                found += [Step("latency", arm, block, shape, block) for shape in shapes]
    return found + [Step("routing", arm, ROUTING_LOAD) for arm in timed if arm in routed]


def _quality(arm: str, evaluators: Mapping[str, Sequence[str]], reference: str) -> list[Step]:
    if "perplexity" not in evaluators[arm]:
        return []
    return [Step("perplexity", arm)] + ([Step("noise", arm)] if arm == reference else [])


def _kernels(arm: str, evaluators: Mapping[str, Sequence[str]], traced: Sequence[Shape]) -> list[Step]:
    return [Step("kernels", arm, 0, shape) for shape in traced] if "kernels" in evaluators[arm] else []


def _rounds(timed: Sequence[str], shapes: Sequence[Shape], rounds: int) -> list[Step]:
    """A B B A, then B A A B: another arm begins every round, so that each follows itself equally often."""
    found = []
    for shape in shapes:
        for block in range(rounds):
            first = block % max(1, len(timed))
            there = [*timed[first:], *timed[:first]]
            found += [Step("latency", arm, 0, shape, block, 0) for arm in there]
            found += [Step("latency", arm, 0, shape, block, 1) for arm in there[::-1]]
    return found
