"""What served requests come to: throughput, waiting times of users and goodput, each with its interval over loads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from moe_eval.evaluators.speed import metric
from moe_eval.records.samples import Metric
from moe_eval.records.serving import RequestTimes, ServedLoad, ServerState, ServingLimits, ServingMetrics

_GENERATOR = "generator"  # the clock of these figures


def _enough(quantile: float) -> int:
    """Requests that bound a quantile's error to (1 - q) / 20 at 99 % confidence.

    MLPerf Inference: inference_policies/inference_rules.adoc, "How many queries": normal approximation of a binomial.
    """
    margin = (1 - quantile) / 20
    return round(2.5758293035489004**2 * quantile * (1 - quantile) / margin**2)


ADDED = 0.05  # more tokens per second, without which twice the users add nothing: each only waits longer
GROWN = 1.5  # times: a server with time to spare takes as long for late requests as for early ones
ENOUGH = _enough(0.99)  # 262,742 requests of a point, all loads together
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def tpot_ms(times: RequestTimes) -> list[float]:
    """ms per output token after the first of every request that has more than one."""
    return [
        (e2e - ttft) / (tokens - 1)
        for ttft, e2e, tokens in zip(times.ttft_ms, times.e2e_ms, times.output_tokens, strict=True)
        if tokens > 1
    ]


def seconds(times: RequestTimes) -> float:
    """From the first request's start to the last one's end."""
    ends = (start + e2e / 1000 for start, e2e in zip(times.started_s, times.e2e_ms, strict=True))
    return max(ends) - min(times.started_s)


def tokens_per_second(times: RequestTimes) -> float:
    """Output tokens of all users together."""
    return sum(times.output_tokens) / seconds(times)


def is_saturated(before: float, after: float, times: float = 2.0) -> bool:
    """Whether so many `times` the users add less to the tokens per second than ADDED for every doubling."""
    growth_needed: float = (1 + ADDED) ** math.log2(times)
    return after < growth_needed * before


def goodput(times: RequestTimes, limits: ServingLimits) -> float | None:
    """Requests per second that kept every limit. None without a limit."""
    if not limits.is_set:
        return None
    most_ttft, most_tpot = (math.inf if limit is None else limit for limit in (limits.ttft_ms, limits.tpot_ms))
    good = sum(
        ttft <= most_ttft and (tokens < 2 or (e2e - ttft) / (tokens - 1) <= most_tpot)
        for ttft, e2e, tokens in zip(times.ttft_ms, times.e2e_ms, times.output_tokens, strict=True)
    )
    return good / seconds(times)


def joules(load: ServedLoad) -> float | None:
    """That the GPUs of an arm took while requests were measured. None where NVML does not tell."""
    watts = [gpu.power_w_mean for gpu in load.gpus]
    known_watts = [power for power in watts if power is not None]
    return sum(known_watts) * (load.ended - load.started) if watts and len(known_watts) == len(watts) else None


def metrics(loads: Sequence[ServedLoad], gpus: int, limits: ServingLimits) -> ServingMetrics:
    """The figures of one point.

    Args:
        loads: at least one.
        gpus: of the arm. 0 for a CPU and a server of which nobody knows.
    """
    requests = sum(len(load.times.e2e_ms) for load in loads)
    values = [of_load(load, gpus, limits) for load in loads]
    names = [field.name for field in fields(ServingMetrics) if requests >= ENOUGH or "_p99_" not in field.name]
    return ServingMetrics(**{name: _metric([figures[name] for figures in values]) for name in names})


def of_load(load: ServedLoad, gpus: int, limits: ServingLimits) -> dict[str, float | None]:
    """The figures of one load by the names of ServingMetrics. None where there is nothing to tell."""
    times, tpot, energy = load.times, tpot_ms(load.times), joules(load)
    tokens, rate = sum(times.output_tokens), tokens_per_second(times)
    median_tpot = statistics.median(tpot) if tpot else 0.0  # 0 where a server sends an answer as a whole
    figures: dict[str, float | None] = {
        "output_tok_s": rate,
        "output_tok_s_per_gpu": rate / gpus if gpus else None,
        "tok_s_per_user": 1000 / median_tpot if median_tpot > 0 else None,
        "goodput_req_s": goodput(times, limits),
        "j_per_tok": None if energy is None else energy / max(1, tokens),
    }
    for figure, values in (("ttft", times.ttft_ms), ("tpot", tpot), ("e2e", times.e2e_ms)):
        for name, quantile in _QUANTILES.items():
            figures[f"{figure}_{name}_ms"] = float(np.quantile(values, quantile)) if values else None
    return figures


def _metric(values: Sequence[float | None]) -> Metric | None:
    """A figure with one value a load. None where a load has none."""
    known_values = [value for value in values if value is not None and math.isfinite(value)]
    if not known_values or len(known_values) < len(values):
        return None
    return metric([1] * len(known_values), known_values, _GENERATOR)


def growth(times: RequestTimes) -> float:
    """How many times as long as the first quarter of the requests the last quarter takes, by medians."""
    count = max(1, len(times.e2e_ms) // 4)
    return statistics.median(times.e2e_ms[-count:]) / statistics.median(times.e2e_ms[:count])


def overload(loads: Sequence[ServedLoad]) -> list[str]:
    """A note where requests come at a rate that the server cannot keep up with: their queue has no end."""
    factor = max(growth(load.times) for load in loads)
    if factor < GROWN:
        return []
    return [
        f"the last requests take {factor:.1f} times as long as the first: they come faster than they are answered, so "
        "figures depend on --num_requests"
    ]


def notes(loads: Sequence[ServedLoad], output_lens: Sequence[int]) -> list[str]:
    """What a reader of a point's figures has to know.

    Args:
        output_lens: tokens that the measured requests were to make, in order.
    """
    requests = sum(len(load.times.e2e_ms) for load in loads)
    sentences = [f"no p99: it takes {ENOUGH:,} requests of a point by MLPerf's rule"] if requests < ENOUGH else []
    sentences += _state([load.state for load in loads])
    generated = {tuple(load.times.output_tokens) for load in loads}
    if any(sum(tokens) != sum(output_lens) for tokens in generated):
        totals = ", ".join(f"{sum(load.times.output_tokens):,}" for load in loads)
        sentences.append(f"answers have {totals} tokens by load where {sum(output_lens):,} were asked for")
    return sentences


def _state(states: Sequence[ServerState]) -> list[str]:
    """What the server said of itself, over all loads. Empty where it said nothing."""
    running = [state.running for state in states if state.running is not None]
    peaks = [state.running_most for state in states if state.running_most is not None]
    waiting = [state.waiting_most for state in states if state.waiting_most is not None]
    shares = [state.kv_cache_share for state in states if state.kv_cache_share is not None]
    cached = [state.cached_share for state in states if state.cached_share]
    preemptions = [state.preemptions for state in states if state.preemptions is not None]
    parts = [
        f"{statistics.fmean(running):.1f} requests ran in the mean" if running else "",
        f"at most {max(peaks):g} ran" if peaks else "",
        f"at most {max(waiting):g} waited" if waiting else "",
        f"{100 * max(shares):.1f} % of the KV cache were in use" if shares else "",
        f"{100 * max(cached):.1f} % of the tokens of prompts came from the prefix cache" if cached else "",
        f"{sum(preemptions):g} were preempted" if preemptions else "",
    ]
    text = ", ".join(filter(None, parts))
    return [f"by the server's metrics {text}"] if text else []
