"""One sentence for a data set that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from moe_eval.checkpoint.hub import unreachable
from moe_eval.errors import UsageError

T = TypeVar("T")


def explained(run: Callable[[], T]) -> T:
    """Run, and turn the failure to reach a data set's hub into a UsageError that names what works offline."""
    try:
        return run()
    except UsageError:
        raise
    except Exception as error:
        if not unreachable(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"The task's data set cannot be fetched ({type(error).__name__}: {reason}); go online once, or use a task "
            "that needs no hub: wikitext_local (the standard wikitext documents from the raw file that "
            "MOE_EVAL_WIKITEXT names) or moe_sample (ships with moe_eval)."
        ) from error
