"""AIPerf's files of one load point, in the form that AIPerf 0.13 writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import EngineError
from moe_eval.imports import aiperf_requests
from moe_eval.records.serving import ServerState


def line(start_ns: int, phase: str = "profiling", **changes: Any) -> dict[str, Any]:
    """As a request stands in profile_export.jsonl, with a part of its metrics."""
    metadata = {
        **{"session_num": 0, "conversation_id": "session_000000", "turn_index": 0, "credit_issued_ns": start_ns - 5},
        **{"request_start_ns": start_ns, "request_ack_ns": start_ns + 9, "request_end_ns": start_ns + 64_844_000},
        **{"benchmark_phase": phase, "phase_index": 0, "worker_id": "worker_fa226005", "was_cancelled": False},
    }
    metrics = {
        "output_sequence_length": {"value": 5, "unit": "tokens"},
        "time_to_first_token": {"value": 23.25, "unit": "ms"},
        "request_latency": {"value": 64.844, "unit": "ms"},
        "input_sequence_length": {"value": 8, "unit": "tokens"},
        "inter_chunk_latency": {"value": [10.1, 10.4], "unit": "ms"},
    }
    return {"metadata": metadata, "metrics": metrics, **changes}


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    file = folder / "profile_export.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return file


def test_measured_requests_come_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    file = write(tmp_path, line(3_000_000_000), line(1_000, "warmup"), line(2_000_000_000))
    times, started, ended = aiperf_requests.requests(file, 2)
    assert times.started_s == (0.0, 1.0)
    assert (times.ttft_ms, times.e2e_ms) == ((23.25,) * 2, (64.844,) * 2)
    assert (times.input_tokens, times.output_tokens) == ((8, 8), (5, 5))
    assert (started, ended) == (2_000_000_000, 3_064_844_000)


def test_one_failed_request_fails_the_point_with_the_commonest_reason(tmp_path: Path) -> None:
    error = {"code": 500, "type": "Internal Server Error", "message": "oops"}
    file = write(tmp_path, line(1), line(2, error=error, metrics={}), line(3, error=error, metrics={}))
    with pytest.raises(EngineError, match=r"^2 of 3 requests failed \(500 Internal Server Error oops\)\."):
        aiperf_requests.requests(file, 3)
    cancelled = line(4)
    cancelled["metadata"]["was_cancelled"] = True
    with pytest.raises(EngineError, match=r"1 of 1 requests failed \(cancelled\)"):
        aiperf_requests.requests(write(tmp_path, cancelled), 1)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has 1 of 2 requests"):
        aiperf_requests.requests(write(tmp_path, line(1)), 2)
    bare = line(1)
    del bare["metrics"]["time_to_first_token"]
    with pytest.raises(EngineError, match="1 of 1 requests have no time_to_first_token"):
        aiperf_requests.requests(write(tmp_path, bare), 1)
    for text in ("no json\n", '{"metadata": 1}\n'):
        (tmp_path / "profile_export.jsonl").write_text(text)
        with pytest.raises(EngineError, match="is not AIPerf's file"):
            aiperf_requests.requests(tmp_path / "profile_export.jsonl", 1)


def test_the_servers_own_figures_are_sums_over_its_processes(tmp_path: Path) -> None:
    def series(*values: float) -> dict[str, Any]:
        stats = [{"endpoint_url": "u", "stats": {"avg": value, "max": 2 * value, "total": value}} for value in values]
        return {"type": "gauge", "description": "", "series": stats}

    metrics = {
        "vllm:num_requests_running": series(3.0, 4.0),
        "vllm:num_requests_waiting": series(1.0),
        "vllm:gpu_cache_usage_perc": series(0.1, 0.2),
        "vllm:num_preemptions": series(2.0, 1.0),
        "vllm:prefix_cache_queries": series(300.0, 100.0),
        "vllm:prefix_cache_hits": series(90.0, 10.0),
    }
    file = tmp_path / "server_metrics_export.json"
    file.write_text(json.dumps({"schema_version": "1.1", "metrics": metrics}))
    assert aiperf_requests.server_state(file) == ServerState(7.0, 14.0, 1.0, 2.0, 0.4, 0.25, 3.0)
    file.write_text(json.dumps({"metrics": {}}))
    assert aiperf_requests.server_state(file).why_not == "it has no metrics of this name"
    assert aiperf_requests.server_state(tmp_path / "nothing").why_not is not None
