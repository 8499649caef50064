"""Timed iterations of one shape, and the figures that they come to."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.frozen import frozen
from moe_eval.machine.sampler import GpuSummary


@frozen
class EngineSteps:
    """What an engine says of its own steps, in its own terms. None where it does not say.

    Attributes:
        steps: with at least one request. A library that keeps only so many forgets the first ones.
        prefill_ms, decode_ms: medians of the steps with prompts and of those without, by the engine's own clock.
        prompts, prompt_tokens, sequences, queued: the most in one step: of prompts, their tokens, sequences that
            decode, and requests that wait.
        kv_cache_tokens, kv_cache_share: the most of the key-value cache in use.
        gpu_bytes: the most of the GPU's memory in use.
        why_not: why the steps could not be read.
    """

    steps: int = 0
    prefill_ms: float | None = None
    decode_ms: float | None = None
    prompts: int | None = None
    prompt_tokens: int | None = None
    sequences: int | None = None
    queued: int | None = None
    kv_cache_tokens: int | None = None
    kv_cache_share: float | None = None
    gpu_bytes: int | None = None
    why_not: str | None = None


@frozen
class Sample:
    """One timed iteration: a call for the first token alone, then a call for all tokens.

    Attributes:
        started, ended: of the second call, on `time.perf_counter`, in seconds. Both 0 where another tool timed it.
        first: seconds until every sequence has its first token, by source. `host` (perf_counter) and `cuda_events`
            time the first call. `engine` is what the engine says of the second. Empty where another tool has none.
        last: seconds until every sequence is complete, by source, of the second call. Empty likewise.
        request_first: the median over requests of the engine's own time to the first token. None where it has none.
        energy_j: joules of the second call, all GPUs of the arm together. None where NVML does not tell, or the call
            is too short for its counter.
        steps: what the engine says of the steps since its last report. Only the last iteration of a turn has it, and
            only where the engine was loaded to report them.
        per_token: seconds per output token after the first, as another tool states them. None where they follow from
            `first` and `last`.
    """

    started: float
    ended: float
    first: Mapping[str, float]
    last: Mapping[str, float]
    request_first: float | None = None
    energy_j: float | None = None
    steps: EngineSteps | None = None
    per_token: float | None = None


@frozen
class WarmUp:
    """The seconds of every warm-up iteration, and why there were no more: CUT_SHORT on request."""

    seconds: tuple[float, ...]
    ended: str


@frozen
class Turn:
    """One turn of an arm: iterations between those of other arms.

    Attributes:
        load: which load of the arm it belongs to, from 0.
        gpus: what NVML saw meanwhile.
        slow_samples: of every iteration, whether its clock was low. None where nobody could see.
    """

    load: int
    gpus: tuple[GpuSummary, ...]
    slow_samples: tuple[bool | None, ...]


@frozen
class Metric:
    """A figure over the loads of an arm, and the clock it is by.

    Attributes:
        median: of the iterations of one load. Of several loads it is the geometric mean of their medians.
        low, high: its 95 % interval: by load, or of this load alone where there is one. None where there is none.
        loads: over how many the interval is.
        samples: of all iterations, in order.
    """

    median: float
    low: float | None
    high: float | None
    source: str
    samples: tuple[float, ...] = ()
    loads: int = 1


@frozen
class LatencyMetrics:
    """The figures of one shape. None where there is nothing to tell."""

    ttft_ms: Metric | None = None
    tpot_ms: Metric | None = None
    e2e_ms: Metric | None = None
    output_tok_s: Metric | None = None
    prefill_tok_s: Metric | None = None
    j_per_tok: Metric | None = None


@frozen
class SourceMedians:
    """Medians in ms by one clock."""

    ttft_ms: float
    e2e_ms: float
    tpot_ms: float | None = None


@frozen
class LatencyFigures:
    """What iterations of one shape come to.

    Attributes:
        mean_latency_ms, std_latency_ms: of e2e. The latter is None for one iteration, both where there is no e2e.
        sources: medians by clock.
        request_ttft_ms: the median over requests, from engines that time them.
        notes: what a reader of the figures has to know.
    """

    metrics: LatencyMetrics
    mean_latency_ms: float | None
    std_latency_ms: float | None
    sources: Mapping[str, SourceMedians]
    request_ttft_ms: float | None
    notes: tuple[str, ...]
