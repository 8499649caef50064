"""What to load and where, settled before a served engine's library is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from moe_eval.checkpoint import contents, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import number
from moe_eval.engines.served.checkpoint import Model, read_model
from moe_eval.engines.served.package import Traits
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine import hardware
from moe_eval.machine.nvml import Nvml

# in place of a checkpoint's fingerprint if its weights are not read
_DUMMY_FINGERPRINT = "random weights (load_format=dummy)"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@frozen
class Placement:
    """Over how many GPUs the engine is to run, and whether in this process."""

    world: int
    in_process: bool


def take_placement(traits: Traits, options: dict[str, object], *, launched: bool = False) -> Placement:
    """Take `worker` out of the options and multiply the parallel sizes.

    Args:
        launched: whether ranks of a launcher are there.
    """
    worker = options.pop("worker", None)
    if worker not in (None, "in_process", "spawned"):
        raise UsageError(f"worker={worker} does not exist. Give worker=in_process or worker=spawned.")
    world = 1
    for size in traits.parallel_sizes:
        world *= number(options, size) or 1
    if worker == "in_process" and world > 1:
        raise UsageError(f"worker=in_process is for one GPU, and the parallel sizes ask for {world}. Omit worker.")
    # only in this process can CUDA events, torch's profiler and the observers reach the model
    return Placement(world, worker == "in_process" or (worker is None and world == 1 and not launched))


@frozen
class Plan:
    """What to load, and where. `options` are those of the settings that are the library's own."""

    traits: Traits
    settings: EngineSettings
    options: dict[str, object]
    placement: Placement
    model: Model
    vocabulary: int

    @property
    def dummy(self) -> bool:
        """Whether the library itself is to make up the weights."""
        return str(self.options.get("load_format", "")).lower() == "dummy"

    @property
    def weights(self) -> Literal["checkpoint", "random"]:
        """Where the weights come from."""
        return "random" if self.dummy else self.model.weights

    @property
    def fingerprint(self) -> str:
        """What identifies the weights."""
        return _DUMMY_FINGERPRINT if self.dummy else self.model.fingerprint

    @property
    def gpu_bytes(self) -> int | None:
        """The memory of the smallest GPU, or None if there is none."""
        return min((gpu.memory_bytes for gpu in hardware.gpus()[: self.placement.world]), default=None)

    @property
    def used_share(self) -> float:
        """The share of memory that other programs hold, of the GPU where it is the largest. 0 where NVML tells none."""
        gpus = hardware.gpus()[: self.placement.world]
        with Nvml.open([gpu.uuid for gpu in gpus]) as nvml:
            used = nvml.used_bytes() if nvml.why_not is None else ()
        return max(((count or 0) / gpu.memory_bytes for count, gpu in zip(used, gpus, strict=False)), default=0.0)

    def constructor_arguments(self, tokenizer: Any) -> dict[str, object]:
        """The arguments of the library's LLM that say what to load."""
        arguments: dict[str, object] = {
            "model": self.model.name,
            "dtype": self.model.dtype if self.model.carried.method == "none" else self.settings.dtype,
            "revision": self.settings.revision,
            "trust_remote_code": self.settings.trust_remote_code,
        }
        if str(tokenizer.name_or_path) != self.model.name:
            arguments["tokenizer"] = str(tokenizer.name_or_path)
        return arguments


def make(
    traits: Traits,
    settings: EngineSettings,
    options: dict[str, object],
    placement: Placement,
    tokenizer: Any,
    *,
    weights: Literal["checkpoint", "random"] = "checkpoint",
    launched: bool = False,
) -> Plan:
    """Read the checkpoint and check the machine, or raise a UsageError."""
    model = read_model(traits, settings, weights)
    plan = Plan(traits, settings, options, placement, model, int(str(model.config.get("vocab_size") or len(tokenizer))))
    check_machine(plan, launched=launched)
    return plan


def check(
    traits: Traits,
    settings: EngineSettings,
    options: dict[str, object],
    placement: Placement,
    gpus: Sequence[hardware.Gpu],
    *,
    experts_over: int,
    weights: Literal["checkpoint", "random"] = "checkpoint",
    reads_weights: bool = True,
    launched: bool = False,
) -> None:
    """Refuse what these GPUs cannot run, before the library is imported: `make` does the same where it loads.

    Args:
        gpus: all that there are.
        experts_over: GPUs that whole experts are spread over. 1 where every GPU has a part of every expert.
        reads_weights: whether the weights have to be there.

    Raises:
        UsageError: with the reason.
    """
    model = read_model(traits, settings, weights)
    plan = Plan(traits, settings, options, placement, model, 0)
    local = contents.local_folder(settings.checkpoint)
    if local and reads_weights and plan.weights == "checkpoint":
        contents.require_weights(model.folder)
    check_machine(plan, launched=launched, gpus=gpus)
    _check_split(plan, experts_over)


def _check_split(plan: Plan, experts_over: int) -> None:
    """Refuse parallel sizes that divide neither heads nor experts.

    Engines put whole heads on a GPU, and with expert parallelism whole experts: an uneven split has no kernels, or
    leaves some GPUs waiting.
    """
    config, options, name = plan.model.config, plan.options, plan.settings.checkpoint
    tensor = 1 if options.get("enable_attention_dp") else number(options, "tensor_parallel_size") or 1
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads % tensor:
        raise UsageError(
            f"tensor_parallel_size={tensor} does not divide the {heads} attention heads of {name}. Give a divisor."
        )
    kv_heads = config.get("num_key_value_heads")
    if isinstance(kv_heads, int) and kv_heads % tensor and tensor % kv_heads:
        raise UsageError(
            f"tensor_parallel_size={tensor} neither divides the {kv_heads} key-value heads of {name} nor is a multiple "
            "of them. Give a divisor."
        )
    experts = next((config[size] for size in _EXPERTS if config.get(size)), None)
    if isinstance(experts, int) and experts % experts_over:
        raise UsageError(
            f"Expert parallelism over {experts_over} GPUs does not divide the {experts} experts of {name}. "
            "Give a divisor."
        )


def check_version(plan: Plan, version: str) -> None:
    """Refuse what the installed version cannot read or run on this machine.

    Without a named implementation of experts it is the version's own choice, AUTO, that has to run.
    """
    method = plan.model.carried.method
    reason = plan.traits.why_unreadable(method, version)
    if reason is not None:
        raise UsageError(f"{plan.settings.checkpoint} is quantised as {method}, which {reason}")
    _check_gpus(plan, hardware.gpus(), version)


def check_machine(plan: Plan, *, launched: bool = False, gpus: Sequence[hardware.Gpu] | None = None) -> None:
    """Refuse what this machine cannot run. Without a GPU the library itself reports the lack.

    Args:
        gpus: to run on. None for those that torch sees.
    """
    traits, settings, options, world = plan.traits, plan.settings, plan.options, plan.placement.world
    if settings.device is not None and not settings.device.startswith("cuda"):
        raise UsageError(
            f"{traits.title} runs on NVIDIA GPUs only, not on device={settings.device}. Omit device, and choose GPUs "
            "with CUDA_VISIBLE_DEVICES."
        )
    gpus = hardware.gpus() if gpus is None else gpus
    if world > max(1, len(gpus)) and not launched and traits.cluster_option not in options:
        raise UsageError(
            f"The parallel sizes ask for {world} GPUs, and this machine has {len(gpus)}. Give a smaller "
            f"tensor_parallel_size, or {traits.cluster_fix}."
        )
    _check_gpus(plan, gpus)


def _check_gpus(plan: Plan, gpus: Sequence[hardware.Gpu], version: str | None = None) -> None:
    """Refuse a precision that a GPU does not run, with the chosen implementation of experts."""
    requested = str(plan.options.get("moe_backend", "auto")).replace("-", "_")
    backend = None if requested.lower() == "auto" else requested
    executed = precision.executed(plan.model.precision, backend)
    if version is not None:
        backend = backend or "AUTO"
    for gpu in gpus[: plan.placement.world]:
        reason = precision.why_not(plan.traits.name, executed, gpu.sm, backend, version)
        if reason:
            raise UsageError(
                f"{plan.traits.title} cannot run {plan.settings.checkpoint} in {plan.model.precision} on {gpu.name}: "
                f"{reason}."
            )


def device_name(world: int) -> str:
    """The hardware's name for the labels, with the number of GPUs if there are several."""
    gpus = hardware.gpus()[:world]
    if not gpus:
        return "cpu"
    return f"{world} x {gpus[0].name}" if world > 1 else gpus[0].name
