"""Starts `vllm serve` for an arm, with the arguments that its engine gets, and reads what its ranks say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import requests

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import seconds
from moe_eval.engines.served import plan as plans
from moe_eval.engines.served import server as processes
from moe_eval.engines.served.server import ServerProcess
from moe_eval.engines.serving import HOST, ServeSettings, asked, free_port, local
from moe_eval.engines.vllm import arguments, installed, random_weights, rank, sizing, tracing
from moe_eval.engines.vllm.installed import VLLM
from moe_eval.engines.vllm.load import labels_of, weight_arguments
from moe_eval.engines.vllm.rank import Observed
from moe_eval.errors import EngineError

_RPC_SECONDS, _TRACE_SECONDS = 60.0, 600.0
_RUNNING = re.compile(r"^vllm:num_requests_running(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
# the paths below of which ranks tell and a profiler starts, which vLLM keeps from strangers: it listens to HOST alone
_DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
# stacks slow every step down, the front end's trace is no rank's, and nobody reads the table
_PROFILER: Mapping[str, object] = {
    "profiler": "torch",
    "torch_profiler_with_stack": False,
    "torch_profiler_dump_cuda_time_total": False,
    "ignore_frontend": True,
}


def serve(settings: EngineSettings, tokenizer: Any, serving: ServeSettings) -> ServerProcess:
    """Start the server and wait until it answers.

    Raises:
        UsageError: the arm cannot be loaded so, or the port is in use.
        EngineError: the server ended, or did not get ready.
    """
    port = free_port(serving.port)
    options = dict(settings.options)
    weights = random_weights.take_weights(options)
    seconds(options, "stall_timeout")
    options.pop("stall_timeout", None)
    place = plans.take_placement(VLLM, options)
    plan = plans.make(VLLM, settings, options, place, tokenizer, weights=weights)
    library = installed.load(in_process=False)
    limits = sizing.limits(options, serving.window, plan.model.positions)
    constructor = dict(arguments.build(library, {**options, "max_model_len": limits.max_model_len}, {}))
    constructor |= {**weight_arguments(library, plan.model), "enable_prefix_caching": serving.prefix_caching}
    if serving.trace_folder is not None:
        constructor["profiler_config"] = {"torch_profiler_dir": serving.trace_folder, **_PROFILER}
    command = [
        *(sys.executable, "-m", "moe_eval.engines.vllm.serve_command", str(port)),
        json.dumps({**plan.constructor_arguments(tokenizer), **constructor, "served_model_name": [plan.model.name]}),
    ]
    process = processes.start(VLLM.title, command, _DEVELOPMENT)
    processes.await_ready(VLLM.title, process, port, serving.seconds)
    try:
        ranks = _ranks(port)
        observed = () if isinstance(ranks, str) else ranks
        facts = labels_of(plan, library.version, limits.window, constructor, observed)
    except BaseException:
        processes.stop(process)
        raise
    server = local(port, plan.model.name)
    folder = serving.trace_folder
    return ServerProcess(
        VLLM.title,
        process,
        server,
        replace(facts, unobserved=(ranks,)) if isinstance(ranks, str) else facts,
        metrics_url=f"http://{HOST}:{port}/metrics",
        count=lambda: _running(port),
        reset=(lambda: _post(port, "reset_prefix_cache")) if serving.prefix_caching else lambda: None,
        profiler=None if folder is None else lambda target: _profiled(port, Path(folder), target),
    )


@contextmanager
def _profiled(port: int, folder: Path, target: Path) -> Iterator[None]:
    """The profiler of vLLM's workers, by the paths of vllm/entrypoints/serve/profile/api_router.py."""
    before = {*folder.glob("*")}
    _post(port, "start_profile")
    try:
        yield
    finally:
        _post(port, "stop_profile")  # it answers when the traces are written
    traces = sorted(file for file in folder.glob("*.json*") if file not in before)
    if not traces:
        raise EngineError(f"vLLM's profiler left no trace in {folder}.")
    target.write_bytes(tracing.merged(traces))
    for file in traces:
        file.unlink()


def _post(port: int, path: str) -> None:
    try:
        asked("POST", port, f"/{path}", _TRACE_SECONDS).raise_for_status()
    except requests.RequestException as error:
        raise EngineError(
            f"vLLM's server did not do {path} ({type(error).__name__}). Read the end of its log."
        ) from None


def _running(port: int) -> float | None:
    """Requests in its steps now, by its metrics."""
    try:
        text = asked("GET", port, "/metrics", _RPC_SECONDS).text
    except requests.RequestException:
        return None
    counts = [float(count) for count in _RUNNING.findall(text)]
    return sum(counts) if counts else None


def _ranks(port: int) -> Sequence[Observed] | str:
    """What every rank says of itself, or why it says nothing.

    The path is that of vllm/entrypoints/serve/rpc/api_router.py, or of api_server.py in earlier versions.
    """
    try:
        answer = asked("POST", port, "/collective_rpc", _RPC_SECONDS, {"method": rank.METHOD})
        answer.raise_for_status()
        return [msgspec.json.decode(text, type=Observed) for text in answer.json()["results"]]
    except (requests.RequestException, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        return f"what its ranks run is not known ({type(error).__name__})"
