"""How long a window and how many tokens at once the memory allows when logits of every prompt token are returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_eval.engines.options import number
from moe_eval.errors import UsageError

# Every prompt token of an iteration has its logits in float32 three times over: as the output layer leaves them, in
# the request's own store, and as their log-softmax.
COPIES = 3
# The key-value cache takes this share of what is free once the weights are loaded, in place of TensorRT-LLM's 0.9:
# the other half is for logits and activations.
KV_FRACTION = 0.5
_RUNTIME_BYTES = 4 << 30  # CUDA context, workspaces and graphs
_FEWEST, _MOST, _UNKNOWN = 512, 8192, 4096
# A prompt has to be shorter than the sequence limit, and a window's last token is read as well where log-probabilities
# of the prompt are asked for: two positions more than the window.
BEYOND = 2
# what the self-test needs
LEAST = 16


@dataclass(frozen=True)
class Limits:
    """What goes to the constructor, and the window that follows from it; all in tokens."""

    window: int
    max_seq_len: int
    max_num_tokens: int


def tokens_at_once(vocabulary: int, free_bytes: int | None) -> int:
    """How many prompt tokens' logits fit into the half of the free memory that the key-value cache leaves.

    Args:
        vocabulary: entries of a row of logits; a row is COPIES x 4 bytes x vocabulary.
        free_bytes: of one GPU with the weights loaded; None where it cannot be known.

    Returns:
        A multiple of 256, at least 512 and at most 8,192, TensorRT-LLM's own default.
    """
    if free_bytes is None:
        return _UNKNOWN
    fit = int(free_bytes * (1 - KV_FRACTION)) // (COPIES * 4 * vocabulary)
    return max(_FEWEST, min(_MOST, fit // 256 * 256))


def free_bytes(gpu_bytes: int | None, weight_bytes: int | None, world: int) -> int | None:
    """What one GPU has left beside its share of the weights; None where either is unknown."""
    if gpu_bytes is None or weight_bytes is None:
        return None
    return max(0, gpu_bytes - weight_bytes // world - _RUNTIME_BYTES)


def limits(options: Mapping[str, Any], max_length: int | None, positions: int, at_once: int) -> Limits:
    """The window and the limits of the constructor.

    Args:
        options: max_seq_len, max_num_tokens and enable_chunked_prefill count, where the user set them.
        max_length: the window the user asked for.
        positions: what the model supports; TensorRT-LLM cuts a larger max_seq_len down to it without an error.
        at_once: see tokens_at_once.

    Raises:
        UsageError: what was asked for does not fit together.
    """
    longest = min(positions, number(options, "max_seq_len") or positions)
    if longest < LEAST + BEYOND:
        raise UsageError(f"max_seq_len={longest} leaves too small a window; give at least {LEAST + BEYOND}.")
    chunked = str(options.get("enable_chunked_prefill", False)).lower() in ("true", "on", "yes", "t", "y", "1")
    budget = number(options, "max_num_tokens")
    if max_length is None:
        window = longest - BEYOND
        if not chunked:
            window = min(window, (budget or at_once) - BEYOND)
        if window < LEAST:
            raise UsageError(f"max_num_tokens={budget} leaves too small a window; give at least {LEAST + BEYOND}.")
    else:
        window = max_length
        if not LEAST <= window <= longest - BEYOND:
            raise UsageError(
                f"max_length={max_length} does not fit: TensorRT-LLM needs {BEYOND} positions beside the window and "
                f"this model has {longest}; give {LEAST} to {longest - BEYOND}."
            )
        if budget is not None and not chunked and window + BEYOND > budget:
            raise UsageError(
                f"max_length={max_length} needs max_num_tokens={window + BEYOND} or more, or "
                "enable_chunked_prefill=true."
            )
    if budget is None:
        budget = at_once if chunked else max(at_once, window + BEYOND)
    return Limits(window, max(longest if "max_seq_len" in options else 0, window + BEYOND), budget)
