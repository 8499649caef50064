"""What TensorRT-LLM raises, as one sentence."""

from __future__ import annotations

import pydantic

from moe_eval.checkpoint import hub
from moe_eval.errors import EngineError, UsageError

_MEMORY = ("out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
_NO_GPU = ("Found no NVIDIA driver", "No CUDA GPUs are available", "no CUDA-capable device", "libcuda.so")


def explained(error: BaseException, version: str, checkpoint: str, doing: str) -> Exception:
    """The error to raise in place of one of TensorRT-LLM's.

    Args:
        doing: `loading` or what else was going on, for the sentence.

    Returns:
        A UsageError where the user has something to change, an EngineError where the engine broke down.
    """
    if isinstance(error, (UsageError, EngineError)):
        return error
    text = " ".join(str(error).split())
    if any(words in text for words in _MEMORY):
        return UsageError(
            f"The GPU's memory does not suffice for {doing} {checkpoint}; give a smaller max_num_tokens, a smaller "
            "max_batch_size or a smaller kv_cache_free_gpu_memory_fraction, or more GPUs with tensor_parallel_size."
        )
    if any(words in text for words in _NO_GPU):
        return UsageError(
            "TensorRT-LLM finds no NVIDIA GPU here; run it where nvidia-smi shows one, or give engine=transformers."
        )
    if hub.unreachable(error):
        return UsageError(hub.sentence(checkpoint))
    if isinstance(error, pydantic.ValidationError):  # its text would show every argument
        text = "; ".join(str(each["msg"]) for each in error.errors())
    said = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    if doing == "loading":
        return UsageError(f"TensorRT-LLM {version} cannot load {checkpoint} ({said}).")
    return EngineError(f"TensorRT-LLM {version} failed while {doing} {checkpoint} ({said}).")
