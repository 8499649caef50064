"""What vLLM raises, as one sentence."""

from __future__ import annotations

import pydantic

from moe_eval.checkpoint import hub
from moe_eval.errors import EngineError, UsageError

_MEMORY = ("out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
_CACHE = ("No available memory for the cache blocks", "KV cache is needed", "less than desired GPU memory utilization")
_NO_GPU = (
    *("Found no NVIDIA driver", "No CUDA GPUs are available", "no CUDA-capable device", "libcuda.so"),
    "Failed to infer device type",
)
_DEAD = ("EngineDeadError", "EngineGenerateError")


def explained(error: BaseException, version: str, checkpoint: str, doing: str) -> Exception:
    """The error to raise in place of one of vLLM's.

    Args:
        doing: `loading` or what else was going on, for the sentence.

    Returns:
        A UsageError where the user has something to change, an EngineError where the engine broke down.
    """
    if isinstance(error, (UsageError, EngineError)):
        return error
    text = " ".join(str(error).split())
    known = _known(text, checkpoint, doing)
    if known is not None:
        return UsageError(known)
    if hub.unreachable(error):
        return UsageError(hub.sentence(checkpoint))
    if isinstance(error, pydantic.ValidationError):  # its text would show every argument
        text = "; ".join(str(each["msg"]) for each in error.errors())
    said = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    if type(error).__name__ in _DEAD:
        said = "its process has ended; its last words are above"
    if doing == "loading":
        return UsageError(f"vLLM {version} cannot load {checkpoint} ({said}).")
    return EngineError(f"vLLM {version} failed while {doing} {checkpoint} ({said}).")


def _known(text: str, checkpoint: str, doing: str) -> str | None:
    """What to say of a message that means something to mend."""
    if any(words in text for words in _CACHE):
        return (
            f"The GPU's free memory does not hold a key-value cache for {checkpoint}; give a smaller max_length or "
            "another gpu_memory_utilization, more GPUs with tensor_parallel_size, or end what else uses the GPU "
            f"({text[:200].rstrip('. ')})."
        )
    if any(words in text for words in _MEMORY):
        return (
            f"The GPU's memory does not suffice for {doing} {checkpoint}; give a smaller max_num_batched_tokens, a "
            "smaller max_num_seqs or a smaller gpu_memory_utilization, or more GPUs with tensor_parallel_size."
        )
    if any(words in text for words in _NO_GPU):
        return "vLLM finds no NVIDIA GPU here; run it where nvidia-smi shows one, or give engine=transformers."
    return None
