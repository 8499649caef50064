"""The errors of a served engine's library, as messages for the user."""

from __future__ import annotations

import pydantic

from moe_eval.checkpoint import hub
from moe_eval.engines.served.traits import Traits
from moe_eval.errors import EngineError, UsageError


def describe(traits: Traits, error: BaseException, version: str, checkpoint: str, task: str) -> Exception:
    """The error to raise in place of one of the library's.

    Args:
        task: what was going on, such as `loading`.

    Returns:
        A UsageError if the user can change something, an EngineError if the engine broke down.
    """
    if isinstance(error, (UsageError, EngineError)):
        return error
    text = " ".join(str(error).split())
    for failure in traits.known_failures:
        if any(marker in text for marker in failure.markers):
            detail = text[:200].rstrip(". ")
            return UsageError(
                failure.message.format(title=traits.title, task=task, checkpoint=checkpoint, detail=detail)
            )
    if hub.unreachable(error):
        return UsageError(hub.sentence(checkpoint))
    if isinstance(error, pydantic.ValidationError):  # its text would show every argument
        text = ", ".join(str(problem["msg"]) for problem in error.errors())
    reason = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    if type(error).__name__ in traits.fatal_errors:
        reason = "its process has ended, its last output is above"
    if task == "loading":
        return UsageError(f"{traits.title} {version} cannot load {checkpoint} ({reason}).")
    return EngineError(f"{traits.title} {version} failed while {task} {checkpoint} ({reason}).")
