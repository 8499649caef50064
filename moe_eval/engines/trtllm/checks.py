"""What is settled before tensorrt_llm is imported: the checkpoint, the machine, and this engine's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import take_worker
from moe_eval.engines.trtllm import observe
from moe_eval.errors import UsageError
from moe_eval.machine import hardware

# quantisations that TensorRT-LLM's readers know, by the first word of checkpoint.Carried.method
_READS = ("none", "fp8", "modelopt", "compressed-tensors")


@dataclass(frozen=True)
class Model:
    """What a checkpoint's files say before it is loaded.

    Attributes:
        folder: with its JSON files.
        config: config.json, the settings of the language model itself on the top level.
        precision: what the experts will compute in.
        dtype: torch's name of the type outside quantised layers.
        fingerprint: see EngineFacts.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    carried: contents.Carried
    precision: str
    dtype: str
    fingerprint: str


@dataclass(frozen=True)
class Placement:
    """Where the engine is to run.

    Attributes:
        world: GPUs that the parallel sizes ask for together.
        in_process: whether in this process.
        disable_fusion: whether to switch Qwen3's fusion of all-reduce and norm off.
    """

    world: int
    in_process: bool
    disable_fusion: bool


def read_model(settings: EngineSettings) -> Model:
    """Read what the checkpoint is.

    Raises:
        UsageError: it is not here, is damaged, or holds another precision than asked for or one that cannot be read.
    """
    local = contents.local_folder(settings.checkpoint)
    folder = contents.settings_folder(settings.checkpoint, settings.revision)
    if local:
        contents.check_weights(folder)
    carried = contents.carried(folder)
    if carried.method.split()[0] not in _READS or carried.precision is None:
        raise UsageError(
            f"{settings.checkpoint} is quantised as {carried.method}, which moe_eval cannot run on TensorRT-LLM; give "
            "a checkpoint in BF16, FP8 (ModelOpt or blocks of 128x128) or NVFP4."
        )
    config = contents.read_config(folder)
    held, dtype = _precision(settings, carried, contents.stored_dtype(config))
    return Model(
        name=str(local or settings.checkpoint),
        folder=folder,
        config=contents.text_config(config),
        carried=carried,
        precision=held,
        dtype=dtype,
        # the hub's cache keeps a folder for each commit
        fingerprint=contents.fingerprint(folder) if local else f"{settings.checkpoint}@{folder.name}",
    )


def _precision(settings: EngineSettings, carried: contents.Carried, stored: str) -> tuple[str, str]:
    """The precision of the experts and the dtype of the rest."""
    names = precision.OF_DTYPE
    if settings.dtype != "auto" and settings.dtype not in names:
        raise UsageError(f"There is no dtype {settings.dtype!r} here; choose auto, {', '.join(names)}.")
    dtype = stored if settings.dtype == "auto" else settings.dtype
    held = str(carried.precision)
    if carried.method == "none":
        if settings.dtype == "auto" and settings.precision in precision.DTYPE_OF:
            dtype = precision.DTYPE_OF[settings.precision]
        held = names[dtype]
    if settings.precision not in (None, held):
        found = held if carried.method == "none" else f"{held} ({carried.method})"
        raise UsageError(
            f"precision={settings.precision} was asked for and {settings.checkpoint} holds {found}; give the "
            f"checkpoint that holds {settings.precision}, or leave precision out."
        )
    return held, dtype


def take_placement(options: dict[str, Any]) -> Placement:
    """Take `worker` and `disable_fusion` out of the options and say where the engine is to run.

    Raises:
        UsageError: a value that means nothing, or an in-process worker for several GPUs.
    """
    asked, world = take_worker(options, ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"))
    fusion = str(options.pop("disable_fusion", False)).lower()
    if fusion not in ("true", "false", "on", "off"):
        raise UsageError(f"disable_fusion={fusion} is neither on nor off; give disable_fusion=on or leave it out.")
    in_process = asked == "in_process" or (asked is None and world == 1 and not observe.launched())
    return Placement(world, in_process, fusion in ("true", "on"))


def check_machine(settings: EngineSettings, options: Mapping[str, Any], model: Model, world: int) -> None:
    """Refuse what this machine cannot run. Without a GPU the library is left to say so itself.

    Raises:
        UsageError: too few GPUs, or GPUs that do not run the precision.
    """
    if settings.device is not None and not str(settings.device).startswith("cuda"):
        raise UsageError(
            f"device={settings.device}: TensorRT-LLM runs on NVIDIA GPUs alone; leave device out (CUDA_VISIBLE_DEVICES "
            "chooses among them)."
        )
    gpus = hardware.gpus()
    if world > max(1, len(gpus)) and not observe.launched() and "orchestrator_type" not in options:
        raise UsageError(
            f"The parallel sizes ask for {world} GPUs and this machine has {len(gpus)}; give a smaller "
            "tensor_parallel_size, or start one process per GPU with mpirun and trtllm-llmapi-launch."
        )
    backend = str(options.get("moe_backend", "auto"))
    for gpu in gpus[:world]:
        chosen = None if backend.lower() == "auto" else backend
        reason = precision.why_not("trtllm", precision.executed(model.precision, chosen), gpu.sm, chosen)
        if reason:
            raise UsageError(
                f"{settings.checkpoint} holds {model.precision}, which TensorRT-LLM cannot run on {gpu.name}: {reason}."
            )
