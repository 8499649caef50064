"""Model arguments that several engines read in the same way, and what they make of a checkpoint's end tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents
from moe_eval.engines.base import Completion, GenerationRequest
from moe_eval.errors import EngineError, UsageError

_WORKERS = ("in_process", "spawned")
_SWITCH = {"on": True, "off": False, "true": True, "false": False}


def number(options: Mapping[str, Any], name: str) -> int | None:
    """A whole number above 0, or None where the option is not given.

    Raises:
        UsageError: it is something else.
    """
    value = options.get(name)
    if value is None:
        return None
    try:
        found = int(str(value))
    except ValueError:
        found = 0
    if found < 1:
        raise UsageError(f"{name}={value} is not a whole number above 0.")
    return found


def flag(options: dict[str, Any], name: str) -> bool | None:
    """Take a switch out of the options; None where it is not there.

    Raises:
        UsageError: it is neither on nor off.
    """
    value = options.pop(name, None)
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() not in _SWITCH:
        raise UsageError(f"{name}={value} is neither on nor off; give {name}=on or {name}=off.")
    return _SWITCH[str(value).lower()]


def sizes(name: str, given: Any) -> list[int]:
    """A list of whole numbers above 0, which may be written 1:8:32.

    Raises:
        UsageError: it is something else.
    """
    parts = given if isinstance(given, (list, tuple)) else str(given).strip("[]").replace(",", ":").split(":")
    try:
        found = [int(str(part)) for part in parts]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{name}={given} is not a list of whole numbers above 0; write 1:8:32.")
    return found


def take_worker(options: dict[str, Any], parallel: Iterable[str]) -> tuple[str | None, int]:
    """Take `worker` out of the options and multiply the parallel sizes.

    Args:
        parallel: the names of the engine's parallel sizes.

    Returns:
        The worker asked for, or None, and over how many GPUs the model is spread.

    Raises:
        UsageError: a value that means nothing, or an in-process worker for several GPUs.
    """
    asked = options.pop("worker", None)
    if asked not in (None, *_WORKERS):
        raise UsageError(f"worker={asked} is neither in_process nor spawned; give one of them.")
    world = 1
    for name in parallel:
        world *= number(options, name) or 1
    if asked == "in_process" and world > 1:
        raise UsageError(f"worker=in_process is for one GPU and {world} are asked for; leave worker out.")
    return asked, world


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's and those of generation_config.json."""
    ends = {tokenizer.eos_token_id}
    file = folder / "generation_config.json"
    if file.is_file():
        stated = contents.read_object(file).get("eos_token_id")
        ends |= set(stated) if isinstance(stated, list) else {stated}
    return frozenset(end for end in ends if end is not None)


def completed(title: str, output: Any, request: GenerationRequest, ends: Iterable[int]) -> Completion:
    """A completion from `token_ids` and `finish_reason`, which both libraries call so; without times.

    Args:
        title: the engine's, for sentences.
        ends: tokens that end a completion, the last of which is left out.

    Raises:
        EngineError: the request was broken off, or has another length than was asked for.
    """
    tokens = tuple(int(token) for token in output.token_ids)
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"{title} broke a request off ({output.finish_reason}).")
    if request.ignore_eos and not request.stop and len(tokens) != request.max_new_tokens:
        raise EngineError(
            f"{title} generated {len(tokens)} tokens where {request.max_new_tokens} were asked for; no timing of this "
            "run would be right."
        )
    if not request.ignore_eos and tokens and tokens[-1] in ends:
        tokens = tokens[:-1]
    return Completion(tokens, output.finish_reason)
