"""The tasks of a plan in the order they run, and what each leaves on disk. A finished one is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moe_eval.data.workload import Shape
from moe_eval.machine.sampler import GpuSummary
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, Status
from moe_eval.records.latency import Routing, Sample, WarmUp
from moe_eval.records.quality import QualityFigures
from moe_eval.records.run import EvaluatorName, Schedule

Kind = Literal["quality", "noise", "latency", "kernels", "routing"]
ROUTING_LOAD = -1


@dataclass(frozen=True)
class Task:
    """A piece of a plan, done by an arm.

    Attributes:
        arm: its name.
        load: which load of the arm, from 0: tasks of the same load run in the same process. ROUTING_LOAD is the one
            with the options that make an engine name the experts it routes to.
        shape, block, turn: of a latency task. A kernels task has a shape.
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


@dataclass(frozen=True)
class TurnResult:
    """One turn of an arm: its iterations, the warm-up of its load, and what NVML saw. `nvml`: why it did not."""

    samples: tuple[Sample, ...]
    warm_up: WarmUp
    gpus: tuple[GpuSummary, ...]
    slow_samples: tuple[bool | None, ...]
    nvml: str | None


@dataclass(frozen=True)
class TaskResult:
    """How a task ended, and the result of its kind.

    Attributes:
        error: why it failed. `output`: the last lines that the arm printed before.
        quality: of a quality or noise task, which leave their scores in a file of their own.
    """

    status: Status
    error: str | None = None
    output: tuple[str, ...] = ()
    seconds: float | None = None
    quality: QualityFigures | None = None
    latency: TurnResult | None = None
    kernels: KernelsRecord | None = None
    routing: Mapping[int, Routing] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the task need not run again."""
        return self.status is Status.FINISHED

    def fits(self, kind: Kind) -> bool:
        """Whether a task of this kind can have left it."""
        if not self.is_finished:
            return self.error is not None
        results = {
            "quality": self.quality,
            "noise": self.quality,
            "latency": self.latency,
            "kernels": self.kernels,
            "routing": self.routing,
        }
        return results[kind] is not None


@dataclass(frozen=True)
class LoadResult:
    """What a load of an arm said of itself.

    Attributes:
        before, after: bytes of GPU memory in use before the load, and when its process had ended. None without NVML.
        together: how many arms were loaded at once. Then `before` and `after` are of all of them.
    """

    labels: ArmLabels
    before: int | None
    after: int | None
    together: int


def order(
    evaluators: Mapping[str, Sequence[EvaluatorName]],
    shapes: Sequence[Shape],
    traced: Sequence[Shape],
    schedule: Schedule,
    *,
    routed: Sequence[str],
) -> list[Task]:
    """All tasks of a plan.

    Nothing is timed after a trace in the same process: kernels come last in a load.

    Args:
        evaluators: of every arm by name, the reference first.
        traced: shapes of the kernels evaluator.
        routed: arms whose routing is counted.
    """
    arms = list(evaluators)
    timed = [arm for arm in arms if "latency" in evaluators[arm]]
    tasks: list[Task] = []
    if schedule.mode == "interleaved":
        for arm in arms:
            tasks += _quality(arm, evaluators, arms[0])
        tasks += _rounds(timed, shapes, schedule.blocks)
        for arm in arms:
            tasks += _kernels(arm, evaluators, traced)
    else:
        for arm in arms:
            tasks += _quality(arm, evaluators, arms[0])
            if arm in timed:
                tasks += [Task("latency", arm, 0, shape, 0) for shape in shapes]
            tasks += _kernels(arm, evaluators, traced)
        for block in range(1, schedule.blocks):
            for arm in timed if block % 2 == 0 else timed[::-1]:
                tasks += [Task("latency", arm, block, shape, block) for shape in shapes]
    return tasks + [Task("routing", arm, ROUTING_LOAD) for arm in timed if arm in routed]


def _quality(arm: str, evaluators: Mapping[str, Sequence[EvaluatorName]], reference: str) -> list[Task]:
    if "quality" not in evaluators[arm]:
        return []
    return [Task("quality", arm)] + ([Task("noise", arm)] if arm == reference else [])


def _kernels(arm: str, evaluators: Mapping[str, Sequence[EvaluatorName]], traced: Sequence[Shape]) -> list[Task]:
    return [Task("kernels", arm, 0, shape) for shape in traced] if "kernels" in evaluators[arm] else []


def _rounds(timed: Sequence[str], shapes: Sequence[Shape], rounds: int) -> list[Task]:
    """A B B A, then B A A B: another arm begins every round, so that each follows itself equally often."""
    tasks = []
    for shape in shapes:
        for block in range(rounds):
            first = block % max(1, len(timed))
            forth = [*timed[first:], *timed[:first]]
            tasks += [Task("latency", arm, 0, shape, block, 0) for arm in forth]
            tasks += [Task("latency", arm, 0, shape, block, 1) for arm in forth[::-1]]
    return tasks
