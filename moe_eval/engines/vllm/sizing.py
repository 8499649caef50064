"""The window, and the GPU memory that the key-value cache takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from moe_eval.checkpoint import geometry
from moe_eval.engines.options import number
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

# Two positions more than the window: a prompt has to leave room for one generated token, and the window's last token is
# read as well, because its log-probability is requested as a prompt's.
EXTRA_POSITIONS = 2
MIN_WINDOW = 16
_MIN_LIMIT = MIN_WINDOW + EXTRA_POSITIONS
# Logits of a request's prompt tokens in one iteration, in bytes for every entry of the vocabulary: as the output layer
# leaves them in 16 bits, as float32, and as their log-softmax. vLLM's own start-up measurement does not count them.
_LOGIT_BYTES = 10
# the share of the GPU's memory that these logits may take, and vLLM's default share for everything
_LOGIT_SHARE, _TOTAL_SHARE = 0.1, 0.92
# left beside other programs: vLLM's own context on the GPU, which its start-up check does not count as free
_CONTEXT_SHARE = 0.03
_BLOCK, _LATENT_BLOCK = 16, 128
# vLLM's start-up check requires this share to be free even if the cache's size is set and the share is not used
MIN_UTILIZATION = 0.01

ModelConfig = Mapping[str, Any]  # config.json


@frozen
class Limits:
    """The constructor's length limit and the window that follows from it, in tokens."""

    window: int
    max_model_len: int


def limits(options: Mapping[str, object], max_length: int | None, positions: int) -> Limits:
    """The window and the length limit of the constructor.

    Args:
        options: the user's max_model_len counts.
        max_length: the user's window.
        positions: what the model supports. vLLM refuses a larger max_model_len.
    """
    longest = min(positions, number(options, "max_model_len") or positions)
    if longest < _MIN_LIMIT:
        raise UsageError(f"max_model_len={longest} leaves too small a window. Give at least {_MIN_LIMIT}.")
    window = longest - EXTRA_POSITIONS if max_length is None else max_length
    if not MIN_WINDOW <= window <= longest - EXTRA_POSITIONS:
        raise UsageError(
            f"max_length={max_length} does not fit: vLLM needs {EXTRA_POSITIONS} positions beside the window, and this "
            f"model has {longest}. Give {MIN_WINDOW} to {longest - EXTRA_POSITIONS}."
        )
    return Limits(window, longest if "max_model_len" in options else window + EXTRA_POSITIONS)


def memory(gpu_bytes: int | None, vocabulary: int, window: int, used_share: float = 0.0) -> dict[str, float]:
    """gpu_memory_utilization, and max_num_batched_tokens if a whole window's logits would not fit.

    Args:
        gpu_bytes: of the smallest GPU, or None if there is none.
        vocabulary: entries of a row of logits.
        window: tokens of the longest prompt that is scored.
        used_share: of the memory, that other programs hold. vLLM does not start where its own share is not free.
    """
    if gpu_bytes is None:
        return {}
    row = _LOGIT_BYTES * vocabulary
    fit = max(512, int(gpu_bytes * _LOGIT_SHARE) // row // 256 * 256)
    share = min(_TOTAL_SHARE, 1 - used_share - _CONTEXT_SHARE) - min(window, fit) * row / gpu_bytes
    settings: dict[str, float] = {"gpu_memory_utilization": round(max(MIN_UTILIZATION, share), 3)}
    if window > fit:
        settings["max_num_batched_tokens"] = fit
    return settings


def cache_bytes(
    config: ModelConfig, options: Mapping[str, object], dtype: str, tokens: int, sequences: int
) -> int | None:
    """Bytes of key-value cache on each GPU that hold this many tokens, or None if the model's geometry is not plain.

    Args:
        config: of the language model.
        options: block_size, kv_cache_dtype and the parallel sizes count.
        dtype: torch's name of the model's type.
        tokens: of all sequences together. vLLM requires room for one of max_model_len in any case.
        sequences: at once. Each leaves a part of its last block empty.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads or "index_topk" in config or len(set(config.get("layer_types") or ())) > 1:
        return None
    sizes = geometry.read(config)
    if sizes is not None and not sizes.is_plain:
        return None
    head_dim = config.get("head_dim") or int(config.get("hidden_size") or 0) // int(heads)
    if not head_dim or "linear" in str(config.get("layer_types")):
        return None
    tensor = number(options, "tensor_parallel_size") or 1
    pipeline = number(options, "pipeline_parallel_size") or 1
    if config.get("kv_lora_rank"):
        # latent attention: one latent and one rotary key for all heads, on every GPU
        numbers = int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0)
        default_block = _LATENT_BLOCK
    else:
        numbers = 2 * max(1, int(config.get("num_key_value_heads") or heads) // tensor) * int(head_dim)
        default_block = _BLOCK
    cache = str(options.get("kv_cache_dtype", "auto"))
    width = 1 if cache.startswith(("fp8", "int8")) else 4 if (dtype if cache == "auto" else cache) == "float32" else 2
    block = number(options, "block_size") or default_block
    # a block more for every sequence, vLLM's own null block, and one for a token scheduled ahead
    blocks = math.ceil(tokens / block) + sequences + 2
    return math.ceil(int(layers) / pipeline) * numbers * width * block * blocks
