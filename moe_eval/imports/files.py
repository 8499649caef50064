"""Reads a file of another tool, whichever of them it is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.imports import aiperf, trtllm_bench, vllm_bench
from moe_eval.imports.result import ToolResult
from moe_eval.outside import documents

_FIX = "Give the JSON that a tool wrote, without the details of requests."
_Form = vllm_bench.Latency | vllm_bench.Throughput | vllm_bench.Serving | trtllm_bench.Report | aiperf.Summary
# by fields that no other tool's file has together
_FORMS: tuple[tuple[frozenset[str], type[_Form], str], ...] = (
    (frozenset({"latencies", "avg_latency"}), vllm_bench.Latency, "vllm bench latency"),
    (frozenset({"elapsed_time", "total_num_tokens"}), vllm_bench.Throughput, "vllm bench throughput"),
    (frozenset({"completed", "total_output_tokens", "num_prompts"}), vllm_bench.Serving, "vllm bench serve"),
    (frozenset({"world_info", "request_info", "performance"}), trtllm_bench.Report, "trtllm-bench"),
    (frozenset({"input_config", "request_latency"}), aiperf.Summary, "AIPerf"),
)


def read(file: Path) -> ToolResult:
    """What a file states.

    Raises:
        UsageError: it cannot be read, is of no tool that is known here, or states what cannot be.
    """
    content = documents.read_object(file, _FIX, documents.FIGURE)
    match = next((entry for entry in _FORMS if entry[0] <= content.keys()), None)
    if match is None:
        raise UsageError(
            f"{file} is of no tool that can be imported. Give the JSON of vllm bench, trtllm-bench --report_json, or "
            "AIPerf's profile_export_aiperf.json."
        )
    _, form, tool = match
    try:
        return msgspec.convert(content, form, str_keys=True).result()
    except UsageError as problem:
        raise UsageError(f"{file} {problem}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{file} is not as {tool} writes it ({error}). Measure it again.") from None
