"""What is known to be bad of a version, told before it loads."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from moe_eval.checkpoint.precision import is_in
from moe_eval.engines.served.checkpoint import Model
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu


@frozen
class KnownBad:
    """A fault of some versions.

    Attributes:
        architectures: beginnings of the names of the models that have it.
        precisions, sm, options: which it is limited to. Empty for all.
    """

    versions: str
    architectures: tuple[str, ...]
    sentence: str
    precisions: tuple[str, ...] = ()
    sm: tuple[int, ...] = ()
    options: tuple[str, ...] = ()


# Source: TensorRT-LLM's release notes and issues
_KNOWN_BAD = (
    KnownBad(
        "==1.3.0rc24",
        ("Qwen3Moe",),
        "TensorRT-LLM 1.3.0rc24 lists a known issue with Qwen3 MoE in its release notes. Use another version if this "
        "run fails or its scores are off.",
    ),
    KnownBad(
        "<1.2.0",
        ("Qwen3Moe",),
        "TensorRT-LLM's issue 9021 tells of failures of Qwen3 in FP8 on B200. Use 1.2.0 or newer if this run fails.",
        precisions=("fp8", "fp8_block"),
        sm=(100, 103),
    ),
    KnownBad(
        "==1.3.0rc26",
        ("Qwen3Moe",),
        "TensorRT-LLM 1.3.0rc26 ignores LoRA on the routed experts of Qwen3 without a word. Use another version.",
        options=("enable_lora", "lora_config"),
    ),
)


def known_bad(version: str, model: Model, options: Collection[str], gpus: Sequence[Gpu]) -> list[str]:
    """A sentence for every known fault of this version with this model and options of these names."""
    return [
        known.sentence
        for known in _KNOWN_BAD
        if is_in(known.versions, version)
        and model.architecture.startswith(known.architectures)
        and (not known.precisions or model.precision in known.precisions)
        and (not known.options or any(name in options for name in known.options))
        and (not known.sm or any(gpu.sm in known.sm for gpu in gpus))
    ]
