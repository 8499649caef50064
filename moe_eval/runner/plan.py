"""What a run will do, before anything is loaded: arms, what is left out and why, shapes and tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moe_eval.data import scoring_windows
from moe_eval.data.workload import Shape
from moe_eval.engines import registry
from moe_eval.machine.hardware import Gpu
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.records.run import EvaluatorName, Mode, RunRecord, Schedule, Skipped
from moe_eval.runner import arm_plan, limits, tasks
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.request import RunRequest
from moe_eval.runner.tasks import Task

TRACED_TOKENS = 9  # one of prefill and eight of decode


@dataclass(frozen=True)
class Plan:
    """What will run.

    Attributes:
        arms: the reference first. `evaluators`: of every arm by name.
        traced: the shapes that are traced.
    """

    arms: tuple[Arm, ...]
    evaluators: Mapping[str, tuple[EvaluatorName, ...]]
    skipped: tuple[Skipped, ...]
    schedule: Schedule
    shapes: tuple[Shape, ...]
    traced: tuple[Shape, ...]
    tasks: tuple[Task, ...]

    @property
    def timed(self) -> tuple[str, ...]:
        """The arms whose latency is measured."""
        return tuple(name for name, evaluators in self.evaluators.items() if "latency" in evaluators)

    def routed_as(self, name: str) -> str:
        """The arm whose routing is this arm's as well: the first that is loaded alike."""
        return _routed_as(name, [arm for arm in self.arms if arm.name in self.timed])


def make(request: RunRequest, gpus: Sequence[Gpu], before: RunRecord | None = None) -> Plan:
    """Plan a run.

    Args:
        before: the run that goes on. It keeps its arms and its schedule, though more memory is free now. With less, the
            plan differs, see resume.check.

    Raises:
        UsageError: the model, the data or the shapes cannot be what the request names.
    """
    planned = arm_plan.plan(request.arms, gpus)
    if "quality" in request.evaluators:
        scoring_windows.check(request.input_len, request.num_chunks)
        scoring_windows.read_documents(request.dataset)
    if {"latency", "kernels"} & set(request.evaluators):
        planned = limits.fitted(planned, request.shapes, gpus)
    arms, skipped = _chosen(planned, request, before)
    evaluators = {arm.name: _evaluators(arm, request) for arm in arms}
    timed = [arm for arm in arms if "latency" in evaluators[arm.name]]
    kept_apart = before is not None and before.schedule.mode != "interleaved"
    fit_together = not kept_apart and len(timed) > 1 and limits.together(timed, request.shapes, gpus)
    iterations = schedule(request.iterations, request.warm_ups, request.blocks, together=fit_together)
    traced = tuple(replace(shape, output_len=min(shape.output_len, TRACED_TOKENS)) for shape in request.shapes)
    routed = [arm.name for arm in timed if _routed_as(arm.name, timed) == arm.name]
    if registry.named(request.arms.engine).routing is None:
        routed = []
    order = tasks.order(evaluators, request.shapes, traced, iterations, routed=routed)
    return Plan(tuple(arms), evaluators, tuple(skipped), iterations, request.shapes, traced, tuple(order))


def schedule(iterations: int, warm_ups: int, blocks: int, *, together: bool) -> Schedule:
    """The schedule for at least that many iterations.

    Args:
        blocks: how often an arm is loaded where the arms do not fit `together`.
    """
    if together:
        return Schedule("interleaved", math.ceil(iterations / 2), 2, warm_ups)
    mode: Mode = "reloaded" if blocks > 1 else "sequential"
    return Schedule(mode, blocks, math.ceil(iterations / blocks), warm_ups)


def _chosen(
    planned: Sequence[Arm | Skipped], request: RunRequest, before: RunRecord | None
) -> tuple[list[Arm], list[Skipped]]:
    """The arms that run, with a repeat of the first one second, and what is left out of them."""
    arms: list[Arm] = []
    skipped: list[Skipped] = []
    for entry in planned:
        if isinstance(entry, Skipped):
            skipped.append(entry)
        elif before is not None and entry.name not in before.evaluators:
            skipped.append(Skipped(entry.name, None, "the run that goes on here began without it"))
        else:
            evaluators = _evaluators(entry, request)
            reason = "it is emulated, so its speed says nothing"
            skipped += [Skipped(entry.name, name, reason) for name in request.evaluators if name not in evaluators]
            arms += [_without_limits(entry)] * bool(evaluators)
    if request.repeat_reference and arms:
        arms.insert(1, replace(arms[0], name=arms[0].name + REPEAT_SUFFIX))
    return arms, skipped


def _evaluators(arm: Arm, request: RunRequest) -> tuple[EvaluatorName, ...]:
    """Emulated arms are scored and nothing else."""
    return tuple(name for name in request.evaluators if name == "quality" or not arm.settings.options.get("emulate"))


def _without_limits(arm: Arm) -> Arm:
    """An emulated arm runs no shape, whose limits would only make it slower."""
    if not arm.settings.options.get("emulate"):
        return arm
    free = replace(arm.settings, max_length=None, batch_size=None, kv_tokens=None, heaviest_bytes=None)
    return replace(arm, settings=free)


def _routed_as(name: str, timed: Sequence[Arm]) -> str:
    settings = next((arm.settings for arm in timed if arm.name == name), None)
    return next((arm.name for arm in timed if arm.settings == settings), name)
