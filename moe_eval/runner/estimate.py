"""A plan as text, with a rough guess of how long it takes, from the bytes that its tasks read."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.checkpoint import contents, geometry
from moe_eval.evaluators import floors
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import fit, limits
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import RunRequest

# by whether there is a GPU: seconds of a load, of a step beside reading weights, and bytes that are read in a second
_LOAD_SECONDS = {True: 60.0, False: 10.0}
_STEP_SECONDS = {True: 3e-3, False: 10e-3}
_BYTES_PER_SECOND = {True: 2e12, False: 5e9}
_WINDOWS = 600  # about as many as wikitext has


def describe(plan: Plan, request: RunRequest, gpus: Sequence[Gpu]) -> str:
    """The plan as text: what runs, what does not and why, and what it takes."""
    lines = ["Plan:"]
    for arm in plan.arms:
        need = limits.need(arm, plan.shapes, gpus)
        spread = f" on each of {count} GPUs" if (count := fit.gpu_count(arm.settings.options)) > 1 else ""
        emulated = " (emulated)" if arm.settings.options.get("emulate") else ""
        takes = "memory not known" if need.total is None else f"about {need.total / 2**30:.1f} GiB{spread}"
        lines.append(
            f"  {arm.name}{emulated}: {', '.join(plan.evaluators[arm.name])}; {takes}; {arm.settings.checkpoint}"
        )
    for entry in plan.skipped:
        lines.append(f"  skipped: {entry.arm}{f' {entry.evaluator}' if entry.evaluator else ''}: {entry.reason}")
    if plan.timed:
        names = ", ".join(shape.name for shape in plan.shapes)
        lines.append(f"  shapes: {names}; {plan.schedule.mode}, {plan.schedule.iterations} iterations each")
    lines.append(f"  {len(plan.tasks)} tasks, {_sentence(plan, request.num_chunks, gpus)}")
    return "\n".join(lines)


def _sentence(plan: Plan, num_chunks: int, gpus: Sequence[Gpu]) -> str:
    """About how many minutes, and on which assumptions.

    Args:
        num_chunks: windows to score, 0 for all.
    """
    gpu = bool(gpus)
    loads = {(task.arm, task.load) for task in plan.tasks}
    seconds = _LOAD_SECONDS[gpu] * len(loads) + sum(_arm_seconds(arm, plan, num_chunks, gpus) for arm in plan.arms)
    minutes = max(1, round(seconds / 60))
    return (
        f"about {minutes} minute{'s' * (minutes > 1)} if a load takes {_LOAD_SECONDS[gpu]:.0f} s and weights are read "
        f"at {_BYTES_PER_SECOND[gpu] / 1e9:,.0f} GB/s"
    )


def _arm_seconds(arm: Arm, plan: Plan, num_chunks: int, gpus: Sequence[Gpu]) -> float:
    gpu = bool(gpus)
    sizes = geometry.read(contents.read_config(limits.folder(arm)))
    weights = limits.need(arm, plan.shapes, gpus).weights or 0
    seconds = 0.0
    for task in plan.tasks:
        if task.arm != arm.name or task.shape is None:
            continue
        share = 1.0
        if sizes is not None:
            share = floors.expected_distinct(sizes.experts, sizes.top_k, task.shape.batch_size) / sizes.experts
        iteration = task.shape.output_len * (weights * share / _BYTES_PER_SECOND[gpu] + _STEP_SECONDS[gpu])
        is_first = task.block == 0 and task.turn == 0
        seconds += iteration * (plan.schedule.per_block + (plan.schedule.warm_ups if is_first else 0))
    if "quality" in plan.evaluators[arm.name]:
        seconds += (num_chunks or _WINDOWS) * (weights / _BYTES_PER_SECOND[gpu] + _STEP_SECONDS[gpu])
    return seconds
