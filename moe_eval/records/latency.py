"""The record of the latency evaluator: how long one arm takes for every shape, by every clock there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moe_eval.data.workload import Shape
from moe_eval.machine.rates import Rates
from moe_eval.machine.sampler import GpuSummary
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.run import Schedule

LATENCY_SCHEMA = 2


@dataclass(frozen=True)
class Sample:
    """One timed iteration: a call for the first token alone, then a call for all tokens.

    Attributes:
        started, ended: of the second call, on `time.perf_counter`, in seconds.
        first: seconds until every sequence has its first token, by source. `host` (perf_counter) and `cuda_events`
            time the first call. `engine` is what the engine says of the second.
        last: seconds until every sequence is complete, by source, of the second call.
        request_first: the median over requests of the engine's own time to the first token. None where it has none.
        energy_j: joules of the second call, all GPUs of the arm together. None where NVML does not tell, or the call
            is too short for its counter.
    """

    started: float
    ended: float
    first: Mapping[str, float]
    last: Mapping[str, float]
    request_first: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class WarmUp:
    """The seconds of every warm-up iteration, and why there were no more."""

    seconds: tuple[float, ...]
    ended: str


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class LatencyMetrics:
    """The figures of one shape. None where there is nothing to tell."""

    ttft_ms: Metric | None = None
    tpot_ms: Metric | None = None
    e2e_ms: Metric | None = None
    output_tok_s: Metric | None = None
    prefill_tok_s: Metric | None = None
    j_per_tok: Metric | None = None


@dataclass(frozen=True)
class SourceMedians:
    """Medians in ms by one clock."""

    ttft_ms: float
    e2e_ms: float
    tpot_ms: float | None = None


@dataclass(frozen=True)
class LatencyFigures:
    """What iterations of one shape come to.

    Attributes:
        mean_latency_ms, std_latency_ms: of e2e. The latter is None for one iteration.
        sources: medians by clock.
        request_ttft_ms: the median over requests, from engines that time them.
        notes: what a reader of the figures has to know.
    """

    metrics: LatencyMetrics
    mean_latency_ms: float
    std_latency_ms: float | None
    sources: Mapping[str, SourceMedians]
    request_ttft_ms: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Floor:
    """What bounds a step from below: the roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009).

    Attributes:
        bytes: of weights and key-value cache that have to be moved. Activations are left out.
        flops: a multiplication and an addition each.
        memory_seconds: bytes at the measured rate of a copy.
        flops_seconds: flops at the measured rate of a matrix product. None where no rate of this type is known: then
            arithmetic is left out of `seconds`.
        seconds: the greater of the two, as if they overlapped without loss.
        bound: which of the two it is.
        distinct_experts: of which the weights are read in every layer, mean.
        distinct_source: whether these were counted in the routing, or expected of independent uniform draws.
    """

    bytes: float
    flops: float
    memory_seconds: float
    flops_seconds: float | None
    seconds: float
    bound: Literal["memory", "compute"]
    distinct_experts: float
    distinct_source: Literal["counted", "independent draws"]


@dataclass(frozen=True)
class FloorReached:
    """A floor beside the measured time. `fraction` is predicted over measured; None where nothing was measured."""

    floor: Floor
    predicted_ms: float
    measured_ms: float | None
    fraction: float | None


@dataclass(frozen=True)
class Floors:
    """The floors of one shape. None where there is no such step, or `no_floors` says why there are none."""

    prefill: FloorReached | None = None
    decode_step: FloorReached | None = None
    no_floors: str | None = None


@dataclass(frozen=True)
class Routing:
    """The routing of one batch size.

    Attributes:
        batch_size: the first prompts of the workload, run together.
        experts, top_k: of every layer with a router.
        steps: decode steps of which every prompt of the batch has a token.
        distinct: different experts per layer and decode step, mean over layers and steps. None without steps.
        independent: the same, expected of independent uniform draws (floors.expected_distinct).
        load: tokens, read and made, that went through an expert: by layer and expert.
        effective: exp(entropy of a layer's load), mean over layers: how many equally loaded experts it amounts to.
            Hill's number of order 1 (Hill, Ecology 54(2), 1973).
        max_over_mean: load of a layer's fullest expert over the mean, mean over layers.
    """

    batch_size: int
    experts: int
    top_k: int
    steps: int
    distinct: float | None
    independent: float
    load: tuple[tuple[int, ...], ...]
    effective: float
    max_over_mean: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of GPU memory in use before `together` arms were loaded and after their processes had ended.

    None without NVML.
    """

    before: int | None
    after: int | None
    together: int = 1


@dataclass(frozen=True)
class Capacity:
    """What a GPU has room for, by the checkpoint's files and the sizes of the model: an estimate.

    Attributes:
        weights_bytes: on each GPU.
        kv_cache_tokens: of all sequences together, in what the whole GPU has beside the weights and runner.fit's share
            for everything else. None without a GPU.
    """

    weights_bytes: int | None
    kv_cache_tokens: int | None


@dataclass(frozen=True)
class ShapeLatency:
    """One shape of one arm.

    Attributes:
        num_iterations: timed ones. `warmup_iterations`: of every load.
        output_tokens_per_sec, prefill_tokens_per_sec: medians.
        experts_per_layer_step: distinct experts of a decode step, from the router. None where not counted.
        turns: what NVML saw. `warm_ups`: of every load. `loads`: the iterations of every load, in order.
    """

    name: str
    batch_size: int
    input_len: int
    output_len: int
    num_iterations: int
    warmup_iterations: tuple[int, ...]
    figures: LatencyFigures
    output_tokens_per_sec: float | None
    prefill_tokens_per_sec: float | None
    notes: tuple[str, ...]
    experts_per_layer_step: float | None
    experts_of_independent_draws: float | None
    floors: Floors
    turns: tuple[Turn, ...]
    warm_ups: tuple[WarmUp, ...]
    loads: tuple[tuple[Sample, ...], ...]

    @property
    def shape(self) -> Shape:
        """The sizes."""
        return Shape(self.batch_size, self.input_len, self.output_len)

    @property
    def metrics(self) -> LatencyMetrics:
        """Its figures by name."""
        return self.figures.metrics


@dataclass(frozen=True)
class WorkloadLabel:
    """Which prompts ran: the digest of shapes and token ids, and how they were made."""

    digest: str
    source: str


@dataclass(frozen=True)
class LatencyRecord:
    """One arm's latency, with all its labels. Figures of the first shape stand at the top as well.

    Attributes:
        precision: what the loaded kernels compute in. `precision_planned`: that was asked for.
        batch_size ... prefill_tokens_per_sec: of the first shape; None where nothing was timed.
        capacity: None where nothing was planned.
        nvml: why NVML does not see everything. None where it does.
        routing: by batch size. None where it was not counted, and `no_routing` says why.
        rates: what the machine reaches. None where it was not measured, and `no_rates` says why.
    """

    arm: str
    precision: str
    precision_planned: str
    status: Status
    error: str | None = None
    quant_algo: str | None = None
    weights: str | None = None
    sm_version: str | None = None
    gpu_name: str | None = None
    engine: str | None = None
    moe_backend: str | None = None
    fusion_disabled: bool = False
    workload: WorkloadLabel | None = None
    schedule: Schedule | None = None
    batch_size: int | None = None
    input_len: int | None = None
    output_len: int | None = None
    num_iterations: int | None = None
    warmup_iterations: tuple[int, ...] | None = None
    mean_latency_ms: float | None = None
    std_latency_ms: float | None = None
    output_tokens_per_sec: float | None = None
    prefill_tokens_per_sec: float | None = None
    shapes: tuple[ShapeLatency, ...] = ()
    memory: tuple[MemoryUse, ...] = ()
    capacity: Capacity | None = None
    nvml: str | None = None
    routing: Mapping[int, Routing] | None = None
    no_routing: str | None = None
    rates: Rates | None = None
    no_rates: str | None = None
    labels: ArmLabels = field(default_factory=ArmLabels)
    origin: Origin = field(default_factory=Origin)
    schema: int = LATENCY_SCHEMA
