"""The small server of the Transformers engine: what it streams is what the engine makes."""

from __future__ import annotations

import json
import socket
import socketserver
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import requests
from transformers import AutoTokenizer

from moe_eval.data.served_requests import Lengths, of_stream
from moe_eval.engines.base import EngineSettings, GenerationRequest
from moe_eval.engines.serving import ServeSettings
from moe_eval.engines.transformers.server import TransformersServer, serve
from moe_eval.errors import UsageError
from moe_eval.evaluators import serving_trace
from moe_eval.runner import served_tasks
from tests.conftest import SHIPPED
from tests.doubles import aiperf

PROMPT = [5, 17, 300, 42, 8]


@pytest.fixture(scope="module")
def served() -> Iterator[TransformersServer]:
    settings = EngineSettings(str(SHIPPED), dtype="float32", device="cpu")
    server = serve(settings, AutoTokenizer.from_pretrained(SHIPPED), ServeSettings(64, 30.0))
    yield server
    server.close()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.server.base_url}/models", timeout=5)


def events(served: TransformersServer, **body: object) -> list[dict[str, object]]:
    answer = requests.post(served.server.url, json={"prompt": PROMPT, "max_tokens": 6, **body}, timeout=30, stream=True)
    rows = [line.removeprefix(b"data: ") for line in answer.iter_lines() if line]
    assert rows[-1] == b"[DONE]"
    return [json.loads(row) for row in rows[:-1]]


def test_tokens_come_one_by_one_and_are_the_engines_own(served: TransformersServer) -> None:
    request = GenerationRequest(max_new_tokens=6, ignore_eos=True)
    (completion,) = served.engine.generate([PROMPT], request)
    *chunks, last = events(served)
    texts = [chunk["choices"][0]["text"] for chunk in chunks]  # type: ignore[index]
    assert texts == [served.engine.tokenizer.decode([token]) or " " for token in completion.token_ids]
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_it_says_that_it_is_there_and_refuses_what_it_does_not_serve(served: TransformersServer) -> None:
    base = served.server.base_url
    assert requests.get(base.replace("/v1", "/health"), timeout=5).ok
    assert requests.get(f"{base}/models", timeout=5).json()["data"][0]["id"] == str(SHIPPED)
    for body in ({"prompt": "text", "max_tokens": 1}, {"prompt": [1]}, {"prompt": [], "max_tokens": 1}):
        assert requests.post(served.server.url, json=body, timeout=5).status_code == 400
    assert requests.get(f"{base}/nothing", timeout=5).status_code == 404


def test_a_token_waits_for_no_acknowledgement(served: TransformersServer, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[int] = []
    handler = served.http.RequestHandlerClass
    setup = handler.setup

    def seen(connection: socketserver.StreamRequestHandler) -> None:
        setup(connection)
        options.append(connection.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(handler, "setup", seen)
    events(served)
    assert options
    assert all(options)


def test_it_caches_no_prefixes() -> None:
    with pytest.raises(UsageError, match="no prefix caching"):
        serve(EngineSettings(str(SHIPPED)), None, ServeSettings(64, 30.0, prefix_caching=True))


def test_whole_steps_of_the_server_are_broken_down(
    served: TransformersServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{aiperf.install(tmp_path / 'bin')}:/usr/bin:/bin")
    monkeypatch.setattr(serving_trace, "CAPTURED_SECONDS", 0.02)
    sent = of_stream(range(8, 2000), [Lengths(8, 3)], 24, "counted")
    (tmp_path / "requests.json").write_bytes(msgspec.json.encode(sent))
    order = {"requests": str(tmp_path / "requests.json"), "point": {"concurrency": 2}}
    order |= {"count": 22, "warm_up": 2, "tokenizer": str(SHIPPED)}
    where = {"folder": str(tmp_path / "raw"), "trace_folder": str(tmp_path), "name": "trace"}
    record = served_tasks.serving_trace(served, None, order=order, **where, settle_s=0.1)
    assert {"prefill", "decode"} <= set(record.phases)
    assert record.phases["decode"].categories["expert_gemm"].ms > 0
    assert any(note.startswith("Requests in steps") for note in record.notes)
    assert (tmp_path / "trace.json.gz").is_file()
