"""What an LLM shows of a response that will not come: an error put aside, its own health, what has arrived.

Source: TensorRT-LLM, ManagedThread of llmapi/utils.py, which puts an error into a queue, goes on, and loses the
response. Prompt log-probabilities are computed in such a thread (executor/base_worker.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from moe_eval.engines.served.package import reach
from moe_eval.engines.served.processes import within
from moe_eval.errors import EngineError

_HEALTH_SECONDS = 2.0
_ARRIVED_SECONDS = 0.01


def background_error(llm: Any) -> BaseException | None:
    """What a thread of the library has put aside. None where nothing is, or where it is kept elsewhere."""
    try:
        error = reach(llm, "_executor._error_queue").get_nowait()
    except Exception:  # empty, or a private interface that this version has in another form
        return None
    return error if isinstance(error, BaseException) else EngineError(f"TensorRT-LLM lost a response ({error}).")


def is_unhealthy(llm: Any) -> bool:
    """Whether the LLM itself says that it does not work any more."""
    try:
        health = getattr(llm, "_check_health", None)
        return health is not None and within(_HEALTH_SECONDS, health) is False
    except Exception:  # a private interface: what it cannot say, the time without a response does
        return False


def arrived(flying: deque[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The responses that are there already."""
    for index, handle in flying:
        try:
            output = handle.result(timeout=_ARRIVED_SECONDS)
        except Exception:  # it is lost as well, or this version's result takes no timeout
            continue
        yield index, output
    flying.clear()
