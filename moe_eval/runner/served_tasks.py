"""What a server's process does on request: functions of (server, tokenizer, arguments) that return a record's part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from moe_eval.checkpoint import tokenizer as tokenizers
from moe_eval.data.served_requests import RequestSet
from moe_eval.engines.serving import Served
from moe_eval.errors import EngineError
from moe_eval.evaluators import load_generator
from moe_eval.evaluators import serving_trace as server_tracing
from moe_eval.evaluators.load_generator import Drive
from moe_eval.imports import aiperf_requests
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.serving import ServedLoad, ServerState


def serving(served: Served, tokenizer: Any, *, order: Mapping[str, Any], folder: str) -> ServedLoad:
    """Drive a server at one point.

    Args:
        order: a load_generator.Order.
        folder: of what the generator writes.

    Raises:
        EngineError: the server ended, a request failed, or the generator did.
    """
    drive = _drive(served, order)
    if served.server.chat and tokenizer is None:  # an endpoint, whose prompts are put into words here
        tokenizer = tokenizers.load(drive.tokenizer, None, False)
    served.check()
    served.forget()  # every point sends the first prompts
    served.steps()  # those before are of another point
    offset_ns = time.time_ns() - time.perf_counter_ns()
    try:
        problem = load_generator.run(drive, Path(folder), tokenizer)
    finally:
        served.check()  # that it ended says more than what the generator makes of it
    times, started, ended = aiperf_requests.requests(Path(folder) / load_generator.REQUESTS, drive.count)
    if problem is not None:  # though every request was answered
        raise EngineError(problem)
    return ServedLoad(
        times=times,
        state=_state(served, Path(folder)),
        started=(started - offset_ns) / 1e9,
        ended=(ended - offset_ns) / 1e9,
        generator=_generator(),
        folder=folder,
    )


def serving_trace(
    served: Served,
    tokenizer: Any,
    *,
    order: Mapping[str, Any],
    folder: str,
    settle_s: float,
    trace_folder: str,
    name: str,
) -> KernelsRecord:
    """Trace a server at one point. The arguments are those of `serving` and of serving_trace.measure."""
    trace = Path(trace_folder)
    return server_tracing.measure(
        served, _drive(served, order), Path(folder), tokenizer, settle_s=settle_s, trace_folder=trace, name=name
    )


def _drive(served: Served, content: Mapping[str, Any]) -> Drive:
    order = msgspec.convert(content, load_generator.Order)
    requests = _requests(order.requests).requests
    return Drive(served.server, order.point, requests, order.count, order.warm_up, order.tokenizer, served.metrics_url)


def _state(served: Served, folder: Path) -> ServerState:
    """What a server said of itself at its metrics endpoint."""
    if served.metrics_url is not None:
        return aiperf_requests.server_state(folder / load_generator.SERVER)
    steps = served.steps()
    if steps is None:
        return ServerState(why_not="it has no metrics endpoint")
    return ServerState(
        running_most=steps.sequences,
        waiting_most=steps.queued,
        kv_cache_share=steps.kv_cache_share,
        steps=steps.steps,
        why_not=steps.why_not,
    )


@cache
def _generator() -> str:
    return load_generator.version()


@cache
def _requests(file: str) -> RequestSet:
    return msgspec.json.decode(Path(file).read_bytes(), type=RequestSet)
