"""Files of `vllm bench`: latency and throughput (--output-json), and serve (--save-result).

Read from the writers in vllm/benchmarks/{latency,throughput,serve}.py of vLLM 0.33.0. `model_id` of the first two is
absent in earlier versions.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.imports.result import Count, Positive, ToolResult, in_seconds
from moe_eval.records.tool import ToolLabels


@frozen
class Latency:
    """Seconds of every iteration of one batch, whose sizes the file does not state."""

    latencies: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    model_id: str | None = None

    def result(self) -> ToolResult:
        """The iterations."""
        labels = ToolLabels("vllm bench latency", "batch", "iteration", model=self.model_id)
        return ToolResult(labels, engine="vllm", e2e_s=self.latencies)


@frozen
class Throughput:
    """Seconds in which all requests were done, and the tokens that they read and made."""

    elapsed_time: Positive
    num_requests: Count
    total_num_tokens: Count
    requests_per_second: Positive
    model_id: str | None = None

    def result(self) -> ToolResult:
        """One iteration in which all requests are at hand."""
        requests = self.num_requests
        labels = ToolLabels("vllm bench throughput", "offline", "iteration", model=self.model_id, requests=requests)
        return ToolResult(labels, batch_size=requests, tokens=self.total_num_tokens, e2e_s=(self.elapsed_time,))


@frozen
class Serving:
    """Medians over requests of a client. `median_e2el_ms` is there where --percentile-metrics named it."""

    completed: Count
    total_input_tokens: Count
    total_output_tokens: Count
    output_throughput: Positive
    num_prompts: Count
    request_rate: Positive | Literal["inf"] = "inf"
    max_concurrency: Count | None = None
    failed: int = 0
    model_id: str | None = None
    median_ttft_ms: Positive | None = None
    median_tpot_ms: Positive | None = None
    median_e2el_ms: Positive | None = None

    def result(self) -> ToolResult:
        """Medians over requests.

        Raises:
            UsageError: requests came at a rate alone, or not all of them ended.
        """
        rate = None if self.request_rate == "inf" else float(self.request_rate)
        if rate is not None and self.max_concurrency is None:
            raise UsageError(
                f"ran at {rate:g} requests per second without a concurrency to compare by. Measure with "
                "--max-concurrency."
            )
        if self.failed or self.completed != self.num_prompts:
            raise UsageError(f"has {self.completed} of {self.num_prompts} requests alone. Measure it again.")
        model, requests = self.model_id, self.completed
        return ToolResult(
            ToolLabels("vllm bench serve", "serving", "median of requests", None, model, requests, rate),
            batch_size=min(self.max_concurrency or self.num_prompts, self.num_prompts),
            input_len=self.total_input_tokens / self.completed,
            output_len=self.total_output_tokens / self.completed,
            e2e_s=in_seconds(self.median_e2el_ms),
            ttft_s=in_seconds(self.median_ttft_ms),
            tpot_s=in_seconds(self.median_tpot_ms),
            output_tok_s=self.output_throughput,
            notes=()
            if self.median_e2el_ms
            else ("the file has no end-to-end time. Measure with --percentile-metrics ttft,tpot,e2el",),
        )
