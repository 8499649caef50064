"""A plan as text: what runs, what does not and why, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records.run import Mode
from moe_eval.runner import estimate, fit, placement, scatter
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.placement import Indices
from moe_eval.runner.plan import Plan
from moe_eval.runner.recording import HOLDS
from moe_eval.runner.request import RunRequest

_MODES: Mapping[Mode, str] = {
    "turns": "the arms of a load live at once and take turns",
    "alternating": "one arm loaded at a time",
}


def describe(plan: Plan, request: RunRequest, gpus: Sequence[Gpu]) -> str:
    """The lines of a plan, joined."""
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
    traced = [task for task in plan.tasks if task.kind == "kernels"]
    if any(task.shape for task in traced):
        lines.append(f"  kernels: {_traced(request.nsys)}")
    if server := next((task.point for task in traced if task.point), None):
        place = f"at {server.name}{' or less' * bool(request.serving and request.serving.is_sweep)}"
        lines.append(f"  kernels of servers: {place}, in a load of its own, {_traced(None)}")
    others = len(plan.timed) - 1
    if others > 0:
        scattered = scatter.of_machine(request.folder, gpus[0].name if gpus else None)
        lines.append(
            f"  verdict: {scatter.sentence(plan.schedule, others * len(plan.shapes), request.min_gain, scattered)}"
        )
    lines.append(f"  {len(plan.tasks)} tasks, {estimate.sentence(plan, request, gpus)}")
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


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
