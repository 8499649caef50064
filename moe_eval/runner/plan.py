"""What a run will do, before anything is loaded: arms, what is left out and why, shapes and tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moe_eval.checkpoint import contents, geometry
from moe_eval.data import prompts, scoring_windows
from moe_eval.data.harness_tasks import Suite
from moe_eval.data.served_requests import LoadPoint
from moe_eval.data.workload import Shape, Workload
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.evaluators import floors
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records.by_arm import REPEAT_SUFFIX
from moe_eval.records.run import EvaluatorName, Mode, RunRecord, Schedule, Skipped
from moe_eval.runner import arm_plan, fit, placement, scatter, suites, tasks
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.placement import Indices, Placement
from moe_eval.runner.recording import HOLDS
from moe_eval.runner.request import RunRequest
from moe_eval.runner.tasks import TRACED_LOAD, Task

_MODES: Mapping[Mode, str] = {
    "turns": "the arms of a load live at once and take turns",
    "alternating": "one arm loaded at a time",
}
TRACED_TOKENS = 9  # one of prefill and eight of decode
# for an estimate, by whether there is a GPU: seconds of a load, of a step beside reading weights, and bytes a second
_LOAD_SECONDS = {True: 60.0, False: 10.0}
_STEP_SECONDS = {True: 3e-3, False: 10e-3}
_BYTES_PER_SECOND = {True: 2e12, False: 5e9}
_WARM_UP_SECONDS = {True: 10.0, False: 0.5}
_WINDOWS = 600  # about as many as wikitext has


@dataclass(frozen=True)
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


def describe(plan: Plan, request: RunRequest, gpus: Sequence[Gpu]) -> str:
    """The plan as text: what runs, what does not and why, and what it takes."""
    lines = ["Plan:"]
    for arm in plan.arms:
        need = fit.need_of(arm, plan.shapes, gpus)
        spread = f" on each of {count} GPUs" if (count := fit.gpu_count(arm.settings.options)) > 1 else ""
        emulated = " (emulated)" if arm.settings.options.get("emulate") else ""
        takes = (
            "a server"
            if arm.is_endpoint
            else "memory not known"
            if need.total is None
            else f"about {need.total / 2**30:.1f} GiB{spread}"
        )
        where = _where(plan.placement.of_arm(arm.name), gpus, hardware.first_index(arm.settings.device))
        parts = [", ".join(plan.evaluators[arm.name]), takes, *where]
        if request.arms.arms:
            parts += [", ".join([arm.engine, arm.precision, *_settings(arm)])]
        lines.append(f"  {arm.name}{emulated}: {'; '.join(parts)}; {arm.settings.checkpoint}")
    for entry in plan.skipped:
        lines.append(f"  skipped: {entry.arm}{f' {entry.evaluator}' if entry.evaluator else ''}: {entry.reason}")
    if plan.timed:
        names = ", ".join(shape.name for shape in plan.shapes)
        schedule = plan.schedule
        loads = f"{'up to ' * schedule.until_decided}{_counted(schedule.loads, 'load')}"
        iterations = _counted(schedule.per_load, "iteration")
        lines.append(f"  shapes: {names}; {loads} of {iterations}, {_MODES[schedule.mode]}")
    if plan.suites:
        counts = [f"{name} ({count:,} documents)" for suite in plan.suites for name, count in suite.tasks.items()]
        lines.append(f"  tasks of lm-eval: {', '.join(counts)}")
    if plan.points:
        names = ", ".join(point.name for point in plan.points)
        ends = ", users until more of them add nothing" if request.serving and request.serving.is_sweep else ""
        lines.append(f"  serving: {names}{ends}; {_counted(plan.served_loads, 'load')} of every server, one at a time")
    if any(task.kind == "kernels" for task in plan.tasks):
        lines.append(f"  kernels: {_traced(request.nsys)}")
    others = len(plan.timed) - 1
    if others > 0:
        scattered = scatter.of_machine(request.folder, gpus[0].name if gpus else None)
        lines.append(
            f"  verdict: {scatter.sentence(plan.schedule, others * len(plan.shapes), request.min_gain, scattered)}"
        )
    lines.append(f"  {len(plan.tasks)} tasks, {_estimate(plan, request.num_chunks, gpus)}")
    return "\n".join(lines)


def _where(rounds: Sequence[Indices], gpus: Sequence[Gpu], first: int) -> list[str]:
    """The GPUs of an arm by load, where there are several to choose from. `first`: see placement.visible."""
    if len(gpus) < 2 or not rounds[0]:
        return []
    are_here = all(gpu.uuid for gpu in gpus)  # else they have no names but their numbers
    names = [placement.visible(indices, first) if are_here else ",".join(map(str, indices)) for indices in rounds]
    places = list(dict.fromkeys(names))
    label = f"GPU{'s' * (len(rounds[0]) > 1)} {' and then '.join(places)}"
    return [f"{label} by turns of loads" if len(places) > 1 else label]


def _settings(arm: Arm) -> list[str]:
    """The settings of a named arm."""
    recorded = arm.recorded(())
    options = [f"{name}={value}" for name, value in recorded.options.items()]
    return options + [f"env.{name}={value}" for name, value in recorded.environment.items()]


def _traced(nsys: NsysSettings | None) -> str:
    """By which profiler, and what is logged of it."""
    if nsys is None:
        return "traced by torch's profiler"
    by = "traced by Nsight Systems, in a load of its own"
    return f"{by}; raw reports are kept, which hold {HOLDS}" if nsys.keep_report else by


def _estimate(plan: Plan, num_chunks: int, gpus: Sequence[Gpu]) -> str:
    """About how many minutes, in all and for a load, and on which assumptions."""
    gpu = bool(gpus)
    loads = {(task.arm, task.load) for task in plan.tasks}
    seconds = _LOAD_SECONDS[gpu] * len(loads) + sum(_arm_seconds(arm, plan, num_chunks, gpus) for arm in plan.arms)
    minutes = _counted(max(1, round(seconds / 60)), "minute")
    count = f"{'up to ' * plan.schedule.until_decided}{_counted(len(loads), 'load')}"
    return (
        f"about {minutes} for {count} ({seconds / 60 / max(1, len(loads)):.1f} a load), if loading takes "
        f"{_LOAD_SECONDS[gpu]:.0f} s and weights are read at {_BYTES_PER_SECOND[gpu] / 1e9:,.0f} GB/s"
        f"{'; tasks of lm-eval take their time besides' * bool(plan.suites)}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _arm_seconds(arm: Arm, plan: Plan, num_chunks: int, gpus: Sequence[Gpu]) -> float:
    if arm.is_endpoint:
        return 0.0
    gpu = bool(gpus)
    sizes = geometry.read(contents.read_config(fit.folder(arm)))
    weights = fit.need_of(arm, plan.shapes, gpus).weights or 0
    seconds = 0.0
    for task in plan.tasks:
        if task.arm != arm.name or task.shape is None:
            continue
        share = 1.0
        if sizes is not None:
            share = floors.expected_distinct(sizes.experts, sizes.top_k, task.shape.batch_size) / sizes.experts
        iteration = task.shape.output_len * (weights * share / _BYTES_PER_SECOND[gpu] + _STEP_SECONDS[gpu])
        seconds += iteration * plan.schedule.per_turn
        if task.turn == 0:
            seconds += max(_WARM_UP_SECONDS[gpu], iteration * plan.schedule.warm_ups)
    if "quality" in plan.evaluators[arm.name]:
        seconds += (num_chunks or _WINDOWS) * (weights / _BYTES_PER_SECOND[gpu] + _STEP_SECONDS[gpu])
    return seconds
