"""How long a window is, and how much of the GPU's memory the key-value cache takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_eval.engines.options import number
from moe_eval.errors import UsageError

# A prompt has to leave room for one generated token, and a window's last token is read as well, since its
# log-probability is asked for as a prompt's: two positions more than the window.
BEYOND = 2
LEAST = 16
# Logits of a request's prompt tokens in one iteration, in bytes for every entry of the vocabulary: as the output layer
# leaves them in 16 bits, as float32, and as their log-softmax. vLLM's own start-up measurement does not hold them.
_LOGIT_BYTES = 10
# the share of the GPU's memory that these may take, and vLLM's default of what it takes in all
_LOGIT_SHARE, _IN_ALL = 0.1, 0.92
_BLOCK = 16
# vLLM's start-up check wants this share free even where the cache's size is given and the share is not used
LITTLE = 0.01


@dataclass(frozen=True)
class Limits:
    """What goes to the constructor, and the window that follows from it; all in tokens."""

    window: int
    max_model_len: int


def limits(options: Mapping[str, Any], max_length: int | None, positions: int) -> Limits:
    """The window and the length limit of the constructor.

    Args:
        options: max_model_len counts, where the user set it.
        max_length: the window the user asked for.
        positions: what the model supports; vLLM refuses a larger max_model_len.

    Raises:
        UsageError: what was asked for does not fit together.
    """
    longest = min(positions, number(options, "max_model_len") or positions)
    if longest < LEAST + BEYOND:
        raise UsageError(f"max_model_len={longest} leaves too small a window; give at least {LEAST + BEYOND}.")
    window = longest - BEYOND if max_length is None else max_length
    if not LEAST <= window <= longest - BEYOND:
        raise UsageError(
            f"max_length={max_length} does not fit: vLLM needs {BEYOND} positions beside the window and this model has "
            f"{longest}; give {LEAST} to {longest - BEYOND}."
        )
    return Limits(window, longest if "max_model_len" in options else window + BEYOND)


def memory(gpu_bytes: int | None, vocabulary: int, window: int) -> dict[str, Any]:
    """gpu_memory_utilization, and max_num_batched_tokens where a whole window's logits would not fit.

    Args:
        gpu_bytes: of the smallest GPU; None where there is none to ask.
        vocabulary: entries of a row of logits.
        window: tokens of the longest prompt that is scored.
    """
    if gpu_bytes is None:
        return {}
    row = _LOGIT_BYTES * vocabulary
    fit = max(512, int(gpu_bytes * _LOGIT_SHARE) // row // 256 * 256)
    found: dict[str, Any] = {"gpu_memory_utilization": round(_IN_ALL - min(window, fit) * row / gpu_bytes, 3)}
    if window > fit:
        found["max_num_batched_tokens"] = fit
    return found


def cache_bytes(
    config: Mapping[str, Any], options: Mapping[str, Any], dtype: str, tokens: int, sequences: int
) -> int | None:
    """Bytes of key-value cache on each GPU that hold this many tokens, None where the model's geometry is not plain.

    Args:
        config: of the language model.
        options: block_size, kv_cache_dtype and the parallel sizes count.
        dtype: torch's name of the model's type.
        tokens: of all sequences together; vLLM wants room for one of max_model_len in any case.
        sequences: at once; each leaves a part of its last block empty.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads or "index_topk" in config or len(set(config.get("layer_types") or ["one"])) > 1:
        return None
    head_dim = config.get("head_dim") or int(config.get("hidden_size") or 0) // int(heads)
    if not head_dim or "linear" in str(config.get("layer_types")):
        return None
    tensor = number(options, "tensor_parallel_size") or 1
    pipeline = number(options, "pipeline_parallel_size") or 1
    kept, smallest = max(1, int(config.get("num_key_value_heads") or heads) // tensor), _BLOCK
    numbers = 2 * kept * int(head_dim)
    if config.get("kv_lora_rank"):
        # latent attention: one latent and one rotary key for all heads, on every GPU, in blocks of up to 128
        numbers, smallest = int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0), 128
    cache = str(options.get("kv_cache_dtype", "auto"))
    width = 1 if cache.startswith(("fp8", "int8")) else 4 if (dtype if cache == "auto" else cache) == "float32" else 2
    block = number(options, "block_size") or smallest
    # a block more for every sequence, vLLM's own null block, and one for a token scheduled ahead
    blocks = math.ceil(tokens / block) + sequences + 2
    return math.ceil(int(layers) / pipeline) * numbers * width * block * blocks
