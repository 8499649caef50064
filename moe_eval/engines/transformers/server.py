"""A small server of the Transformers engine: one request at a time, for tries on a CPU and for tests.

`transformers serve` takes neither token ids nor ignore_eos, so that its answers have no exact length.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moe_eval.engines import torch_profiler
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.endpoint.server import Server
from moe_eval.engines.serving import HOST, ServeSettings, free_port, local
from moe_eval.engines.transformers import tracing
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.transformers.load import load
from moe_eval.errors import UsageError
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import EngineSteps


@dataclass
class TransformersServer:
    """As engines.serving.Served has it, in this process."""

    engine: TransformersEngine
    server: Server
    http: ThreadingHTTPServer
    metrics_url: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def facts(self) -> EngineFacts:
        return self.engine.facts

    def check(self) -> None:
        """It ends with this process alone."""

    def forget(self) -> None:
        """It keeps nothing."""

    def steps(self) -> EngineSteps | None:
        return None

    def running(self) -> float | None:
        return float(self.lock.locked())

    @contextmanager
    def profiled(self, target: Path) -> Iterator[None]:
        """Between two requests it begins, and ends: names of steps belong to whole ones."""
        self.lock.acquire()
        cuda = self.engine.model.device.type == "cuda"
        with torch_profiler.record(target, cuda=cuda, all_threads=True), tracing.annotated(self.engine.model):
            self.lock.release()
            try:
                yield
            finally:
                self.lock.acquire()
        self.lock.release()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.engine.close()


def serve(settings: EngineSettings, tokenizer: Any, serving: ServeSettings) -> TransformersServer:
    """Load a checkpoint and answer requests for it.

    Raises:
        UsageError: it cannot be loaded, or the port is in use.
    """
    port = free_port(serving.port)
    if serving.prefix_caching:
        raise UsageError("The transformers engine has no prefix caching. Leave out --prefix_caching.")
    engine = load(settings, tokenizer)
    http = ThreadingHTTPServer((HOST, port), _Handler)
    http.daemon_threads = True
    served = TransformersServer(engine, local(port, settings.checkpoint), http)
    http.served = served  # type: ignore[attr-defined]  # its handlers find it there
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return served


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a token waits up to 40 ms for the client's word on the one before

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for requests."""

    def do_GET(self) -> None:
        model = {"id": self._served.server.model, "object": "model"}
        answers = {"/health": {}, "/v1/models": {"object": "list", "data": [model]}}
        if self.path in answers:
            self._answer(200, answers[self.path])
        else:
            self._answer(404, {"error": "there is no such path"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            request = json.loads(body)
            prompt = [int(token) for token in request["prompt"]]
            tokens = int(request["max_tokens"])
        except (ValueError, KeyError, TypeError):
            self._answer(400, {"error": "give prompt as token ids, and max_tokens"})
            return
        if self.path != "/v1/completions" or not prompt or tokens < 1:
            self._answer(400, {"error": "only completions of a prompt with tokens are served"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self._served.lock:
            self._served.engine.stream(prompt, tokens, self._token)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": tokens, "total_tokens": len(prompt) + tokens}
        self._event({**self._chunk(""), "choices": [], "usage": usage})
        self._chunked(b"data: [DONE]\n\n")
        self._chunked(b"")

    @property
    def _served(self) -> TransformersServer:
        served: TransformersServer = self.server.served  # type: ignore[attr-defined]
        return served

    def _token(self, token: int) -> None:
        text = self._served.engine.tokenizer.decode([token]) or " "  # an event without text is no token to a client
        self._event(self._chunk(text))

    def _chunk(self, text: str) -> dict[str, object]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
        return {"object": "text_completion", "model": self._served.server.model, "choices": [choice]}

    def _event(self, content: Mapping[str, object]) -> None:
        self._chunked(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _chunked(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, status: int, content: Mapping[str, object]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
