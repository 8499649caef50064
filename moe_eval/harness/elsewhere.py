"""Commands for models that are not ours, which our evaluators cannot measure."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TypeVar

from moe_eval.errors import UsageError
from moe_eval.harness import KERNELS, LATENCY

T = TypeVar("T")
_REFUSED = "{} measures moe_eval's engines. Run it with --model trtllm_moe, or leave it out."


def run(evaluate: Callable[[], T], tasks: Container[object] | None) -> T:
    """Evaluate a model that is not ours.

    A task of ours that is given by name is refused before the model is loaded. In a group, a file or a Task it shows
    when the model gets its request.

    Raises:
        UsageError: one of our evaluators is among the tasks.
    """
    for name in (LATENCY, KERNELS):
        if name in (tasks or ()):
            raise UsageError(_REFUSED.format(name))
    try:
        return evaluate()
    except AttributeError as error:
        if error.name not in (LATENCY, KERNELS):
            raise
        raise UsageError(_REFUSED.format(error.name)) from None
