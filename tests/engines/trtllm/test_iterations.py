"""The library's own iterations in the record of a latency, and that they end no run."""

from __future__ import annotations

import json
import statistics
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from moe_eval.data.workload import Shape
from moe_eval.engines.trtllm import iterations
from moe_eval.evaluators import latency
from moe_eval.machine.nvml import Nvml
from moe_eval.records.samples import EngineSteps
from tests.engines.trtllm.conftest import NEWEST, Load


def row(latency_ms: float, *, prompts: int = 0, tokens: int = 0, sequences: int = 0, used: int = 0) -> dict[str, Any]:
    batch = {"numContextRequests": prompts, "numCtxTokens": tokens, "numGenRequests": sequences}
    cache = {"maxNumBlocks": 40, "freeNumBlocks": 40 - used, "usedNumBlocks": used, "tokensPerBlock": 32}
    counters = {"gpuMemUsage": 7 << 30, "cpuMemUsage": 0, "numQueuedRequests": prompts}
    return {"iterLatencyMS": latency_ms, "inflightBatchingStats": batch, "kvCacheStats": cache, **counters}


ROWS = [
    row(9.0),
    row(30.0, prompts=2, tokens=64, used=2),
    row(40.0, prompts=1, tokens=90, sequences=2, used=6),
    *[row(ms, sequences=3, used=8) for ms in (5.0, 7.0, 6.0)],
]
SUMMARY = EngineSteps(5, 35.0, 6.0, 2, 90, 3, 2, 256, 0.2, 7 << 30)


@pytest.mark.parametrize("write", [dict, json.dumps])
def test_the_figures_of_iterations(write: Any) -> None:
    assert iterations.summary(map(write, ROWS)) == SUMMARY


@pytest.mark.parametrize("lacking", ["iterLatencyMS", "kvCacheStats", "gpuMemUsage", "numQueuedRequests"])
@pytest.mark.parametrize("value", [0, None, "absent"])
def test_a_counter_that_is_0_or_absent_says_nothing(lacking: str, value: object) -> None:
    """Fact sheet, section 4: some counters are 0 in the PyTorch backend."""
    rows = [{name: entry for name, entry in step.items() if (name, value) != (lacking, "absent")} for step in ROWS]
    if value != "absent":
        rows = [{**step, lacking: value} for step in rows]
    steps = iterations.summary(rows)
    assert (steps.steps, steps.prompts, steps.why_not) == (5, 2, None)
    fields = {
        "iterLatencyMS": (steps.prefill_ms, steps.decode_ms),
        "kvCacheStats": (steps.kv_cache_tokens, steps.kv_cache_share),
        "gpuMemUsage": (steps.gpu_bytes,),
        "numQueuedRequests": (steps.queued or None,),
    }
    assert set(fields[lacking]) == {None}
    assert iterations.summary([]) == EngineSteps()


def counting(**methods: Any) -> Any:
    return SimpleNamespace(args=SimpleNamespace(enable_iter_perf_stats=True), **methods)


def test_a_version_that_has_the_asynchronous_form_alone() -> None:
    async def rows(timeout: float) -> AsyncIterator[dict[str, Any]]:
        assert timeout > 0
        for step in ROWS:
            yield step

    assert iterations.read(counting(get_stats_async=rows)) == SUMMARY


def test_iterations_that_cannot_be_read_are_a_line() -> None:
    def fails(timeout: float) -> Any:
        raise AssertionError("no statistics\nof this scheduler")

    steps = iterations.read(counting(get_stats=fails))
    assert steps == EngineSteps(why_not="AssertionError: no statistics of this scheduler")
    for llm in (counting(), counting(get_stats=lambda timeout: [7])):
        steps = iterations.read(llm)
        assert steps is not None
        assert steps.why_not is not None
    assert iterations.read(SimpleNamespace(get_stats=fails)) is None


@NEWEST
def test_timed_iterations_have_them_where_the_user_sets_it(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(2, 6, 4)
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]]
    engine = load(options={"enable_iter_perf_stats": "true", "kv_cache_max_tokens": 320})
    first, last = latency.measure(engine, prompts, shape, 2, Nvml.open(()))
    assert first.steps is None
    steps = last.steps
    assert steps is not None
    # of every iteration: prompts for one token, then prompts and three more tokens
    assert steps.steps >= 2 * (1 + 4) - 1, "the last may come after the response"
    assert (steps.why_not, steps.gpu_bytes) == (None, None)
    assert steps.sequences == 2 or steps.prompts == 2
    assert (steps.kv_cache_tokens, steps.kv_cache_share) == (64, 0.2)
    assert steps.decode_ms is not None
    assert 0 < steps.decode_ms < 1000 * statistics.median([first.last["host"], last.last["host"]])
    monkeypatch.setenv("TRTLLM_DOUBLE", "stats_fail")
    (failed,) = latency.measure(engine, prompts, shape, 1, Nvml.open(()))
    assert failed.steps == EngineSteps(why_not="AssertionError: no statistics of this scheduler")
    monkeypatch.setenv("TRTLLM_DOUBLE", "stats_hang")
    monkeypatch.setattr(iterations, "_ANSWER_SECONDS", 0.1)
    assert engine.steps() == EngineSteps(why_not="TimeoutError: no answer within 0.1 s")


@NEWEST
def test_nothing_is_asked_unless_the_user_sets_it(engine: Any) -> None:
    assert engine.steps() is None
