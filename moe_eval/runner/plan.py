"""What a run will do, before anything is loaded: arms, skips with reasons, shapes, and a rough estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents, geometry
from moe_eval.data import scoring_windows
from moe_eval.data.workload import Shape
from moe_eval.evaluators import floors
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import arm_plan, fit, interleave, speed_run
from moe_eval.runner import steps as ordered
from moe_eval.runner.arm_plan import Arm, Skip
from moe_eval.runner.interleave import Schedule
from moe_eval.runner.steps import Step

TRACED_TOKENS = 9  # one of prefill and eight of decode
# for the estimate of time alone: seconds of a load, of what a step does beside reading weights, and bytes a second
_LOAD_SECONDS = {True: 60.0, False: 10.0}
_STEP_SECONDS = {True: 3e-3, False: 10e-3}
_BYTES_PER_SECOND = {True: 2e12, False: 5e9}


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        arms: see evaluators.plan. `evaluators`: names of steps.EVALUATORS.
        dataset, input_len, num_chunks: of the perplexity, see evaluators.chunks; prompts are cut from it as well.
        iterations, warm_ups, blocks: of the latency, see interleave.schedule; a block is one load of every arm
            where they do not take turns.
    """

    arms: arm_plan.Asked
    evaluators: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dataset: str
    input_len: int
    num_chunks: int
    iterations: int
    warm_ups: int
    blocks: int


@dataclass(frozen=True)
class Plan:
    """What will run.

    Attributes:
        arms: the reference first. `evaluators`: of every arm by name. `skipped`: (arm, evaluator or None for all of
            them, reason).
        traced: the shapes that are traced.
    """

    arms: tuple[Arm, ...]
    evaluators: Mapping[str, tuple[str, ...]]
    skipped: tuple[tuple[str, str | None, str], ...]
    schedule: Schedule
    shapes: tuple[Shape, ...]
    traced: tuple[Shape, ...]
    steps: tuple[Step, ...]

    @property
    def timed(self) -> tuple[str, ...]:
        """The arms whose latency is measured."""
        return tuple(name for name, each in self.evaluators.items() if "latency" in each)


def make(asked: Asked, gpus: Sequence[Gpu], *, routed: bool, before: Mapping[str, Any] | None = None) -> Plan:
    """Plan a run.

    Args:
        routed: whether the engine tells which experts tokens go through.
        before: what run.json holds of a run that goes on: it keeps its arms and its schedule, though more memory is
            free now. With less, the plan differs, see opened.check.

    Raises:
        UsageError: the model, the data or the shapes cannot be what was asked for.
    """
    planned = arm_plan.plan(asked.arms, gpus)
    if "perplexity" in asked.evaluators:
        scoring_windows.check(asked.input_len, asked.num_chunks)
        scoring_windows.read_documents(asked.dataset)
    if {"latency", "kernels"} & set(asked.evaluators):
        planned = speed_run.fitted(planned, asked.shapes, gpus)
    skipped: list[tuple[str, str | None, str]] = []
    arms: list[Arm] = []
    evaluators: dict[str, tuple[str, ...]] = {}
    for each in planned:
        if isinstance(each, Skip):
            skipped.append((each.precision, None, each.reason))
            continue
        if before is not None and each.precision not in before["evaluators"]:
            skipped.append((each.precision, None, "the run that goes on here began without it"))
            continue
        arm, chosen = each, asked.evaluators
        if each.settings.options.get("emulate"):
            for name in (one for one in chosen if one != "perplexity"):
                skipped.append((each.precision, name, "it is emulated, so its speed says nothing"))
            chosen = tuple(one for one in chosen if one == "perplexity")
            # the limits of shapes that it does not run would only make it slower
            free = replace(each.settings, max_length=None, batch_size=None, kv_tokens=None, heaviest_bytes=None)
            arm = replace(each, settings=free)
        if chosen:
            arms.append(arm)
            evaluators[arm.precision] = chosen
    timed = [each for each in arms if "latency" in evaluators[each.precision]]
    apart = before is not None and before["schedule"]["mode"] != "interleaved"
    schedule = _schedule(asked, timed, gpus, apart)
    traced = tuple(replace(each, output_len=min(each.output_len, TRACED_TOKENS)) for each in asked.shapes)
    order = ordered.order(evaluators, asked.shapes, traced, schedule, routed=list(evaluators) if routed else ())
    return Plan(tuple(arms), evaluators, tuple(skipped), schedule, asked.shapes, traced, tuple(order))


def _schedule(asked: Asked, timed: Sequence[Arm], gpus: Sequence[Gpu], apart: bool) -> Schedule:
    together = not apart and len(timed) > 1 and speed_run.together(timed, asked.shapes, gpus)
    return interleave.schedule(asked.iterations, asked.warm_ups, asked.blocks, together=together)


def tell(planned: Plan, asked: Asked, gpus: Sequence[Gpu]) -> str:
    """The plan as text: what runs, what does not and why, and what it takes."""
    lines = ["Plan:"]
    for each in planned.arms:
        need = fit.need(_folder(each), each.precision, planned.shapes, each.settings.options, gpu=bool(gpus))
        spread = f" on each of {count} GPUs" if (count := fit.gpu_count(each.settings.options)) > 1 else ""
        emulated = " (emulated)" if each.settings.options.get("emulate") else ""
        takes = "memory not known" if need.total is None else f"about {need.total / 2**30:.1f} GiB{spread}"
        lines.append(
            f"  {each.precision}{emulated}: {', '.join(planned.evaluators[each.precision])}; {takes}; "
            f"{each.settings.checkpoint}"
        )
    for arm, evaluator, reason in planned.skipped:
        lines.append(f"  skipped: {arm}{f' {evaluator}' if evaluator else ''}: {reason}")
    if planned.timed:
        named = ", ".join(shape.name for shape in planned.shapes)
        lines.append(f"  shapes: {named}; {planned.schedule.mode}, {planned.schedule.iterations} iterations each")
    gpu = bool(gpus)
    minutes = max(1, round(_seconds(planned, asked, gpu) / 60))
    lines.append(
        f"  {len(planned.steps)} steps, about {minutes} minute{'s' * (minutes > 1)} if a load takes "
        f"{_LOAD_SECONDS[gpu]:.0f} s and weights are read at {_BYTES_PER_SECOND[gpu] / 1e9:,.0f} GB/s"
    )
    return "\n".join(lines)


def _seconds(planned: Plan, asked: Asked, gpu: bool) -> float:
    """A rough guess, from the bytes that steps read."""
    loads = {(step.arm, step.load) for step in planned.steps}
    total = _LOAD_SECONDS[gpu] * len(loads)
    for each in planned.arms:
        sizes = geometry.read(contents.read_config(_folder(each)))
        held = fit.need(_folder(each), each.precision, planned.shapes, each.settings.options, gpu=gpu).weights or 0
        mine = [step for step in planned.steps if step.arm == each.precision and step.shape is not None]
        for step in mine:
            assert step.shape is not None
            part = 1.0
            if sizes is not None:
                part = floors.expected_distinct(sizes.experts, sizes.top_k, step.shape.batch_size) / sizes.experts
            one = step.shape.output_len * (held * part / _BYTES_PER_SECOND[gpu] + _STEP_SECONDS[gpu])
            first = step.block == 0 and step.turn == 0
            total += one * (planned.schedule.per_block + (planned.schedule.warm_ups if first else 0))
        if "perplexity" in planned.evaluators[each.precision]:
            total += (asked.num_chunks or 600) * (held / _BYTES_PER_SECOND[gpu] + _STEP_SECONDS[gpu])
    return total


def _folder(each: Arm) -> Path:
    return contents.settings_folder(each.settings.checkpoint, each.settings.revision)
