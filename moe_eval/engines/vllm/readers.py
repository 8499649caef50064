"""Scores, times and experts, read from what vLLM returns.

Prompt log-probabilities are about every prompt token but the first: the token itself, then the k most probable ones,
most probable first. The core sends them as tensors of a whole prompt, which vLLM's frontend turns into Python objects
one by one. Where `keep_tensors` gets hold of the tensors, numpy reads them, else the flat lists of FlatLogprobs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.data.window import Window
from moe_eval.engines.base import RequestTimes, WindowScores
from moe_eval.errors import EngineError

Array = npt.NDArray[Any]

# a token that more than this many tokens equal or surpass counts as surpassed
_MAX_TIES = 8


def keep_tensors(engine: Any, request: str) -> list[Any]:
    """Keep the tensors of a request's prompt log-probabilities, instead of the objects that vLLM makes of them.

    Args:
        request: the name that its add_request returned.

    Returns:
        A list that the tensors will be appended to. It stays empty if this version stores requests in another way.
    """
    tensors: list[Any] = []
    states = getattr(getattr(engine, "output_processor", None), "request_states", {})
    processor: Any = getattr(states.get(request), "logprobs_processor", None)
    if hasattr(processor, "_update_prompt_logprobs"):
        processor._update_prompt_logprobs = tensors.append
    return tensors


def scores(output: Any, tensors: list[Any], window: Window, top_k: int) -> WindowScores:
    """The scores in the RequestOutput of a whole window that was sent as a prompt.

    Args:
        tensors: see keep_tensors.
        top_k: how many of the most probable tokens were requested. With 0 a token counts as greedy if no token is as
            probable: vLLM's rank also counts ties, which occur in 16 bits (see `ambiguous`).
    """
    prompt, width = len(window.context) + len(window.continuation), top_k + 1
    ids, logprobs, ranks = _from_tensors(tensors) if tensors else _from_lists(output.prompt_logprobs, width)
    if len(ids) != prompt - 1 or ids.shape != logprobs.shape or ids.shape[1:] != (width,):
        raise EngineError(
            f"vLLM returned {logprobs.size} log-probabilities for a prompt of {prompt} tokens instead of "
            f"{(prompt - 1) * width}. The scores would be wrong."
        )
    last = slice(prompt - 1 - len(window.continuation), None)
    ids, logprobs, ranks = ids[last], logprobs[last], ranks[last]
    if not np.array_equal(ids[:, 0], window.continuation):
        raise EngineError("vLLM's prompt log-probabilities belong to other tokens than those of the window.")
    return WindowScores(
        logprobs=np.ascontiguousarray(logprobs[:, 0]),
        greedy=logprobs[:, 0] >= logprobs[:, 1] if top_k else ranks == 1,
        top_ids=np.ascontiguousarray(ids[:, 1:]),
        top_logprobs=np.ascontiguousarray(logprobs[:, 1:]),
        of_ids=np.empty((len(logprobs), 0), dtype=np.float32),
    )


def ambiguous(output: Any, tensors: list[Any], window: Window) -> bool:
    """Whether ranks leave open if the whole continuation is greedy.

    They do if some token has a token that is as probable or more, and no token has many.
    """
    _, _, ranks = _from_tensors(tensors) if tensors else _from_lists(output.prompt_logprobs, 1)
    last = ranks[len(ranks) - len(window.continuation) :]
    return bool(last.max() <= _MAX_TIES and last.max() > 1)


def _from_tensors(tensors: list[Any]) -> tuple[Array, Array, Array]:
    """Token ids and log-probabilities, shape (tokens, width), and the ranks of the tokens themselves."""
    return (
        np.concatenate([part.logprob_token_ids.numpy() for part in tensors]).astype(np.int64),
        np.concatenate([part.logprobs.numpy() for part in tensors]).astype(np.float32),
        np.concatenate([part.selected_token_ranks.numpy() for part in tensors]),
    )


def _from_lists(flat: Any, width: int) -> tuple[Array, Array, Array]:
    """The same of FlatLogprobs, whose entry for the first prompt token is empty."""
    if flat is None or len(flat.logprobs) % width:
        return np.empty((0, width)), np.empty((0, width)), np.empty(0)
    ids, logprobs, ranks = (np.array(part).reshape(-1, width) for part in (flat.token_ids, flat.logprobs, flat.ranks))
    return ids.astype(np.int64), logprobs.astype(np.float32), ranks[:, 0]


def times(output: Any, start: float | None = None) -> RequestTimes | None:
    """The engine core's times, from the moment the request was queued, or from `start` on the core's clock.

    vLLM's arrival_time is wall-clock time of the requesting process. It does not compare with the core's monotonic
    clock.
    """
    metrics = output.metrics
    if metrics is None or not metrics.scheduled_ts:
        return None
    arrival = metrics.queued_ts if start is None else start
    moments = (metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts)
    return RequestTimes(*(moment - arrival for moment in moments))


def experts(output: Any, prompt: int) -> npt.NDArray[np.int16]:
    """The experts of every token that was read, shape (tokens, layers, top k)."""
    completion = output.outputs[0]
    routed = completion.routed_experts
    tokens = prompt + len(completion.token_ids) - 1
    if routed is None or routed.ndim != 3 or len(routed) != tokens:
        shape = None if routed is None else routed.shape
        raise EngineError(f"vLLM returned routed experts of shape {shape} for {tokens} tokens.")
    chosen: npt.NDArray[np.int16] = routed.astype(np.int16)
    return chosen


def routed_layers(
    chosen: list[npt.NDArray[np.int16]], routers: Collection[int] | None = None
) -> list[npt.NDArray[np.int16]]:
    """The experts without layers that have no router, for which vLLM returns zeros.

    Args:
        routers: the layers that have one. None where they are not known: then it is those that are not all 0, and all
            of a model that takes one expert for a token.
    """
    layers, top_k = chosen[0].shape[1:] if chosen else (0, 0)
    known = [layer in routers for layer in range(layers)] if routers and max(routers) < layers else None
    if top_k < 2:  # one expert of index 0 for every token is possible
        return chosen if known is None else [np.ascontiguousarray(rows[:, known]) for rows in chosen]
    routed = np.any([prompt_experts.any(axis=(0, 2)) for prompt_experts in chosen], axis=0)
    if not routed.any():
        raise EngineError(
            "vLLM returned no routed experts: this moe_backend routes inside its kernel. Give moe_backend=triton."
        )
    return [np.ascontiguousarray(prompt_experts[:, routed if known is None else known]) for prompt_experts in chosen]
