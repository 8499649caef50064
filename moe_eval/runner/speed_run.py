"""Runs a speed comparison: the arms that fit, their iterations side by side, routing, and what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents, geometry
from moe_eval.data.workload import Shape
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.rates import Rates
from moe_eval.records import disk
from moe_eval.runner import fit, interleave, speed_record
from moe_eval.runner.arm_plan import Arm, Skip
from moe_eval.runner.arm_process import ArmFailed, ArmProcess, Load
from moe_eval.runner.interleave import ArmRun, Conductor, Schedule
from moe_eval.runner.speed_record import Context

AGAIN = "-again"
_LEAST_WINDOW = 64  # engines refuse windows of a few tokens
# options with which an arm takes a share of the GPU's memory whatever the others need
_SHARES = ("gpu_memory_utilization", "kv_cache_memory_bytes")


@dataclass(frozen=True)
class Asked:
    """How to measure.

    Attributes:
        iterations, warm_ups, blocks: see interleave.schedule.
        again: measure the first arm against itself as well.
        folder, where: records go to folder/perf_ARM_where.json.
    """

    shapes: tuple[Shape, ...]
    iterations: int
    warm_ups: int
    blocks: int
    again: bool
    folder: Path
    where: str


def fitted(planned: Sequence[Arm | Skip], shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> list[Arm | Skip]:
    """The arms with limits that suit the shapes; one that the memory cannot hold is skipped.

    Raises:
        UsageError: a shape is longer than a model's window, or no arm at all fits.
    """
    found: list[Arm | Skip] = []
    available = fit.memory(gpus)
    stored = [contents.weight_bytes(_folder(each)) or 0 for each in planned if isinstance(each, Arm)]
    for each in planned:
        if isinstance(each, Skip):
            found.append(each)
            continue
        config = contents.read_config(_folder(each))
        fit.check_window(each.settings.checkpoint, config, shapes)
        reason = fit.too_large(_need(each, shapes, gpus), available)
        if reason:
            found.append(Skip(each.precision, reason))
            continue
        limits = replace(
            each.settings,
            max_length=_window(config, shapes),
            batch_size=max(shape.batch_size for shape in shapes),
            kv_tokens=fit.cache_tokens(shapes),
            heaviest_bytes=max(stored) or None,
        )
        found.append(replace(each, settings=limits))
    if any(isinstance(each, Arm) for each in planned) and not any(isinstance(each, Arm) for each in found):
        large = [each for each in found if isinstance(each, Skip) and each not in planned]
        raise UsageError(" ".join(f"{each.precision} does not fit here: {each.reason}." for each in large))
    return found


def _window(config: Mapping[str, Any], shapes: Sequence[Shape]) -> int:
    """The longest shape, and no fewer tokens than engines take where the model has as many."""
    longest = max(shape.input_len + shape.output_len for shape in shapes)
    positions = fit.positions(config)
    return max(longest, _LEAST_WINDOW if positions is None else min(_LEAST_WINDOW, positions))


def arm_runs(arms: Sequence[Arm], engine: str, tokenizer: str | None, *, again: bool) -> list[ArmRun]:
    """What is to be filled; with `again` the first arm comes twice."""
    runs = [
        ArmRun(each.precision, each.precision, Load(engine, each.settings, tokenizer or each.settings.checkpoint))
        for each in arms
    ]
    if again and runs:
        runs.insert(1, ArmRun(runs[0].name + AGAIN, runs[0].precision, runs[0].load))
    return runs


def schedule(arms: Sequence[Arm], asked: Asked, gpus: Sequence[Gpu]) -> Schedule:
    """Take turns where all arms fit at once, reload where not."""
    counted = [*arms[:1], *arms] if asked.again else list(arms)
    how = together(counted, asked.shapes, gpus)
    return interleave.schedule(asked.iterations, asked.warm_ups, asked.blocks, together=how)


def together(arms: Sequence[Arm], shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> bool:
    """Whether all arms fit at once."""
    needs = [_need(each, shapes, gpus) for each in arms]
    bounded = not any(name in each.settings.options for each in arms for name in _SHARES)
    return bounded and fit.together(needs, fit.memory(gpus))


def measure(
    runs: Sequence[ArmRun], asked: Asked, context: Context, gpus: Sequence[Gpu], progress: Any
) -> list[dict[str, Any]]:
    """Measure all arms and return their records, each of which is on disk whenever there is more of it."""
    context = replace(context, geometry=_geometry(runs[0].load), rates=_rates(runs[0].load, gpus))

    assert context.workload is not None
    frozen = asked.folder / f"workload_{context.workload.digest}.json"
    disk.write_json(frozen, context.workload.to_json())
    conductor = Conductor(
        arms=runs,
        workload=context.workload,
        frozen=frozen,
        schedule=context.schedule,
        uuids=[gpu.uuid for gpu in gpus[: fit.gpu_count(runs[0].load.settings.options)] if gpu.uuid],
        kept=lambda run: write(asked, run.name, speed_record.record(run, context)),
        done=progress,
    )
    conductor.run()
    _written(runs, asked, context)  # the comparison is on disk before every arm is loaded once more
    _route([run for run in runs if run.status == "finished"], context, frozen)
    return _written(runs, asked, context)


def _written(runs: Sequence[ArmRun], asked: Asked, context: Context) -> list[dict[str, Any]]:
    """All records with their comparison, written down."""
    reference = next((run for run in runs if run.status == "finished"), None)
    found = [speed_record.record(run, context, None if run is reference else reference) for run in runs]
    for run, content in zip(runs, found, strict=True):
        write(asked, run.name, content)
    return found


def write(asked: Asked, name: str, content: Mapping[str, Any]) -> None:
    """Write an arm's record."""
    disk.write_json(asked.folder / f"perf_{name}_{asked.where}.json", content)


def _need(each: Arm, shapes: Sequence[Shape], gpus: Sequence[Gpu]) -> fit.Need:
    return fit.need(_folder(each), each.precision, shapes, each.settings.options, gpu=bool(gpus))


def _folder(each: Arm) -> Path:
    return contents.settings_folder(each.settings.checkpoint, each.settings.revision)


def _geometry(load: Load) -> geometry.Geometry | None:
    folder = contents.settings_folder(load.settings.checkpoint, load.settings.revision)
    return geometry.read(contents.read_config(folder))


def _rates(load: Load, gpus: Sequence[Gpu]) -> Rates | str:
    with ArmProcess(None) as process:
        try:
            return Rates(**process.ask("rates", device=load.settings.device or ("cuda" if gpus else "cpu")))
        except ArmFailed as error:
            return f"the machine's rates were not measured ({error})"


def _route(runs: Sequence[ArmRun], context: Context, frozen: Path) -> None:
    """Count experts where the engine tells."""
    if not runs:
        return
    kind = registry.named(runs[0].load.engine)
    if kind.routing is None:
        reason = f"not measured: {kind.title} does not tell which experts tokens go through"
    elif context.geometry is None:
        reason = "not measured: the number of experts of this architecture is not known"
    else:
        assert context.workload is not None
        interleave.route(runs, context.workload, frozen, options=kind.routing, experts=context.geometry.experts)
        return
    for run in runs:
        run.routing = reason
