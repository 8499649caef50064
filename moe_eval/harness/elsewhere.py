"""Commands for models that are not ours, which our own evaluators cannot measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe_eval.errors import UsageError
from moe_eval.harness import KERNELS, LATENCY

_REFUSED = "{} measures moe_eval's engines; run it with --model trtllm_moe, or leave it out."


def run(evaluate: Callable[[], Any], tasks: Any) -> Any:
    """Evaluate a model that is not ours.

    By name our tasks are refused before the model is loaded; in a group, a file or a Task they are seen when the model
    is asked.

    Raises:
        UsageError: one of our evaluators is among the tasks.
    """
    for each in (LATENCY, KERNELS):
        if each in (tasks or ()):
            raise UsageError(_REFUSED.format(each))
    try:
        return evaluate()
    except AttributeError as error:
        if error.name not in (LATENCY, KERNELS):
            raise
        raise UsageError(_REFUSED.format(error.name)) from None
