"""What is known to be bad of a version, told before it loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_eval.checkpoint.precision import is_in
from moe_eval.machine.hardware import Gpu


@dataclass(frozen=True)
class KnownBad:
    """A fault of some versions.

    Attributes:
        architectures: beginnings of the names of the models that have it.
        precisions, sm: which it is limited to. Empty for all.
    """

    versions: str
    architectures: tuple[str, ...]
    sentence: str
    precisions: tuple[str, ...] = ()
    sm: tuple[int, ...] = ()


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
)


def known_bad(version: str, architecture: str, precision: str, gpus: Sequence[Gpu]) -> list[str]:
    """A sentence for every known fault of this version with this model."""
    return [
        known.sentence
        for known in _KNOWN_BAD
        if is_in(known.versions, version)
        and architecture.startswith(known.architectures)
        and (not known.precisions or precision in known.precisions)
        and (not known.sm or any(gpu.sm in known.sm for gpu in gpus))
    ]
