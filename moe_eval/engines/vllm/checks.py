"""What is settled before vllm is imported: the checkpoint, the machine, and this engine's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_eval.checkpoint import contents, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import take_worker
from moe_eval.errors import UsageError
from moe_eval.machine import hardware

# quantisations that vLLM's readers know, by the first word of checkpoint.Carried.method
_READS = ("none", "fp8", "modelopt", "compressed-tensors")
# what vLLM makes of 16-bit weights while it loads them, by its own name
ONLINE = {"fp8": "fp8_per_tensor", "fp8_block": "fp8_per_block"}
_WEIGHTS = ("checkpoint", "random")
_WORLD = (
    *("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size"),
    "data_parallel_size",
)


@dataclass(frozen=True)
class Model:
    """What a checkpoint's files say before it is loaded.

    Attributes:
        folder: with its JSON files.
        config: config.json, the settings of the language model itself on the top level.
        precision: what the experts will compute in.
        dtype: torch's name of the type outside quantised layers.
        online: whether vLLM quantises it to the precision while it loads.
        weights: where they come from.
        fingerprint: see EngineFacts.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    carried: contents.Carried
    precision: str
    dtype: str
    online: bool
    weights: Literal["checkpoint", "random"]
    fingerprint: str


@dataclass(frozen=True)
class Placement:
    """Where the engine is to run: over how many GPUs, and whether in this process."""

    world: int
    in_process: bool


def read_model(settings: EngineSettings, weights: Literal["checkpoint", "random"]) -> Model:
    """Read what the checkpoint is.

    Raises:
        UsageError: it is not here, is damaged, or neither holds the precision asked for nor can become it.
    """
    local = contents.local_folder(settings.checkpoint)
    folder = contents.settings_folder(settings.checkpoint, settings.revision)
    if local and weights == "checkpoint":
        contents.check_weights(folder)
    carried = contents.carried(folder)
    if carried.method.split()[0] not in _READS or carried.precision is None:
        raise UsageError(
            f"{settings.checkpoint} is quantised as {carried.method}, which moe_eval cannot run on vLLM; give a "
            "checkpoint in BF16, FP8 (per tensor or blocks of 128x128) or NVFP4."
        )
    if weights == "random" and carried.method != "none":
        raise UsageError(
            f"weights=random has to be quantised from 16 bits and {settings.checkpoint} is quantised already "
            f"({carried.method}); give the configuration of the BF16 model with precision={carried.precision}."
        )
    config = contents.read_config(folder)
    held, dtype = _precision(settings, carried, contents.stored_dtype(config))
    origin = contents.fingerprint(folder) if local else f"{settings.checkpoint}@{folder.name}"
    return Model(
        name=str(local or settings.checkpoint),
        folder=folder,
        config=contents.text_config(config),
        carried=carried,
        precision=held,
        dtype=dtype,
        online=carried.method == "none" and held in ONLINE,
        weights=weights,
        fingerprint="random weights (weights=random)" if weights == "random" else origin,
    )


def _precision(settings: EngineSettings, carried: contents.Carried, stored: str) -> tuple[str, str]:
    """The precision of the experts and the dtype of the rest."""
    names = precision.OF_DTYPE
    asked = settings.precision
    if settings.dtype != "auto" and settings.dtype not in names:
        raise UsageError(f"There is no dtype {settings.dtype!r} here; choose auto, {', '.join(names)}.")
    dtype = stored if settings.dtype == "auto" else settings.dtype
    held = str(carried.precision)
    if carried.method == "none":
        if settings.dtype == "auto" and asked in precision.DTYPE_OF:
            dtype = precision.DTYPE_OF[asked]
        held = names[dtype]
        if asked in ONLINE:
            if held == "fp32":
                raise UsageError(f"vLLM quantises 16-bit weights and these are {dtype}; add dtype=bfloat16.")
            return asked, dtype
    if asked not in (None, held):
        found = held if carried.method == "none" else f"{held} ({carried.method})"
        raise UsageError(
            f"precision={asked} was asked for and {settings.checkpoint} holds {found}, of which vLLM makes "
            f"{' and '.join(ONLINE) if carried.method == 'none' else 'nothing else'} while it loads; give the "
            f"checkpoint that holds {asked}, or leave precision out."
        )
    return held, dtype


def take_weights(options: dict[str, Any]) -> Literal["checkpoint", "random"]:
    """Take `weights` out of the options.

    Raises:
        UsageError: it is neither of the two, or another load_format is asked for as well.
    """
    asked = options.pop("weights", None) or "checkpoint"
    if asked not in _WEIGHTS:
        raise UsageError(f"weights={asked} is neither checkpoint nor random; give one of them.")
    if asked == "random" and "load_format" in options:
        raise UsageError("weights=random and load_format contradict each other; give one of them.")
    return "random" if asked == "random" else "checkpoint"


def take_placement(options: dict[str, Any], weights: str) -> Placement:
    """Take `worker` out of the options and say where the engine is to run.

    Raises:
        UsageError: a value that means nothing, an in-process worker for several GPUs, or random weights elsewhere.
    """
    asked, world = take_worker(options, _WORLD)
    # CUDA events, torch's profiler and what is seen of the model need the engine in this process
    in_process = asked == "in_process" or (asked is None and world == 1)
    if weights == "random" and not in_process:
        raise UsageError(
            "weights=random fills the model in this process, so it is for one GPU; leave worker and the parallel sizes "
            "out, or give a checkpoint with weights."
        )
    return Placement(world, in_process)


def check_machine(settings: EngineSettings, options: Mapping[str, Any], model: Model, world: int) -> None:
    """Refuse what this machine cannot run. Without a GPU the library is left to say so itself.

    Raises:
        UsageError: too few GPUs, or GPUs that do not run the precision.
    """
    if settings.device is not None and not str(settings.device).startswith("cuda"):
        raise UsageError(
            f"device={settings.device}: moe_eval runs vLLM on NVIDIA GPUs alone; leave device out "
            "(CUDA_VISIBLE_DEVICES chooses among them)."
        )
    gpus = hardware.gpus()
    if world > max(1, len(gpus)) and "distributed_executor_backend" not in options:
        raise UsageError(
            f"The parallel sizes ask for {world} GPUs and this machine has {len(gpus)}; give a smaller "
            "tensor_parallel_size, or distributed_executor_backend=ray for several machines."
        )
    backend = str(options.get("moe_backend", "auto")).replace("-", "_")
    for gpu in gpus[:world]:
        chosen = None if backend.lower() == "auto" else backend
        reason = precision.why_not("vllm", precision.executed(model.precision, chosen), gpu.sm, chosen)
        if reason:
            raise UsageError(f"{settings.checkpoint} in {model.precision} cannot run on vLLM on {gpu.name}: {reason}.")
