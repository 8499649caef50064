"""Scores, times and experts, read from what vLLM returns.

Prompt log-probabilities are about every prompt token but the first: the token itself, then the k most probable ones,
most probable first. The core sends them as tensors of a whole prompt, which vLLM's frontend turns into Python objects
one by one; where it lets them be kept (`keep`) numpy reads the tensors themselves, else the flat lists of FlatLogprobs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.data.window import Window
from moe_eval.engines.base import RequestTimes, WindowScores
from moe_eval.errors import EngineError

Array = npt.NDArray[Any]

# a token that more others equal or surpass is taken to be surpassed
_EQUALS = 8


def keep(engine: Any, request: str) -> list[Any]:
    """Have the tensors of a request's prompt log-probabilities kept as they come, in place of objects made of them.

    Args:
        engine: the LLMEngine; `request` is the name that its add_request returned.

    Returns:
        Where they will be; it stays empty where this version keeps its requests in another way.
    """
    kept: list[Any] = []
    states = getattr(getattr(engine, "output_processor", None), "request_states", {})
    processor: Any = getattr(states.get(request), "logprobs_processor", None)
    if hasattr(processor, "_update_prompt_logprobs"):
        processor._update_prompt_logprobs = kept.append
    return kept


def scores(output: Any, kept: list[Any], window: Window, top_k: int) -> WindowScores:
    """The scores in the RequestOutput of a whole window that was sent as a prompt.

    Args:
        kept: see `keep`.
        top_k: how many of the most probable tokens were asked for. With 0 a token counts as greedy where nothing is as
            probable: vLLM's rank counts equals as well, of which there are some in 16 bits (see `ambiguous`).

    Raises:
        EngineError: the log-probabilities are not those of the window's tokens.
    """
    prompt, width = len(window.context) + len(window.continuation), top_k + 1
    ids, logprobs, ranks = _tensors(kept) if kept else _flat(output.prompt_logprobs, width)
    if len(ids) != prompt - 1 or ids.shape != logprobs.shape or ids.shape[1:] != (width,):
        raise EngineError(
            f"vLLM returned {logprobs.size} log-probabilities for a prompt of {prompt} tokens where "
            f"{(prompt - 1) * width} were asked for; the scores would be wrong."
        )
    last = slice(prompt - 1 - len(window.continuation), None)
    ids, logprobs, ranks = ids[last], logprobs[last], ranks[last]
    if not np.array_equal(ids[:, 0], window.continuation):
        raise EngineError("vLLM's prompt log-probabilities are not about the tokens they were asked for.")
    return WindowScores(
        logprobs=np.ascontiguousarray(logprobs[:, 0]),
        greedy=logprobs[:, 0] >= logprobs[:, 1] if top_k else ranks == 1,
        top_ids=np.ascontiguousarray(ids[:, 1:]),
        top_logprobs=np.ascontiguousarray(logprobs[:, 1:]),
    )


def ambiguous(output: Any, kept: list[Any], window: Window) -> bool:
    """Whether ranks leave open if the whole continuation is greedy: every token has few that are as probable or more,
    and some has one."""
    _, _, ranks = _tensors(kept) if kept else _flat(output.prompt_logprobs, 1)
    last = ranks[len(ranks) - len(window.continuation) :]
    return bool(last.max() <= _EQUALS and last.max() > 1)


def _tensors(kept: list[Any]) -> tuple[Array, Array, Array]:
    """Token ids and log-probabilities, shape (tokens, width), and the ranks of the tokens themselves."""
    return (
        np.concatenate([each.logprob_token_ids.numpy() for each in kept]).astype(np.int64),
        np.concatenate([each.logprobs.numpy() for each in kept]).astype(np.float32),
        np.concatenate([each.selected_token_ranks.numpy() for each in kept]),
    )


def _flat(flat: Any, width: int) -> tuple[Array, Array, Array]:
    """The same of FlatLogprobs, whose entry for the first prompt token is empty."""
    found = [] if flat is None else [flat.token_ids, flat.logprobs, flat.ranks]
    if not found or len(flat.logprobs) % width:
        return np.empty((0, width)), np.empty((0, width)), np.empty(0)
    ids, logprobs, ranks = (np.array(each).reshape(-1, width) for each in found)
    return ids.astype(np.int64), logprobs.astype(np.float32), ranks[:, 0]


def times(output: Any, since: float | None = None) -> RequestTimes | None:
    """When the engine core did what, from the moment the request was in its queue, or from `since` on its clock.

    vLLM's arrival_time is wall-clock time of the process that asked; the rest is on the core's monotonic clock, and the
    two do not compare.
    """
    metrics = output.metrics
    if metrics is None or not metrics.scheduled_ts:
        return None
    arrival = metrics.queued_ts if since is None else since
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
