"""What AIPerf wrote of one load point: a line for every request, and what it sampled of the server's metrics.

Read from profile_export.jsonl and server_metrics_export.json (schema 1.1) of AIPerf 0.13.0, and from
aiperf/common/models/record_models.py. Names of metrics are those of vllm/v1/metrics/loggers.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path

import msgspec

from moe_eval.errors import EngineError
from moe_eval.frozen import frozen
from moe_eval.records.serving import RequestTimes, ServerState

_NS = 1e9
_PHASE = "profiling"  # the other one is the warm-up
# of vLLM, with the name of its earlier versions second
_GAUGES = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "cache": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
_PREEMPTIONS = "vllm:num_preemptions"
_HITS, _LOOKED_UP = "vllm:prefix_cache_hits", "vllm:prefix_cache_queries"  # in tokens of prompts


@frozen
class Failure:
    """Why a request has no answer."""

    message: str = ""
    code: int | None = None
    type: str | None = None


@frozen
class Figure:
    """A metric of a request. Some are lists, which are not read here."""

    value: float | int | tuple[float, ...]


@frozen
class Metadata:
    """When a request was sent, in ns of time.time_ns, and in which phase."""

    benchmark_phase: str
    request_start_ns: int
    request_end_ns: int
    was_cancelled: bool = False


@frozen
class Line:
    """A request."""

    metadata: Metadata
    metrics: Mapping[str, Figure] = field(default_factory=dict)
    error: Failure | None = None

    def number(self, name: str) -> float | None:
        """A metric. None where the request has none of this name."""
        figure = self.metrics.get(name)
        return figure.value if figure is not None and not isinstance(figure.value, tuple) else None


@frozen
class Series:
    """What was sampled of a metric of one process of the server."""

    stats: Mapping[str, float | None] = field(default_factory=dict)


@frozen
class ServerMetric:
    """A metric of the server."""

    series: tuple[Series, ...] = ()


@frozen
class ServerMetrics:
    """The file."""

    metrics: Mapping[str, ServerMetric] = field(default_factory=dict)


def requests(file: Path, count: int) -> tuple[RequestTimes, int, int]:
    """The measured requests in the order in which they were sent, and when they began and ended, in ns of time.time_ns.

    Args:
        count: of the requests that were to be measured.

    Raises:
        EngineError: one has no answer, or is missing: figures without it would be of another load.
    """
    lines = sorted(_lines(file), key=lambda line: line.metadata.request_start_ns)
    failed = Counter(_reason(line) for line in lines if line.error is not None or line.metadata.was_cancelled)
    if failed:
        reason, _ = failed.most_common(1)[0]
        raise EngineError(f"{failed.total()} of {count} requests failed ({reason}). Read the server's log.")
    if len(lines) != count:
        raise EngineError(f"AIPerf has {len(lines)} of {count} requests. Read {file}.")
    first = lines[0].metadata.request_start_ns
    columns = {
        name: [line.number(name) for line in lines]
        for name in ("time_to_first_token", "request_latency", "input_sequence_length", "output_sequence_length")
    }
    for name, values in columns.items():
        if None in values:
            raise EngineError(f"{values.count(None)} of {count} requests have no {name}. Read {file}.")
    ttft, e2e, prompts, answers = ([float(value or 0) for value in values] for values in columns.values())
    times = RequestTimes(
        started_s=tuple((line.metadata.request_start_ns - first) / _NS for line in lines),
        ttft_ms=tuple(ttft),
        e2e_ms=tuple(e2e),
        input_tokens=tuple(map(int, prompts)),
        output_tokens=tuple(map(int, answers)),
    )
    return times, first, max(line.metadata.request_end_ns for line in lines)


def _lines(file: Path) -> Iterator[Line]:
    """The lines of the measured phase."""
    try:
        for row in file.read_bytes().splitlines():
            line = msgspec.json.decode(row, type=Line, strict=False)
            if line.metadata.benchmark_phase == _PHASE:
                yield line
    except (OSError, msgspec.DecodeError) as error:
        raise EngineError(f"{file} is not AIPerf's file of requests ({error}). Install AIPerf 0.13.") from None


def _reason(line: Line) -> str:
    """Why a request failed, without what is another in every request."""
    if line.error is None:
        return "cancelled"
    parts = [str(line.error.code) if line.error.code else "", line.error.type or "", line.error.message]
    return " ".join(" ".join(filter(None, parts)).split())[:200]


def server_state(file: Path) -> ServerState:
    """What the server said of itself in the measured phase."""
    try:
        metrics = msgspec.json.decode(file.read_bytes(), type=ServerMetrics, strict=False).metrics
    except (OSError, msgspec.DecodeError) as error:
        return ServerState(why_not=f"its metrics were not sampled ({type(error).__name__})")
    names = {figure: next((name for name in names if name in metrics), None) for figure, names in _GAUGES.items()}
    hits, looked_up = (_total(metrics, name, "total") for name in (_HITS, _LOOKED_UP))
    if names["running"] is None:
        return ServerState(why_not="it has no metrics of this name")
    return ServerState(
        running=_total(metrics, names["running"], "avg"),
        running_most=_total(metrics, names["running"], "max"),
        waiting=_total(metrics, names["waiting"], "avg"),
        waiting_most=_total(metrics, names["waiting"], "max"),
        kv_cache_share=_greatest(metrics, names["cache"], "max"),
        cached_share=hits / looked_up if hits is not None and looked_up else None,
        preemptions=_total(metrics, _PREEMPTIONS, "total"),
    )


def _values(metrics: Mapping[str, ServerMetric], name: str | None, statistic: str) -> list[float]:
    series = metrics[name].series if name is not None and name in metrics else ()
    return [value for entry in series if (value := entry.stats.get(statistic)) is not None]


def _total(metrics: Mapping[str, ServerMetric], name: str | None, statistic: str) -> float | None:
    """Of all processes of the server together."""
    values = _values(metrics, name, statistic)
    return sum(values) if values else None


def _greatest(metrics: Mapping[str, ServerMetric], name: str | None, statistic: str) -> float | None:
    return max(_values(metrics, name, statistic), default=None)
