"""Checks of windows and prompts, sampling settings and completions, as the engines share them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents
from moe_eval.data.window import Window
from moe_eval.engines.base import Completion, GenerationRequest, TokenIds
from moe_eval.errors import EngineError


def check_windows(windows: Sequence[Window], max_length: int) -> None:
    """Raise a ValueError if a window reads more than `max_length` tokens."""
    for window in windows:
        if len(window.inputs) > max_length:
            raise ValueError(f"a window of {len(window.inputs)} tokens is longer than {max_length}")


def check_prompts(prompts: Sequence[TokenIds], new_tokens: int, max_length: int) -> None:
    """Raise a ValueError if a prompt leaves no room for the new tokens."""
    for prompt in prompts:
        if len(prompt) + new_tokens > max_length:
            raise ValueError(f"{len(prompt)} tokens and {new_tokens} new ones are more than {max_length}")


def sampling(request: GenerationRequest, ends: Iterable[int]) -> dict[str, object]:
    """The sampling settings of a request, by the names that both libraries use.

    Args:
        ends: tokens that end a completion.
    """
    settings: dict[str, object] = {
        "max_tokens": request.max_new_tokens,
        "ignore_eos": request.ignore_eos,
        "detokenize": bool(request.stop),
        **request.further,
    }
    if request.min_new_tokens:
        settings["min_tokens"] = request.min_new_tokens
    if not request.ignore_eos:
        # not every version reads generation_config.json itself
        settings["stop_token_ids"] = sorted({*ends, *request.stop_tokens})
    if request.stop:
        settings |= {"stop": list(request.stop), "include_stop_str_in_output": True}
    if request.temperature > 0:
        settings["temperature"] = request.temperature
        if request.top_p < 1:
            settings["top_p"] = request.top_p
        if request.top_k > 0:
            settings["top_k"] = request.top_k
        if request.seed is not None:
            settings["seed"] = request.seed
    return settings


def end_tokens(tokenizer: Any, stated: object) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's, and what a generation configuration states as eos_token_id."""
    ends = {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
    return frozenset(end for end in ends if end is not None)


def stated_ends(folder: Path) -> object:
    """The eos_token_id of a checkpoint's generation_config.json. None where there is none."""
    file = folder / "generation_config.json"
    return contents.read_object(file).get("eos_token_id") if file.is_file() else None


def completion(title: str, output: Any, request: GenerationRequest, ends: Iterable[int]) -> Completion:
    """A completion from an output's `token_ids` and `finish_reason`, without times.

    Args:
        title: the engine's, for messages.
        ends: tokens that end a completion, the last of which is left out.

    Raises:
        EngineError: the request was broken off, or its length is not the requested one.
    """
    tokens = tuple(int(token) for token in output.token_ids)
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"{title} broke a request off ({output.finish_reason}).")
    if request.ignore_eos and not request.stop and len(tokens) != request.max_new_tokens:
        raise EngineError(
            f"{title} generated {len(tokens)} tokens instead of {request.max_new_tokens}. Timings of this run would be "
            "wrong."
        )
    if not request.ignore_eos and tokens and tokens[-1] in {*ends, *request.stop_tokens}:
        tokens = tokens[:-1]
    return Completion(tokens, output.finish_reason)
