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
    }
    if not request.ignore_eos:
        # not every version reads generation_config.json itself
        settings["stop_token_ids"] = sorted(ends)
    if request.stop:
        settings |= {"stop": list(request.stop), "include_stop_str_in_output": True}
    if request.temperature > 0:
        settings["temperature"] = request.temperature
        if request.top_p < 1:
            settings["top_p"] = request.top_p
        if request.top_k > 0:
            settings["top_k"] = request.top_k
    return settings


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's and those of generation_config.json."""
    ends = {tokenizer.eos_token_id}
    file = folder / "generation_config.json"
    if file.is_file():
        stated = contents.read_object(file).get("eos_token_id")
        ends |= set(stated) if isinstance(stated, list) else {stated}
    return frozenset(end for end in ends if end is not None)


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
    if not request.ignore_eos and tokens and tokens[-1] in ends:
        tokens = tokens[:-1]
    return Completion(tokens, output.finish_reason)
