"""What a run will do, before anything is loaded: arms, what is left out and why, shapes and tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_eval.checkpoint import contents
from moe_eval.data import prompts, scoring_windows
from moe_eval.data.harness_tasks import Suite
from moe_eval.data.served_requests import LoadPoint
from moe_eval.data.workload import Shape, Workload
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.records.run import EvaluatorName, RunRecord, Schedule, Skipped
from moe_eval.runner import arm_plan, fit, placement, suites, tasks
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.placement import Placement
from moe_eval.runner.request import RunRequest
from moe_eval.runner.tasks import TRACED_LOAD, Task

TRACED_TOKENS = 9  # one of prefill and eight of decode


@frozen
class Plan:
    """What will run.

    Attributes:
        arms: the reference first. `evaluators`: of every arm by name.
        traced: the shapes that are traced.
        routed_as: by timed arm, the arm whose routing is its own as well: the first that is loaded alike.
        placement: the GPUs of every arm, as indices into those of the run.
        suites: what --tasks names. `points`: at which servers are driven, in each of `served_loads` loads.
    """

    arms: tuple[Arm, ...]
    evaluators: Mapping[str, tuple[EvaluatorName, ...]]
    skipped: tuple[Skipped, ...]
    schedule: Schedule
    shapes: tuple[Shape, ...]
    traced: tuple[Shape, ...]
    tasks: tuple[Task, ...]
    routed_as: Mapping[str, str]
    placement: Placement
    suites: tuple[Suite, ...] = ()
    points: tuple[LoadPoint, ...] = ()
    served_loads: int = 0

    def until(self, loads: int) -> Plan:
        """The plan that ends after so many loads of every arm."""
        return replace(self, tasks=tuple(task for task in self.tasks if task.load < loads))

    def up_to(self, users: int) -> Plan:
        """The plan without load points of more users. Servers are traced at the middle one of those that are left."""
        points = tuple(point for point in self.points if (point.concurrency or 0) <= users)
        traced = [replace(task, point=points[len(points) // 2]) for task in self.tasks if task.load == TRACED_LOAD]
        others = [task for task in self.tasks if task.load != TRACED_LOAD]
        return replace(
            self,
            points=points,
            tasks=(*(task for task in others if task.point is None or task.point in points), *traced),
        )

    @property
    def timed(self) -> tuple[str, ...]:
        """The arms whose latency is measured."""
        return tuple(name for name, evaluators in self.evaluators.items() if "latency" in evaluators)


def make(request: RunRequest, gpus: Sequence[Gpu], before: RunRecord | None = None) -> Plan:
    """Plan a run.

    Args:
        before: the run that goes on. It keeps its arms and its schedule, though more memory is free now. With less, the
            plan differs, see resume.check.

    Raises:
        UsageError: the model, the data or the shapes cannot be what the request names.
    """
    planned = arm_plan.plan(request.arms, gpus)
    suites.check_endpoints([entry for entry in planned if isinstance(entry, Arm)], request.evaluators)
    if "quality" in request.evaluators:
        scoring_windows.check(request.input_len, request.num_chunks)
        scoring_windows.read_documents(request.dataset)
    built = suites.built(request, [entry for entry in planned if isinstance(entry, Arm)])
    if {"latency", "kernels"} & set(request.evaluators):
        window = suites.window(request, built, planned)
        planned = fit.fitted(planned, request.shapes, gpus, are_named=bool(request.arms.arms), window=window)
    arms, skipped = _chosen(planned, request, before)
    evaluators = {arm.name: _evaluators(arm, request) for arm in arms}
    timed = [arm for arm in arms if "latency" in evaluators[arm.name]]
    kept_apart = before is not None and before.schedule.mode != "turns"
    where = placement.place(arms, [arm.name for arm in timed], request.shapes, gpus, apart=kept_apart)
    iterations = schedule(request, together=where.together)
    traced = tuple(replace(shape, output_len=min(shape.output_len, TRACED_TOKENS)) for shape in request.shapes)
    routed_as = {arm.name: next(twin.name for twin in timed if twin.is_like(arm)) for arm in timed}
    routed = [routed_as[arm.name] for arm in timed if registry.named(arm.engine).routing is not None]
    is_recorded = request.nsys is not None
    repeats = {suite.name: request.tasks.repeats if request.tasks and suite.is_sampled else 1 for suite in built}
    points = request.serving.points if request.serving else ()
    order = tasks.order(
        evaluators,
        request.shapes,
        traced,
        iterations,
        routed=routed,
        is_recorded=is_recorded,
        suites=repeats,
        points=points,
        served_loads=request.loads,
        traced_servers=[arm.name for arm in arms if _is_traced_server(arm, evaluators[arm.name])],
    )
    return Plan(
        arms=tuple(arms),
        evaluators=evaluators,
        skipped=tuple(skipped),
        schedule=iterations,
        shapes=request.shapes,
        traced=traced,
        tasks=tuple(order),
        routed_as=routed_as,
        placement=where,
        suites=tuple(built),
        points=points,
        served_loads=request.loads if points else 0,
    )


def workload(request: RunRequest, arms: Sequence[Arm]) -> Workload:
    """The prompts that these arms run, within the smallest of their vocabularies.

    Args:
        arms: at least one. Its checkpoint has the tokenizer, unless the request names another.

    Raises:
        UsageError: as for `make_workload`, or a checkpoint that does not state its vocabulary.
    """
    from moe_eval.checkpoint import tokenizer as tokenizers

    first = arms[0].settings
    tokenizer = tokenizers.load(request.tokenizer or first.checkpoint, first.revision, first.trust_remote_code)
    vocabulary = min(map(_vocabulary, arms))
    return prompts.make_workload(request.dataset, request.seed, request.shapes, tokenizer, vocabulary)


def _vocabulary(arm: Arm) -> int:
    size = contents.text_config(contents.read_config(fit.folder(arm))).get("vocab_size")
    if size is None:
        raise UsageError(
            f"The config.json of {arm.settings.checkpoint} states no vocab_size. Copy the checkpoint again."
        )
    return int(size)


def schedule(request: RunRequest, *, together: bool) -> Schedule:
    """The schedule for at least as many iterations in all as the request has.

    Args:
        together: whether the timed arms fit at once.
    """
    return Schedule(
        mode="turns" if together else "alternating",
        loads=request.most_loads or request.loads,
        per_load=math.ceil(request.iterations / request.loads),
        warm_ups=request.warm_ups,
        until_decided=request.most_loads is not None,
    )


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
            reasons = {name: reason for name in request.evaluators if (reason := _why_not(entry, name))}
            skipped += [Skipped(entry.name, name, reason) for name, reason in reasons.items()]
            arms += [entry] * (len(reasons) < len(request.evaluators))
    if request.repeat_reference and arms:
        arms.insert(1, replace(arms[0], name=arms[0].name + REPEAT_SUFFIX))
    return arms, skipped


def _evaluators(arm: Arm, request: RunRequest) -> tuple[EvaluatorName, ...]:
    return tuple(name for name in request.evaluators if _why_not(arm, name) is None)


def _is_traced_server(arm: Arm, evaluators: Sequence[EvaluatorName]) -> bool:
    return {"serving", "kernels"} <= {*evaluators} and registry.named(arm.engine).traces_server


def _why_not(arm: Arm, evaluator: EvaluatorName) -> str | None:
    """Why an evaluator measures nothing of an arm. None where it does."""
    options = arm.settings.options
    if options.get("emulate") and evaluator in ("latency", "kernels", "serving"):
        return "it is emulated, so its speed says nothing"
    if options.get("weights") == "random" and evaluator == "tasks":
        return "its weights are random, so its answers say nothing"
    return None
