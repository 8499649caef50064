"""The record of the latency evaluator: how long one arm takes for every shape, by every clock there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.machine.rates import Rates
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.run import Schedule
from moe_eval.records.shape_latency import Routing, ShapeLatency
from moe_eval.records.tool import ToolLabels

LATENCY_SCHEMA = 2


@frozen
class MemoryUse:
    """Bytes of GPU memory in use before `together` arms were loaded and after their processes had ended.

    None without NVML.

    Attributes:
        taken: by the loaded arm, on the GPU that it takes most of.
    """

    before: int | None
    after: int | None
    together: int = 1
    taken: int | None = None


@frozen
class Capacity:
    """What a GPU has room for, by the checkpoint's files and the sizes of the model: an estimate.

    Attributes:
        weights_bytes: on each GPU.
        kv_cache_tokens: of all sequences together, in what the whole GPU has beside the weights and runner.fit's share
            for everything else. None without a GPU.
    """

    weights_bytes: int | None
    kv_cache_tokens: int | None


@frozen
class WorkloadLabel:
    """Which prompts ran: the digest of shapes and token ids, and how they were made."""

    digest: str
    source: str


@frozen
class LatencyRecord:
    """One arm's latency, with all its labels. Figures of the first shape stand at the top as well.

    Attributes:
        precision: what the loaded kernels compute in. `precision_planned`: that was asked for.
        batch_size ... prefill_tokens_per_sec: of the first shape; None where nothing was timed.
        capacity: None where nothing was planned.
        nvml: why NVML does not see everything. None where it does.
        routing: by batch size. None where it was not counted, and `no_routing` says why.
        rates: what the machine reaches. None where it was not measured, and `no_rates` says why.
        tool: which other tool measured it. None for moe_eval.
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
    tool: ToolLabels | None = None
    labels: ArmLabels = field(default_factory=ArmLabels)
    origin: Origin = field(default_factory=Origin)
    schema: int = LATENCY_SCHEMA
