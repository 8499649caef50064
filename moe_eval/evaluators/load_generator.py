"""The tool that sends requests to a server: AIPerf, as a command in a process of its own.

Read from `aiperf profile --help`, aiperf/dataset/loader/models.py (MooncakeTrace.payload: a request body that is sent
as it is) and aiperf/common/tokenizer.py of AIPerf 0.13.0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from moe_eval.data.served_requests import LoadPoint, ServedRequest
from moe_eval.engines.endpoint.server import KEY, Server
from moe_eval.errors import EngineError, UsageError
from moe_eval.frozen import frozen

INPUT, REQUESTS = "serving_requests.jsonl", "profile_export.jsonl"
SERVER, LOG, CONFIG = "server_metrics_export.json", "aiperf.txt", "aiperf.yaml"
_INSTALL = "Install it (pip install 'moe-eval[serving]', or in an environment of its own: pipx install aiperf)."
# with it AIPerf looks a tokenizer's folder up in the hub's cache and fails, see _resolve_local_snapshot
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# it samples a server's metrics for two seconds more after the last answer, which is none of the point
_ENVIRONMENT = {"AIPERF_SERVER_METRICS_COLLECTION_FLUSH_PERIOD": "0"}
_TAIL = 400  # characters of its output that a failure tells


@frozen
class Drive:
    """One point to be driven.

    Attributes:
        requests: of all points. Those after the first `warm_up` + `count` are not sent here.
        warm_up: so many of the requests come first, and are not measured.
        tokenizer: a folder or hub name, which AIPerf wants though the server counts the tokens.
        metrics_url: of Prometheus' text. None where the server has none.
        seed: of the times at which requests arrive.
    """

    server: Server
    point: LoadPoint
    requests: Sequence[ServedRequest]
    count: int
    warm_up: int
    tokenizer: str
    metrics_url: str | None
    seed: int = 0


@frozen
class Order:
    """What is driven, before there is a server.

    Attributes:
        requests: the file of a RequestSet, of which the first `warm_up` + `count` are sent.
        tokenizer: see Drive.
    """

    requests: str
    point: LoadPoint
    count: int
    warm_up: int
    tokenizer: str


def executable() -> str:
    """The command's path: of PATH, else beside this interpreter.

    Raises:
        UsageError: it is not installed.
    """
    path = shutil.which("aiperf") or shutil.which("aiperf", path=str(Path(sys.executable).parent))
    if path is None:
        raise UsageError(f"The evaluator serving needs AIPerf, and aiperf is not on PATH. {_INSTALL}")
    return path


def version() -> str:
    """Its name and version. It takes the tool a second to tell.

    Raises:
        EngineError: it does not start.
    """
    answer = subprocess.run([executable(), "--version"], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise EngineError(f"aiperf --version ended with code {answer.returncode}. Install AIPerf again.")
    return f"aiperf {answer.stdout.strip().split()[-1]}" if answer.stdout.strip() else "aiperf"


def run(drive: Drive, folder: Path, tokenizer: Any = None) -> str | None:
    """Send the requests of a point in their order. Everything that the tool writes stays in `folder`.

    Beside it lies what the tool reads: the requests of all points, which it parses at the first one and keeps.

    Args:
        tokenizer: of Transformers, for servers that are asked by chats.

    Returns:
        Why the tool failed though it wrote of its requests, which may say more. None where it did not fail.

    Raises:
        EngineError: it failed before.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
    folder.mkdir(parents=True)
    rows = (msgspec.json.encode({"payload": _body(drive.server, entry, tokenizer)}) for entry in drive.requests)
    (folder.parent / INPUT).write_bytes(b"\n".join(rows) + b"\n")
    environment = {name: value for name, value in os.environ.items() if name not in _OFFLINE} | _ENVIRONMENT
    with (folder / LOG).open("wb") as log:
        code = subprocess.run(
            [executable(), *_arguments(drive, folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        ).returncode
    has_requests = (folder / REQUESTS).is_file()
    if not code and has_requests:
        return None
    text = " ".join((folder / LOG).read_text("utf-8", "replace").split())
    sentence = f"AIPerf ended with code {code} {drive.point.place} ({text[-_TAIL:]}). Read {folder / LOG}."
    if not has_requests:
        raise EngineError(sentence)
    return sentence


def _arguments(drive: Drive, folder: Path) -> list[str]:
    """The words of its command line, in which no key stands: others can read it."""
    server = drive.server
    is_usual = server.base_url.endswith("/v1")  # AIPerf adds the path of a request with it
    values: Mapping[str, object | None] = {
        "--model": server.model,
        "--url": server.base_url.removesuffix("/v1"),
        "--custom-endpoint": None if is_usual else server.url.removeprefix(server.base_url),
        "--endpoint-type": "chat" if server.chat else "completions",
        **(_secret_load(drive, folder) if os.environ.get(KEY) else _load(drive, folder)),
        "--tokenizer": drive.tokenizer,
        "--output-artifact-dir": folder,
        "--random-seed": drive.seed,
        "--server-metrics": drive.metrics_url,
        "--ui": "none",
    }
    switches = ["--streaming", "--use-server-token-count", "--no-gpu-telemetry"]
    switches += ["--no-server-metrics"] if drive.metrics_url is None else []
    given_values = [(name, str(value)) for name, value in values.items() if value is not None]
    return ["profile", *(word for pair in given_values for word in pair), *switches]


def _load(drive: Drive, folder: Path) -> Mapping[str, object | None]:
    """What is sent, as options."""
    point = drive.point
    return {
        "--input-file": folder.parent / INPUT,
        "--custom-dataset-type": "mooncake-trace",
        "--dataset-sampling-strategy": "sequential",
        # the same at every point, else it parses them again
        "--num-dataset-entries": len(drive.requests),
        "--request-count": drive.count,
        "--warmup-request-count": drive.warm_up or None,
        "--concurrency": point.concurrency,
        "--request-rate": point.request_rate,
        "--arrival-pattern": "poisson" if point.request_rate else None,
    }


def _secret_load(drive: Drive, folder: Path) -> Mapping[str, object | None]:
    """The same in a file, which names the variable of the key: only there AIPerf reads the environment.

    The content is what aiperf/config/flags/converter.py makes of the options.
    """
    point = drive.point
    load: dict[str, object] = {"type": "concurrency", "concurrency": point.concurrency}
    if point.request_rate:
        load = {"type": "poisson", "rate": point.request_rate}
    phases = [
        {"name": name, "kind": name, "requests": count, "excludeFromResults": name == "warmup", **load}
        for name, count in (("warmup", drive.warm_up), ("profiling", drive.count))
        if count
    ]
    requests: dict[str, object] = {
        "name": "main",
        "type": "file",
        "path": str(folder.parent / INPUT),
        "format": "mooncake_trace",
    }
    requests |= {"sampling": "sequential", "entries": len(drive.requests)}
    content = {"endpoint": {"apiKey": f"${{{KEY}}}"}, "datasets": [requests], "phases": phases}
    (folder / CONFIG).write_bytes(msgspec.json.encode({"benchmark": content}))
    return {"--config": folder / CONFIG}


def _body(server: Server, request: ServedRequest, tokenizer: Any) -> dict[str, object]:
    """A request as the server gets it: exact lengths, greedy, answered token by token."""
    body: dict[str, object] = {
        "model": server.model,
        "max_tokens": request.output_len,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if server.chat:
        return {**body, "messages": [{"role": "user", "content": tokenizer.decode(request.prompt)}]}
    return {**body, "prompt": request.prompt}
