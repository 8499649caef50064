"""Starts `trtllm-serve` for an arm, with the arm's settings, and reads the iterations that it tells.

Source: tensorrt_llm/commands/serve.py (options, and extra_llm_api_options, a YAML file of LLM arguments) and
docs/source/commands/trtllm-serve.rst (/metrics, iteration statistics as JSON).
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests
import yaml

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag, parse_json, seconds, sizes
from moe_eval.engines.served import labels
from moe_eval.engines.served import plan as plans
from moe_eval.engines.served import server as processes
from moe_eval.engines.served.server import ServerProcess
from moe_eval.engines.serving import HOST, ServeSettings, asked, free_port, local
from moe_eval.engines.trtllm import iterations
from moe_eval.engines.trtllm.arguments import NESTED
from moe_eval.engines.trtllm.installed import NO_FUSION, TRTLLM
from moe_eval.engines.trtllm.sizing import EXTRA_POSITIONS
from moe_eval.errors import UsageError
from moe_eval.records.samples import EngineSteps

_ASK_SECONDS = 10.0
_NO_GRAPHS = ("none", "off", "0", "false")


def serve(settings: EngineSettings, tokenizer: Any, serving: ServeSettings) -> ServerProcess:
    """Start the server and wait until it answers.

    Raises:
        UsageError: the arm cannot be loaded so, or the port is in use.
        EngineError: the server ended, or did not get ready.
    """
    port = free_port(serving.port)
    executable = shutil.which("trtllm-serve") or shutil.which("trtllm-serve", path=str(Path(sys.executable).parent))
    if executable is None:
        raise UsageError("TensorRT-LLM's trtllm-serve is not on PATH. Install TensorRT-LLM again.")
    options = dict(settings.options)
    place = plans.take_placement(TRTLLM, options)
    environment = {NO_FUSION: "1"} if flag(options, "disable_fusion") else {}
    options.pop("disable_fusion", None)
    seconds(options, "stall_timeout")
    options.pop("stall_timeout", None)
    plan = plans.make(TRTLLM, settings, options, place, tokenizer)
    version = importlib.metadata.version(TRTLLM.package)
    plans.check_version(plan, version)
    arguments = llm_arguments(options, serving)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="moe_eval-", delete=False) as file:
        yaml.safe_dump(arguments, file)
    command = [executable, plan.model.name, "--host", HOST, "--port", str(port), "--backend", "pytorch"]
    command += ["--tokenizer", str(tokenizer.name_or_path), "--extra_llm_api_options", file.name]
    command += ["--trust_remote_code"] * settings.trust_remote_code
    process = processes.start(TRTLLM.title, command, environment)
    try:
        processes.await_ready(TRTLLM.title, process, port, serving.seconds)
    finally:
        Path(file.name).unlink()
    facts = labels.requested(plan, version, serving.window, plan.options, arguments)
    facts = replace(facts, unobserved=("trtllm-serve does not tell what it runs",))
    return ServerProcess(TRTLLM.title, process, local(port, plan.model.name), facts, read_steps=lambda: _steps(port))


def llm_arguments(options: Mapping[str, object], serving: ServeSettings) -> dict[str, object]:
    """An arm's options as the LLM arguments of a YAML file. Nested ones go into the section that has them."""
    values: dict[str, Any] = {
        "max_seq_len": serving.window + EXTRA_POSITIONS,
        "enable_iter_perf_stats": True,
        "kv_cache_config": {"enable_block_reuse": serving.prefix_caching},
    }
    for name, value in options.items():
        if name not in NESTED:
            values[name] = parse_json(name, value) if isinstance(value, str) and value[:1] in "[{" else value
            continue
        section, field = NESTED[name]
        if name == "moe_backend" and str(value).lower() == "auto":
            continue
        if name == "cuda_graph_batch_sizes" and str(value).lower() in _NO_GRAPHS:
            values[section] = None
        elif values.get(section, {}) is not None:
            entry = sizes(name, value) if name == "cuda_graph_batch_sizes" else value
            entry = str(entry).upper() if name == "moe_backend" else entry
            values[section] = {**values.get(section, {}), field: entry}
    return values


def _steps(port: int) -> EngineSteps:
    """The iterations since the last call. The server keeps the last 1,000 by default."""
    try:
        answer = asked("GET", port, "/metrics", _ASK_SECONDS)
        answer.raise_for_status()
        return iterations.summary(answer.json())
    except (requests.RequestException, ValueError, TypeError, AttributeError) as error:
        return EngineSteps(why_not=f"its iterations cannot be read ({type(error).__name__})")
