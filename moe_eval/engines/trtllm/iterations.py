"""What TensorRT-LLM says of its own iterations, where enable_iter_perf_stats is set.

Source: TensorRT-LLM, get_stats of llmapi/llm.py and _update_iter_stats of _torch/pyexecutor/py_executor.py. The latter
asks CUDA for the free memory in every iteration, which is timed as well, so the setting is the user's. Issue 6364 tells
of counters that stay 0 in the PyTorch backend: a 0 of what cannot be 0 says nothing here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_eval.engines.served.package import reach
from moe_eval.engines.served.processes import within
from moe_eval.records.samples import EngineSteps

log = logging.getLogger(__name__)

_STATS_SECONDS = 0.3  # the library waits so long for further ones
_ANSWER_SECONDS = 10.0


def read(llm: Any) -> EngineSteps | None:
    """The iterations since the last call, or why they cannot be read. None where the library does not count them.

    It keeps the last 1,000 by default.
    """
    try:
        if reach(llm, "args.enable_iter_perf_stats") is not True:
            return None
        return summary(within(_ANSWER_SECONDS, lambda: _rows(llm)))
    except Exception as error:  # a label, and none may end a run
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        log.warning("TensorRT-LLM does not show its iterations (%s). The record has none.", reason)
        return EngineSteps(why_not=reason)


def _rows(llm: Any) -> list[Any]:
    if hasattr(llm, "get_stats"):
        return list(llm.get_stats(timeout=_STATS_SECONDS))

    async def collected() -> list[Any]:
        return [row async for row in llm.get_stats_async(timeout=_STATS_SECONDS)]

    return asyncio.run(collected())


def summary(rows: Iterable[Any]) -> EngineSteps:
    """The figures of iterations as get_stats returns them: dictionaries, or JSON texts of them."""
    steps: list[Mapping[str, Any]] = [json.loads(row) if isinstance(row, str) else row for row in rows]
    # idle turns of the loop hold no request
    steps = [step for step in steps if _batch(step, "numContextRequests") or _batch(step, "numGenRequests")]
    prefill = [step for step in steps if _batch(step, "numContextRequests")]
    decode = [step for step in steps if not _batch(step, "numContextRequests")]
    used = _most(_cache(step, "usedNumBlocks") for step in steps)
    blocks = _most(_cache(step, "maxNumBlocks") for step in steps)
    size = _most(_cache(step, "tokensPerBlock") for step in steps)
    return EngineSteps(
        steps=len(steps),
        prefill_ms=_median(prefill),
        decode_ms=_median(decode),
        prompts=_most(_batch(step, "numContextRequests") for step in steps),
        prompt_tokens=_most(_batch(step, "numCtxTokens") for step in steps),
        sequences=_most(_batch(step, "numGenRequests") for step in steps),
        queued=_most(step.get("numQueuedRequests") or 0 for step in steps),
        kv_cache_tokens=used * size if used and size else None,
        kv_cache_share=used / blocks if used and blocks else None,
        gpu_bytes=_most(step.get("gpuMemUsage") or 0 for step in steps) or None,
    )


def _batch(step: Mapping[str, Any], name: str) -> int:
    return int((step.get("inflightBatchingStats") or {}).get(name) or 0)


def _cache(step: Mapping[str, Any], name: str) -> int:
    return int((step.get("kvCacheStats") or {}).get(name) or 0)


def _most(counts: Iterable[int]) -> int | None:
    return max(map(int, counts), default=None)


def _median(steps: Sequence[Mapping[str, Any]]) -> float | None:
    latencies = [float(latency) for step in steps if (latency := step.get("iterLatencyMS"))]
    return statistics.median(latencies) if latencies else None
