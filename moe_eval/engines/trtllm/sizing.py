"""The window and the token limits that the memory allows if logits of every prompt token are returned."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.engines.options import number
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

# Every prompt token of an iteration has three copies of its logits in float32: as the output layer leaves them, in the
# request's own store, and as their log-softmax.
COPIES = 3
# The key-value cache takes this share of the memory that the weights leave free, instead of TensorRT-LLM's 0.9. The
# other half is for logits and activations.
KV_FRACTION = 0.5
_RUNTIME_BYTES = 4 << 30  # CUDA context, workspaces and graphs
_MIN_TOKENS, _MAX_TOKENS, _TOKENS_OF_UNKNOWN_MEMORY = 512, 8192, 4096
# Two positions more than the window: a prompt has to be shorter than the sequence limit, and for log-probabilities of
# the prompt the window's last token is read as well.
EXTRA_POSITIONS = 2
# what the self-test needs
MIN_WINDOW = 16
_MIN_LIMIT = MIN_WINDOW + EXTRA_POSITIONS
_TRUE = ("true", "on", "yes", "t", "y", "1")


@frozen
class Limits:
    """The constructor's limits and the window that follows from them, in tokens."""

    window: int
    max_seq_len: int
    max_num_tokens: int


def tokens_at_once(vocabulary: int, free_bytes: int | None) -> int:
    """The number of prompt tokens whose logits fit into the free memory that the key-value cache leaves.

    Args:
        vocabulary: entries of a row of logits. A row has COPIES x 4 bytes x vocabulary.
        free_bytes: of one GPU with the weights loaded, or None if it is unknown.

    Returns:
        A multiple of 256, at least 512 and at most 8,192, TensorRT-LLM's own default.
    """
    if free_bytes is None:
        return _TOKENS_OF_UNKNOWN_MEMORY
    fit = int(free_bytes * (1 - KV_FRACTION)) // (COPIES * 4 * vocabulary)
    return max(_MIN_TOKENS, min(_MAX_TOKENS, fit // 256 * 256))


def free_bytes(gpu_bytes: int | None, weight_bytes: int | None, world: int) -> int | None:
    """Bytes that one GPU's share of the weights leaves free, or None if either size is unknown."""
    if gpu_bytes is None or weight_bytes is None:
        return None
    return max(0, gpu_bytes - weight_bytes // world - _RUNTIME_BYTES)


def limits(options: Mapping[str, object], max_length: int | None, positions: int, at_once: int) -> Limits:
    """The window and the limits of the constructor.

    Args:
        options: the user's max_seq_len, max_num_tokens and enable_chunked_prefill count.
        max_length: the user's window.
        positions: what the model supports. TensorRT-LLM cuts a larger max_seq_len down to it without an error.
        at_once: see tokens_at_once.
    """
    longest = min(positions, number(options, "max_seq_len") or positions)
    if longest < _MIN_LIMIT:
        raise UsageError(f"max_seq_len={longest} leaves too small a window. Give at least {_MIN_LIMIT}.")
    chunked = str(options.get("enable_chunked_prefill", False)).lower() in _TRUE
    budget = number(options, "max_num_tokens")
    if max_length is None:
        window = longest - EXTRA_POSITIONS
        if not chunked:
            window = min(window, (budget or at_once) - EXTRA_POSITIONS)
        if window < MIN_WINDOW:
            raise UsageError(f"max_num_tokens={budget} leaves too small a window. Give at least {_MIN_LIMIT}.")
    else:
        window = max_length
        if not MIN_WINDOW <= window <= longest - EXTRA_POSITIONS:
            raise UsageError(
                f"max_length={max_length} does not fit: TensorRT-LLM needs {EXTRA_POSITIONS} positions beside the "
                f"window, and this model has {longest}. Give {MIN_WINDOW} to {longest - EXTRA_POSITIONS}."
            )
        if budget is not None and not chunked and window + EXTRA_POSITIONS > budget:
            raise UsageError(
                f"max_num_tokens={budget} is too small for max_length={max_length}. Give max_num_tokens="
                f"{window + EXTRA_POSITIONS} or more, or enable_chunked_prefill=true."
            )
    if budget is None:
        budget = at_once if chunked else max(at_once, window + EXTRA_POSITIONS)
    return Limits(window, max(longest if "max_seq_len" in options else 0, window + EXTRA_POSITIONS), budget)
