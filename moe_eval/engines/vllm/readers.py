"""Scores, times and experts, read from what vLLM returns.

Prompt log-probabilities: entry i of `prompt_logprobs` is about prompt token i, and entry 0 is empty (None). An entry
holds the token itself first, then the k most probable ones, most probable first. FlatLogprobs keeps all entries of a
request in a few flat lists, which numpy takes whole: no Python object for every token and candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.engines.base import RequestTimes, Window, WindowScores
from moe_eval.errors import EngineError


def scores(output: Any, window: Window, top_k: int) -> WindowScores:
    """The scores in the RequestOutput of a whole window that was sent as a prompt.

    Args:
        top_k: how many of the most probable tokens to return; at least one was asked for.

    Raises:
        EngineError: the log-probabilities are not those of the window's tokens.
    """
    flat, prompt = output.prompt_logprobs, len(window.context) + len(window.continuation)
    rows, width = len(window.continuation), max(1, top_k) + 1
    if flat is None or len(flat) != prompt or len(flat.logprobs) != (prompt - 1) * width:
        found = "no" if flat is None else f"{len(flat.logprobs)}"
        raise EngineError(
            f"vLLM returned {found} log-probabilities for a prompt of {prompt} tokens where {(prompt - 1) * width} "
            "were asked for; the scores would be wrong."
        )
    ids = np.array(flat.token_ids[-rows * width :], dtype=np.int64).reshape(rows, width)
    logprobs = np.array(flat.logprobs[-rows * width :], dtype=np.float32).reshape(rows, width)
    if not np.array_equal(ids[:, 0], window.continuation):
        raise EngineError("vLLM's prompt log-probabilities are not about the tokens they were asked for.")
    return WindowScores(
        logprobs=np.ascontiguousarray(logprobs[:, 0]),
        # vLLM's rank counts tokens of the same log-probability as well, so in 16 bits the first may have rank 2
        greedy=logprobs[:, 0] >= logprobs[:, 1],
        top_ids=np.ascontiguousarray(ids[:, 1 : 1 + top_k]),
        top_logprobs=np.ascontiguousarray(logprobs[:, 1 : 1 + top_k]),
    )


def times(output: Any) -> RequestTimes | None:
    """When the engine core did what, from the moment the request was in its queue.

    vLLM's arrival_time is wall-clock time of the process that asked; the rest is on the core's monotonic clock, and the
    two do not compare.
    """
    metrics = output.metrics
    if metrics is None or not metrics.scheduled_ts:
        return None
    arrival = metrics.queued_ts
    return RequestTimes(
        metrics.scheduled_ts - arrival, metrics.first_token_ts - arrival, metrics.last_token_ts - arrival
    )


def experts(output: Any, prompt: int) -> npt.NDArray[np.int16]:
    """The experts of every token that was read, shape (tokens, layers, top k).

    Raises:
        EngineError: there are none, or not a row for every token.
    """
    completion = output.outputs[0]
    found = completion.routed_experts
    read = prompt + len(completion.token_ids) - 1
    if found is None or found.ndim != 3 or len(found) != read:
        shape = None if found is None else found.shape
        raise EngineError(f"vLLM returned routed experts of shape {shape} where {read} tokens were read.")
    chosen: npt.NDArray[np.int16] = found.astype(np.int16)
    return chosen


def routed_layers(chosen: list[npt.NDArray[np.int16]]) -> list[npt.NDArray[np.int16]]:
    """The same without layers that have no router: vLLM keeps rows of zeros for those.

    Raises:
        EngineError: every layer is empty, so the experts' kernel routes without telling.
    """
    top_k = chosen[0].shape[2] if chosen else 0
    if top_k < 2:  # one expert of index 0 for every token is possible
        return chosen
    told = np.any([each.any(axis=(0, 2)) for each in chosen], axis=0)
    if not told.any():
        raise EngineError(
            "vLLM returned no routed experts: this moe_backend routes inside its kernel; give moe_backend=triton."
        )
    return [np.ascontiguousarray(each[:, told]) for each in chosen]
