"""The tasks of a plan in the order they run, and what each leaves on disk. A finished one is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from moe_eval.data.served_requests import LoadPoint
from moe_eval.data.workload import Shape
from moe_eval.frozen import frozen
from moe_eval.machine.sampler import GpuSummary
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, Status
from moe_eval.records.quality import QualityFigures
from moe_eval.records.run import EvaluatorName, Schedule
from moe_eval.records.samples import Sample, WarmUp
from moe_eval.records.serving import ServedLoad
from moe_eval.records.shape_latency import Routing
from moe_eval.records.tasks import EvaluatedSuite

Kind = Literal["quality", "noise", "tasks", "latency", "kernels", "routing", "serving"]
ROUTING_LOAD, RECORDED_LOAD, _SERVED_LOAD = -1, -2, -3
TRACED_LOAD = -1_000_000  # a server whose profiler runs


def served_load(number: int) -> int:
    """The load of an arm that is its server for the time `number` + 1."""
    return _SERVED_LOAD - number


def is_served(load: int) -> bool:
    """Whether a load is a server."""
    return load <= _SERVED_LOAD


def round_of(load: int) -> int:
    """Which time it is that an arm is loaded, or served, from 0. Other loads are like the first one."""
    return _SERVED_LOAD - load if is_served(load) and load != TRACED_LOAD else max(0, load)


@frozen
class Task:
    """A piece of a plan, done by an arm.

    Attributes:
        arm: its name.
        load: which load of the arm, from 0: tasks of the same load run in the same process. ROUTING_LOAD is the one
            with the options that make an engine name the experts it routes to, RECORDED_LOAD the one under Nsight
            Systems. Those of `served_load` have a server.
        shape, turn: of a latency task. A kernels task has a shape.
        suite: the name of an entry of --tasks, which is evaluated for the time `repeat` + 1.
        point: of a serving task, or of a kernels task whose arm is a server.
    """

    kind: Kind
    arm: str
    load: int = 0
    shape: Shape | None = None
    turn: int = 0
    suite: str | None = None
    repeat: int = 0
    point: LoadPoint | None = None

    @property
    def name(self) -> str:
        """Its file's name, without the suffix."""
        parts: list[object] = [self.kind]
        if self.shape is not None:
            parts.append(self.shape.name)
        if self.kind == "latency":
            parts += [self.load, self.turn]
        if self.suite is not None:
            parts += [self.suite, self.repeat]
        if self.point is not None:
            parts += [self.point.name, round_of(self.load)]
        return "_".join(map(str, parts))


@frozen
class TurnResult:
    """One turn of an arm: its iterations, the warm-up of its load, and what NVML saw. `nvml`: why it did not."""

    samples: tuple[Sample, ...]
    warm_up: WarmUp
    gpus: tuple[GpuSummary, ...]
    slow_samples: tuple[bool | None, ...]
    nvml: str | None


@frozen
class TaskResult:
    """How a task ended, and the result of its kind.

    Attributes:
        error: why it failed. `output`: the last lines that the arm printed before.
        seconds: that it took, and `ended`: when it did, UTC, ISO 8601.
        quality: of a quality or noise task, which leave their scores in a file of their own.
        tasks: of a tasks task, which leaves the harness's results and samples in a folder of the arm.
    """

    status: Status
    error: str | None = None
    output: tuple[str, ...] = ()
    seconds: float | None = None
    quality: QualityFigures | None = None
    latency: TurnResult | None = None
    kernels: KernelsRecord | None = None
    routing: Mapping[int, Routing] | None = None
    ended: str | None = None
    tasks: EvaluatedSuite | None = None
    serving: ServedLoad | None = None

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
            "tasks": self.tasks,
            "latency": self.latency,
            "kernels": self.kernels,
            "routing": self.routing,
            "serving": self.serving,
        }
        return results[kind] is not None


@frozen
class LoadResult:
    """What a load of an arm said of itself.

    Attributes:
        before, after: bytes of GPU memory in use before the load, and when its process had ended. None without NVML.
        together: how many arms were loaded at once. Then `before` and `after` are of all of them.
        taken: bytes that the arm took of the GPU that it takes most of, once it was loaded. None without NVML.
        seconds: from the start of its process until it was loaded.
    """

    labels: ArmLabels
    before: int | None
    after: int | None
    together: int
    taken: int | None = None
    seconds: float | None = None


def order(
    evaluators: Mapping[str, Sequence[EvaluatorName]],
    shapes: Sequence[Shape],
    traced: Sequence[Shape],
    schedule: Schedule,
    *,
    routed: Sequence[str],
    is_recorded: bool = False,
    suites: Mapping[str, int] | None = None,
    points: Sequence[LoadPoint] = (),
    served_loads: int = 1,
    traced_servers: Sequence[str] = (),
) -> list[Task]:
    """All tasks of a plan.

    Nothing is timed after a trace in the same process: kernels come last in a load. Routing is counted after the first
    loads, so that a run until decided knows it.

    Args:
        evaluators: of every arm by name, the reference first.
        traced: shapes of the kernels evaluator.
        routed: arms whose routing is counted.
        is_recorded: kernels are traced by Nsight Systems, in a load of its own.
        suites: entries of --tasks by name, with how often they are evaluated. Scores do not depend on the load, so that
            all of it is done in the first one.
        points: of the serving evaluator, in each of `served_loads` loads. Servers come last, and alone.
        traced_servers: arms whose server is traced at the middle one of the points. Their fixed batches are traced only
            where they are timed as well: kernels explain what is measured.
    """
    arms = list(evaluators)
    kernels_load = RECORDED_LOAD if is_recorded else 0
    timed = [arm for arm in arms if "latency" in evaluators[arm]]
    suites = suites or {}
    untimed = {*traced_servers} - {*timed}
    first = {
        arm: (
            _scores(arm, evaluators, arms[0], suites),
            [] if arm in untimed else _kernels(arm, evaluators, traced, kernels_load),
        )
        for arm in arms
    }
    tasks: list[Task] = []
    if schedule.mode == "turns":
        tasks += [task for scores, _ in first.values() for task in scores]
        tasks += _turns(timed, shapes, 0, schedule.per_load)
        tasks += [task for _, traces in first.values() for task in traces]
    else:
        for arm, (scores, traces) in first.items():
            tasks += [*scores, *(_latency([arm], shapes, 0) if arm in timed else []), *traces]
    tasks += [Task("routing", arm, ROUTING_LOAD) for arm in timed if arm in routed]
    for load in range(1, schedule.loads):
        if schedule.mode == "turns":
            tasks += _turns(timed, shapes, load, schedule.per_load)
        else:
            tasks += _latency(timed if load % 2 == 0 else timed[::-1], shapes, load)
    tasks += _served([arm for arm in arms if "serving" in evaluators[arm]], points, served_loads)
    middle = points[len(points) // 2] if points else None
    return tasks + [Task("kernels", arm, TRACED_LOAD, point=middle) for arm in traced_servers if middle]


def _served(arms: Sequence[str], points: Sequence[LoadPoint], loads: int) -> list[Task]:
    """Every arm's server at every point, A B, B A: a server has the machine for itself."""
    return [
        Task("serving", arm, served_load(number), point=point)
        for number in range(loads)
        for arm in (arms if number % 2 == 0 else arms[::-1])
        for point in points
    ]


def _scores(
    arm: str, evaluators: Mapping[str, Sequence[EvaluatorName]], reference: str, suites: Mapping[str, int]
) -> list[Task]:
    tasks: list[Task] = []
    if "quality" in evaluators[arm]:
        tasks += [Task("quality", arm)] + ([Task("noise", arm)] if arm == reference else [])
    if "tasks" in evaluators[arm]:
        tasks += [
            Task("tasks", arm, suite=suite, repeat=repeat) for suite, count in suites.items() for repeat in range(count)
        ]
    return tasks


def _kernels(
    arm: str, evaluators: Mapping[str, Sequence[EvaluatorName]], traced: Sequence[Shape], load: int
) -> list[Task]:
    return [Task("kernels", arm, load, shape) for shape in traced] if "kernels" in evaluators[arm] else []


def _latency(arms: Sequence[str], shapes: Sequence[Shape], load: int) -> list[Task]:
    """One load of every arm by itself."""
    return [Task("latency", arm, load, shape) for arm in arms for shape in shapes]


def _turns(timed: Sequence[str], shapes: Sequence[Shape], load: int, turns: int) -> list[Task]:
    """A B, B A, B A, A B: another arm begins every other turn, so that each follows itself equally often.

    Another arm begins every load, so that what drifts within one favours each equally often.
    """
    tasks = []
    for shape in shapes:
        for turn in range(turns):
            first = (load + turn // 2) % max(1, len(timed))
            order = [*timed[first:], *timed[:first]]
            tasks += [Task("latency", arm, load, shape, turn) for arm in (order if turn % 2 == 0 else order[::-1])]
    return tasks
