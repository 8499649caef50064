"""A server of the shipped model, traced while it is driven: steps are named, and counted beside the requests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from transformers import AutoTokenizer

from moe_eval.data.served_requests import Lengths, of_stream
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.serving import ServeSettings
from moe_eval.engines.transformers.server import serve
from moe_eval.evaluators import serving_trace
from moe_eval.runner import arm_tasks
from tests.conftest import SHIPPED
from tests.doubles import aiperf


def test_whole_steps_of_the_server_are_broken_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{aiperf.install(tmp_path / 'bin')}:/usr/bin:/bin")
    monkeypatch.setattr(serving_trace, "CAPTURED_SECONDS", 0.02)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    requests = of_stream(range(8, 2000), [Lengths(8, 3)], 24, "counted")
    (tmp_path / "requests.json").write_bytes(msgspec.json.encode(requests))
    order = {"requests": str(tmp_path / "requests.json"), "point": {"concurrency": 2}}
    order |= {"count": 22, "warm_up": 2, "tokenizer": str(SHIPPED)}
    served = serve(EngineSettings(str(SHIPPED), dtype="float32", device="cpu"), tokenizer, ServeSettings(32, 30.0))
    where = {"order": order, "folder": str(tmp_path / "raw"), "trace_folder": str(tmp_path), "name": "trace"}
    try:
        record = arm_tasks.serving_trace(served, tokenizer, **where, settle_s=0.1)
    finally:
        served.close()
    assert {"prefill", "decode"} <= set(record.phases)
    assert record.phases["decode"].categories["expert_gemm"].ms > 0
    assert any(note.startswith("Steps had ") for note in record.notes)
    assert (tmp_path / "trace.json.gz").is_file()
