"""Where a served engine is to run, and whether this machine can run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_eval.checkpoint import precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import number
from moe_eval.engines.served.checkpoint import Model
from moe_eval.engines.served.traits import Traits
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu

_WORKERS = ("in_process", "spawned")


@dataclass(frozen=True)
class Placement:
    """Where the engine is to run: over how many GPUs, and whether in this process."""

    world: int
    in_process: bool


def take_placement(traits: Traits, options: dict[str, object], *, launched: bool = False) -> Placement:
    """Take `worker` out of the options and multiply the parallel sizes.

    Args:
        launched: whether ranks of a launcher are there.

    Raises:
        UsageError: `worker` has no such value, or an in-process worker is to use several GPUs.
    """
    worker = options.pop("worker", None)
    if worker not in (None, *_WORKERS):
        raise UsageError(f"worker={worker} does not exist. Give worker=in_process or worker=spawned.")
    world = 1
    for size in traits.parallel_sizes:
        world *= number(options, size) or 1
    if worker == "in_process" and world > 1:
        raise UsageError(f"worker=in_process is for one GPU, and the parallel sizes ask for {world}. Omit worker.")
    # only in this process can CUDA events, torch's profiler and the observers reach the model
    return Placement(world, worker == "in_process" or (worker is None and world == 1 and not launched))


def check_machine(
    traits: Traits,
    settings: EngineSettings,
    options: Mapping[str, object],
    model: Model,
    world: int,
    *,
    launched: bool = False,
) -> None:
    """Refuse what this machine cannot run. Without a GPU the library itself reports the lack.

    Raises:
        UsageError: there are too few GPUs, or they do not run the precision.
    """
    if settings.device is not None and not settings.device.startswith("cuda"):
        raise UsageError(
            f"{traits.title} runs on NVIDIA GPUs only, not on device={settings.device}. Omit device, and choose GPUs "
            "with CUDA_VISIBLE_DEVICES."
        )
    gpus = hardware.gpus()
    if world > max(1, len(gpus)) and not launched and traits.cluster_option not in options:
        raise UsageError(
            f"The parallel sizes ask for {world} GPUs, and this machine has {len(gpus)}. Give a smaller "
            f"tensor_parallel_size, or {traits.cluster_fix}."
        )
    requested = str(options.get("moe_backend", "auto")).replace("-", "_")
    backend = None if requested.lower() == "auto" else requested
    executed = precision.executed(model.precision, backend)
    for gpu in gpus[:world]:
        reason = precision.why_not(traits.name, executed, gpu.sm, backend)
        if reason:
            raise UsageError(
                f"{traits.title} cannot run {settings.checkpoint} in {model.precision} on {gpu.name}: {reason}."
            )


def device_name(gpus: Sequence[Gpu], world: int) -> str:
    """The hardware's name for the labels, with the number of GPUs if there are several."""
    if not gpus:
        return "cpu"
    return f"{world} x {gpus[0].name}" if world > 1 else gpus[0].name
