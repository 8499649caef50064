"""The times of every request, as TensorRT-LLM measures them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from moe_eval.engines.base import RequestTimes

_MOMENTS = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")


def moments(output: Any) -> tuple[float, ...] | None:
    """Seconds of a request's arrival, start, first and last token. None where the version did not measure all.

    TensorRT-LLM's timing_metrics are timedeltas on a steady clock. Only their differences have a meaning.
    """
    try:
        timing = output.request_perf_metrics.timing_metrics
        seconds = tuple(getattr(timing, name).total_seconds() for name in _MOMENTS)
        return seconds if all(a <= b for a, b in itertools.pairwise(seconds)) else None
    except Exception:  # of no value is worth a failed run
        return None


def relative(requests: Sequence[tuple[float, ...] | None]) -> list[RequestTimes | None]:
    """The times of every request of a batch, counted from the arrival of the first request."""
    start = min((seconds[0] for seconds in requests if seconds is not None), default=0.0)
    return [
        None if seconds is None else RequestTimes(*(moment - start for moment in seconds[1:])) for seconds in requests
    ]
