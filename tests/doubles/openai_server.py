"""A small server of OpenAI's interface on loopback, which serves a model of Transformers or fails on demand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

NAME = "tiny"
Body = Mapping[str, Any]


@dataclass
class Service:
    """What a server does.

    Attributes:
        model, tokenizer: of Transformers. None for a server whose answers are made up.
        key: that requests have to carry. None for any.
        status: what completions are answered with. `pause`: seconds before every answer.
        window: that it tells. None where it does not.
        lists_models, returns_scores: whether it does.
        failing_after: completions after which it answers 500.
        asked: bodies of completions, and of chats.
    """

    model: Any = None
    tokenizer: Any = None
    key: str | None = None
    status: int = 200
    pause: float = 0.0
    window: int | None = None
    lists_models: bool = True
    returns_scores: bool = True
    failing_after: int | None = None
    asked: list[Body] = field(default_factory=list)
    url: str = ""

    def ids(self, prompt: Any) -> list[int]:
        return list(self.tokenizer.encode(prompt)) if isinstance(prompt, str) else list(prompt)

    def completion(self, body: Body) -> dict[str, Any]:
        """The answer to one request, whose prompt is a text, token ids, or several of them."""
        prompt = body["prompt"]
        many = isinstance(prompt, list) and not isinstance(prompt[0], int)
        prompts: Sequence[Any] = prompt if many else [prompt]
        return {"choices": [{"index": at, **self._choice(entry, body)} for at, entry in enumerate(prompts)]}

    def _choice(self, prompt: Any, body: Body) -> dict[str, Any]:
        if self.model is None:
            scores = {"token_logprobs": [None, -1.0, -1.0], "top_logprobs": [None, {"a": -1.0}, {"a": -1.0}]}
            return {"text": " words", "logprobs": scores if body.get("echo") and self.returns_scores else None}
        ids = self.ids(prompt)
        if body.get("echo"):
            return {"text": "", "logprobs": self._scores(ids) if self.returns_scores else None}
        return {"text": self._text(ids, body), "logprobs": None}

    @torch.no_grad()
    def _scores(self, ids: list[int]) -> dict[str, Any]:
        """Of the prompt, and of one token more."""
        logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        following = [*ids[1:], int(logprobs[-1].argmax())]
        own = [None, *(float(row[token]) for row, token in zip(logprobs, following, strict=True))]
        best = [None, *({str(int(row.argmax())): float(row.max())} for row in logprobs)]
        return {"token_logprobs": own, "top_logprobs": best}

    @torch.no_grad()
    def _text(self, ids: list[int], body: Body) -> str:
        """Greedy, up to a stop text or the end of the text."""
        start, text = len(ids), ""
        for _ in range(body["max_tokens"]):
            token = int(self.model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            ids = [*ids, token]
            text = self.tokenizer.decode(ids[start:])
            for stop in filter(None, body.get("stop") or []):
                if stop in text:
                    return str(text.partition(stop)[0])
        return str(text)


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_GET(self) -> None:
        if self._refused():
            return
        if not self.service.lists_models:
            self._answer(404, {"error": "no such path"})
            return
        length = {} if self.service.window is None else {"max_model_len": self.service.window}
        self._answer(200, {"data": [{"id": NAME, **length}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        service = self.service
        service.asked.append(body)
        time.sleep(service.pause)
        is_over = service.failing_after is not None and len(service.asked) > service.failing_after
        if service.status != 200 or is_over:
            self._answer(500 if is_over else service.status, {"error": "out of memory"})
        elif body["model"] != NAME:
            self._answer(404, {"error": f"no model {body['model']}"})
        elif self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": f"heard {len(body['messages'])}"}
            self._answer(200, {"choices": [{"index": 0, "message": message}]})
        else:
            self._answer(200, service.completion(body))

    def _refused(self) -> bool:
        key = self.service.key
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            self._answer(401, {"error": "wrong key"})
            return True
        return False

    def _answer(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        with contextlib.suppress(BrokenPipeError):  # of a client that waits no longer
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def served(service: Service) -> Iterator[Service]:
    """Serve at `service.url` until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    service.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
