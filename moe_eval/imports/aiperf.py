"""The summary of AIPerf (profile_export_aiperf.json).

Read from aiperf/common/models/export_models.py and aiperf/config/phases.py of AIPerf 0.13.0 (schema 1.4), and from
docs/reference/json-export-schema.md. Earlier versions state the concurrency in `loadgen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.imports.result import Count, Positive, ToolResult, in_seconds
from moe_eval.records.tool import ToolLabels


@frozen
class Statistics:
    """A metric. Totals and rates have `avg` alone."""

    unit: str
    avg: float | None = None
    p50: float | None = None


@frozen
class Phase:
    """A phase of the load. Only the profiling one is measured, `kind` of which earlier versions write as its name."""

    name: str | None = None
    kind: str | None = None
    concurrency: Count | None = None
    rate: Positive | None = None


@frozen
class LoadGenerator:
    """The load, as versions before phases wrote it."""

    concurrency: Count | None = None
    request_rate: Positive | None = None


@frozen
class Model:
    """One model of the server."""

    name: str


@frozen
class Models:
    """The models of the server."""

    items: tuple[Model, ...] = ()


@frozen
class Endpoint:
    """The server, as versions before `models` wrote it."""

    model_names: tuple[str, ...] = ()


@frozen
class Configuration:
    """What was measured."""

    phases: tuple[Phase, ...] = ()
    loadgen: LoadGenerator = field(default_factory=LoadGenerator)
    models: Models = field(default_factory=Models)
    endpoint: Endpoint = field(default_factory=Endpoint)


@frozen
class TelemetryGpu:
    """A GPU that was watched."""

    gpu_name: str | None = None


@frozen
class TelemetryEndpoint:
    """GPUs by their number."""

    gpus: Mapping[str, TelemetryGpu] = field(default_factory=dict)


@frozen
class Telemetry:
    """Where GPUs were watched."""

    endpoints: Mapping[str, TelemetryEndpoint] = field(default_factory=dict)


@frozen
class Summary:
    """The file."""

    input_config: Configuration
    request_latency: Statistics
    request_count: Statistics
    input_sequence_length: Statistics
    output_sequence_length: Statistics | None = None
    output_token_throughput: Statistics | None = None
    time_to_first_token: Statistics | None = None
    inter_token_latency: Statistics | None = None
    error_request_count: Statistics | None = None
    telemetry_data: Telemetry = field(default_factory=Telemetry)
    aiperf_version: str | None = None
    was_cancelled: bool | None = None
    is_complete: bool | None = None

    def result(self) -> ToolResult:
        """Medians over requests.

        Raises:
            UsageError: requests came at a rate alone, or not all of them ended.
        """
        errors = self.error_request_count.avg if self.error_request_count else None
        if self.was_cancelled or self.is_complete is False or errors:
            raise UsageError("is of a run that did not end well. Measure it again.")
        phases = [phase for phase in self.input_config.phases if (phase.kind or phase.name) != "warmup"]
        if len(phases) > 1:
            raise UsageError("has figures over several phases. Give the file of one phase.")
        older = self.input_config.loadgen
        load = phases[0] if phases else Phase(concurrency=older.concurrency, rate=older.request_rate)
        if load.rate is not None and load.concurrency is None:
            raise UsageError(
                f"ran at {load.rate:g} requests per second without a concurrency to compare by. Measure with "
                "--concurrency."
            )
        models = [model.name for model in self.input_config.models.items] or self.input_config.endpoint.model_names
        gpus = {gpu.gpu_name for place in self.telemetry_data.endpoints.values() for gpu in place.gpus.values()}
        return ToolResult(
            ToolLabels(
                name="aiperf",
                load="serving",
                statistic="median of requests",
                version=self.aiperf_version,
                model=models[0] if len(models) == 1 else None,
                requests=round(self.request_count.avg) if self.request_count.avg else None,
                request_rate=load.rate,
            ),
            gpu_name=gpus.pop() if len(gpus) == 1 else None,
            batch_size=load.concurrency,
            input_len=self.input_sequence_length.avg,
            output_len=self.output_sequence_length.avg if self.output_sequence_length else None,
            e2e_s=_seconds("request_latency", self.request_latency),
            ttft_s=_seconds("time_to_first_token", self.time_to_first_token),
            tpot_s=_seconds("inter_token_latency", self.inter_token_latency),
            output_tok_s=self.output_token_throughput.avg if self.output_token_throughput else None,
        )


def _seconds(name: str, times: Statistics | None) -> tuple[float, ...]:
    if times is None or times.p50 is None:
        return ()
    if times.unit != "ms" or times.p50 <= 0:
        raise UsageError(f"has {name} in {times.unit}, {times.p50:g}. Give a file with times in ms.")
    return in_seconds(times.p50)
