"""The record of the kernels evaluator: where the time of one traced run goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_eval.records.labels import Origin, Status

KERNELS_SCHEMA = 2


@dataclass(frozen=True)
class CategoryTime:
    """A category's part of a step: medians over the steps. `share`: of all categories' times together, 0 to 1."""

    ms: float
    share: float
    launches: float
    launches_per_layer: float | None


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a phase, by its name: means over the steps."""

    name: str
    category: str
    fused_with: tuple[str, ...]
    ms: float
    launches: float


@dataclass(frozen=True)
class Ceiling:
    """How many times faster a step could become if its expert GEMMs took no time, or ran twice as fast.

    With f the part of the step in which nothing but expert GEMMs run: 1 / (1 - f) and 1 / (1 - f + f / s) (Amdahl's
    law).

    Attributes:
        expert_gemm_share: f.
        if_free: 1 / (1 - f). None where f is 1.
        if_twice_as_fast: for s = 2.
    """

    expert_gemm_share: float
    if_free: float | None
    if_twice_as_fast: float

    def at(self, speed_up: float) -> float:
        """For expert GEMMs that are faster by this factor."""
        return 1 / (1 - self.expert_gemm_share + self.expert_gemm_share / speed_up)


@dataclass(frozen=True)
class PhaseTime:
    """One phase of a trace. Times in ms, medians over the steps of all devices that are not set aside.

    Attributes:
        steps: that count. `set_aside`: reasons and counts of those that do not.
        moe_layers: MoE blocks of a step, as the order of launches tells.
        total_ms: the categories' times together. `total_launches` likewise.
        busy_ms: with at least one kernel running (the union of their intervals). `overlap_ms`: more than one.
        span_ms: from the first kernel to the end of the last. `idle_ms`: of the span, nothing running.
        wall_ms: from a step's begin to the next one's. `gap_ms`: of it, between the two. None where the trace has no
            times or no next step.
        ceiling: of the busy time. `wall_ceiling`: of the wall time.
        classified: the share of kernel time that has a category other than `other`. `unclassified`: the names of the
            rest that take the most.
        functions: the 50 kernels that take the most, longest first.
        layers_ms: by layer of the model, its kernels' ms per step, where ranges name layers.
    """

    steps: int
    set_aside: Mapping[str, int]
    moe_layers: int | None
    categories: Mapping[str, CategoryTime]
    total_ms: float
    total_launches: float
    busy_ms: float | None
    overlap_ms: float | None
    span_ms: float | None
    idle_ms: float | None
    wall_ms: float | None
    gap_ms: float | None
    ceiling: Ceiling
    wall_ceiling: Ceiling | None
    classified: float
    unclassified: tuple[KernelTime, ...] = ()
    functions: tuple[KernelTime, ...] = ()
    layers_ms: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TraceSource:
    """Which profiler wrote a trace, and on which GPUs."""

    format: str
    version: str | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelsRecord:
    """One trace, broken down.

    Attributes:
        trace: the file's name. `shape`: of the traced run; None where nobody said.
        kernels, copies, sets: rows of the trace. `total_ns`: their durations together.
        devices: GPUs in the trace.
        steps_found_by, gates_told: how steps and gate GEMMs were told.
        precision: that was asked for; None where nobody said. `precision_seen`, `moe_backend_seen`: by the kernels
            that ran, with `evidence`. `contradiction`: a sentence where both differ. `verified`: whether they agree;
            None where one is not known.
        unprofiled_ms, profiled_ms: the run's time without and with the profiler; `profiler_overhead` is their ratio
            minus 1. None for a trace from elsewhere.
    """

    trace: str | None = None
    arm: str | None = None
    shape: str | None = None
    status: Status = Status.FINISHED
    error: str | None = None
    source: TraceSource | None = None
    notes: tuple[str, ...] = ()
    kernels: int = 0
    copies: int = 0
    sets: int = 0
    total_ns: int = 0
    devices: int = 0
    steps_found_by: str | None = None
    gates_told: str | None = None
    precision: str | None = None
    precision_seen: str | None = None
    moe_backend_seen: str | None = None
    evidence: str | None = None
    contradiction: str | None = None
    verified: bool | None = None
    phases: Mapping[str, PhaseTime] = field(default_factory=dict)
    unprofiled_ms: float | None = None
    unprofiled_samples_ms: tuple[float, ...] = ()
    profiled_ms: float | None = None
    profiler_overhead: float | None = None
    origin: Origin = field(default_factory=Origin)
    schema: int = KERNELS_SCHEMA
