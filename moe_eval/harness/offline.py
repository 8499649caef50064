"""The message for a data set that cannot be fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from moe_eval.checkpoint.hub import unreachable
from moe_eval.errors import UsageError

T = TypeVar("T")


def explained(run: Callable[[], T]) -> T:
    """Run, and turn a failure to reach a data set's hub into a UsageError that names the tasks that work offline."""
    try:
        return run()
    except UsageError:
        raise
    except Exception as error:
        if not unreachable(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"The task's data set cannot be fetched ({type(error).__name__}: {reason}). Go online once, or use a task "
            "that needs no hub: wikitext_local (the standard wikitext documents from the raw file of the variable "
            "MOE_EVAL_WIKITEXT) or moe_sample (ships with moe_eval)."
        ) from error
