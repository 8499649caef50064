"""Reports of `trtllm-bench throughput` and `trtllm-bench latency` (--report_json).

Read from ReportUtility.get_statistics_dict in tensorrt_llm/bench/dataclasses/reporting.py of TensorRT-LLM 1.2.0rc3.
`machine` is absent in earlier versions.
"""

from __future__ import annotations

from moe_eval.checkpoint.precision import OF_DTYPE
from moe_eval.frozen import frozen
from moe_eval.imports.result import Count, Positive, ToolResult, in_seconds
from moe_eval.records.tool import ToolLabels

# names of TensorRT-LLM's QuantAlgo that are a precision here. Other names stay as they are, in small letters
_OF_QUANTIZATION = {"FP8": "fp8", "FP8_BLOCK_SCALES": "fp8_block", "NVFP4": "nvfp4"}
_BY_ITSELF = 1.05  # mean concurrent requests up to which they came one after the other


@frozen
class Engine:
    """What was loaded. `quantization` is None for a checkpoint in `dtype`."""

    model: str
    version: str
    dtype: str | None = None
    quantization: str | None = None


@frozen
class Gpu:
    """The first GPU. All of a run are alike."""

    name: str


@frozen
class World:
    """Over how many GPUs, and the most sequences of one step."""

    world_size: Count
    max_batch_size: Count


@frozen
class Requests:
    """How many requests there were, and their means."""

    num_requests: Count
    avg_num_concurrent_requests: Positive
    avg_input_length: Positive
    avg_output_length: Positive


@frozen
class Percentiles:
    """Milliseconds. A time of 0 stands for none."""

    p50: float


@frozen
class Performance:
    """Of all requests together, and of single ones."""

    system_output_throughput_tok_s: Positive
    request_latency_percentiles_ms: Percentiles


@frozen
class Streaming:
    """There where answers were streamed."""

    tpot_percentiles: Percentiles
    ttft_percentiles: Percentiles


@frozen
class Report:
    """The file."""

    engine: Engine
    world_info: World
    request_info: Requests
    performance: Performance
    machine: Gpu | None = None
    streaming_metrics: Streaming | None = None

    def result(self) -> ToolResult:
        """Medians over requests. The file states no concurrency but the mean one, which counts where it is 1."""
        engine, requests, streaming = self.engine, self.request_info, self.streaming_metrics
        is_single = self.world_info.max_batch_size == 1 and requests.avg_num_concurrent_requests <= _BY_ITSELF
        algorithm = engine.quantization
        precision = OF_DTYPE.get(engine.dtype or "") if algorithm is None else algorithm.lower()
        labels = ToolLabels(
            name="trtllm-bench",
            load="batch" if is_single else "serving",
            statistic="median of requests",
            version=engine.version,
            model=engine.model,
            requests=requests.num_requests,
            gpus=self.world_info.world_size,
        )
        return ToolResult(
            labels,
            engine="trtllm",
            gpu_name=self.machine.name if self.machine else None,
            precision=_OF_QUANTIZATION.get(algorithm or "", precision),
            quant_algo=algorithm,
            batch_size=1 if is_single else None,
            input_len=requests.avg_input_length,
            output_len=requests.avg_output_length,
            e2e_s=_seconds(self.performance.request_latency_percentiles_ms),
            ttft_s=_seconds(streaming.ttft_percentiles if streaming else None),
            tpot_s=_seconds(streaming.tpot_percentiles if streaming else None),
            output_tok_s=self.performance.system_output_throughput_tok_s,
        )


def _seconds(times: Percentiles | None) -> tuple[float, ...]:
    return in_seconds(times.p50) if times and times.p50 > 0 else ()
