"""The record of the kernels evaluator: where the time of one traced run goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import Literal

from moe_eval.frozen import frozen
from moe_eval.records.labels import Origin, Status

KERNELS_SCHEMA = 2


@frozen
class CategoryTime:
    """A category's part of a step: the median over the steps of the slowest rank.

    Attributes:
        share: of all categories' times together, 0 to 1.
        spread_ms: the slowest rank's time minus the fastest rank's. None for one rank.
    """

    ms: float
    share: float
    launches: float
    launches_per_layer: float | None
    spread_ms: float | None = None


@frozen
class KernelTime:
    """One kernel of a phase, by its name: its part of its category's time and launches.

    A category's figures are divided as its kernels divide them on its slowest ranks in all steps, so rows add up to it.
    """

    name: str
    category: str
    fused_with: tuple[str, ...]
    ms: float
    launches: float


@frozen
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


class CaptureFault(str, Enum):
    """What a capture may have got wrong."""

    GRAPHS_WITHOUT_KERNELS = "graph launches without kernels"
    LONGER_THAN_STREAM = "kernels longer than their stream allows"
    LAUNCHES_MISSING = "launches missing"
    UNCLASSIFIED_IN_MOE = "unclassified kernels in the MoE block"
    PROFILER_OVERHEAD = "profiler overhead"
    PROFILER_IDLE = "idle time made by the profiler"


@frozen
class CaptureWarning:
    """A fault of a capture.

    Attributes:
        sentence: what was seen, and what it spoils.
        phase: where. None for the whole trace.
        withheld: the figures of `PhaseTime` that it spoils. They are None in the record.
    """

    fault: CaptureFault
    sentence: str
    phase: str | None = None
    withheld: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The fault by its name, what was seen, and which figures are withheld."""
        where = f" ({self.phase})" if self.phase else ""
        figures = ", ".join(name.removesuffix("_ms").replace("_", " ") for name in self.withheld)
        end = f" Withheld: {figures}." if figures else ""
        return f"{self.fault.value[0].upper()}{self.fault.value[1:]}{where}: {self.sentence}{end}"


@frozen
class RankTime:
    """One rank's part of a phase: medians over the steps, in ms.

    Attributes:
        rank: by process and device, from 0.
        busy_ms: with at least one kernel running, waiting in collectives included. None where it is withheld.
        wait_ms: in collectives, until the last rank arrives.
        launches: kernels of a step.
        tokens: that the rank schedules in a step, where the engine's ranges tell. None elsewhere. Which of them go to
            its experts no trace tells.
    """

    rank: int
    device: int
    busy_ms: float | None
    expert_gemm_ms: float
    wait_ms: float
    launches: float
    tokens: float | None = None


@frozen
class LateRank:
    """A rank that arrived last at collectives, and why. Figures are means over the steps.

    Attributes:
        collectives: per step, that it was the last to enter.
        late_ms: per step, by which it was later than the rank before it, added up.
        because: `late_ms` by category and "launch gaps": what the rank ran since the collective before, and the time in
            which it ran nothing, less those of the rank before it. The longest first. They add up to it.
    """

    rank: int
    collectives: float
    late_ms: float
    because: Mapping[str, float]


@frozen
class Collectives:
    """The collectives of a phase, matched over ranks. Times are ms per step, medians over the steps.

    Attributes:
        matched: per step, that all ranks of their communicator take part in.
        unmatched: of the whole phase, that lack a rank. Their durations are neither transfer nor wait.
        transfer_ms: all ranks are in the same collective, from the last one's begin to the first one's end.
        message_bytes: per step, where the trace has sizes.
        late: ranks that were last, the one with the most time first.
    """

    matched: float
    unmatched: int
    transfer_ms: float
    message_bytes: float | None
    late: tuple[LateRank, ...]


@frozen
class PhaseTime:
    """One phase of a trace. Times in ms, medians over the steps that are not set aside.

    A step is one event on all ranks. Busy, overlap and ceilings are those of the rank that works the longest. A figure
    that a fault of the capture spoils is None.

    Attributes:
        steps: that count. `set_aside`: reasons and counts of those that do not.
        moe_layers: MoE blocks of a step, as the order of launches tells.
        total_ms: the categories' times together. `total_launches` likewise.
        busy_ms: with at least one kernel running (the union of their intervals). `overlap_ms`: more than one.
        span_ms: from the first kernel to the end of the last, of all ranks. `idle_ms`: of the span, nothing running.
        wall_ms: from a step's begin to the next one's, of all ranks. `gap_ms`: of it, between the two. None where the
            trace has no times or no next step.
        ceiling: of the busy time without waiting in collectives. `wall_ceiling`: of the wall time.
        classified: the share of kernel time that has a category other than `other`. `unclassified`: the names of the
            rest that take the most.
        functions: the 50 kernels that take the most, longest first.
        layers_ms: by layer of the model, its kernels' ms per step on the slowest rank, where ranges name layers.
        ranks: of a trace of several GPUs, else empty. `collectives` likewise.
        expert_imbalance: the slowest rank's expert GEMM time by the mean over ranks, median over the steps. None for
            one rank.
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
    ceiling: Ceiling | None
    wall_ceiling: Ceiling | None
    classified: float
    unclassified: tuple[KernelTime, ...] = ()
    functions: tuple[KernelTime, ...] = ()
    layers_ms: Mapping[int, float] = field(default_factory=dict)
    ranks: tuple[RankTime, ...] = ()
    collectives: Collectives | None = None
    expert_imbalance: float | None = None


@frozen
class TraceSource:
    """Which profiler wrote a trace, and on which GPUs."""

    format: str
    version: str | None = None
    gpus: tuple[str, ...] = ()


@frozen
class TracedTime:
    """A part of a whole trace: its kernels, copies and sets on all devices, inside and outside of steps.

    Attributes:
        time: their durations together, in the record's `unit`.
        share: of the total, 0 to 1.
        count: of kernels, copies and sets.
    """

    time: float
    share: float
    count: int


@frozen
class KernelsRecord:
    """One trace, broken down.

    `categories`, `total` and `ceiling` are of the whole trace, `phases` of a step.

    Attributes:
        trace: the file's name. `shape`: of the traced run; None where nobody said.
        kernels, copies, sets: rows of the trace.
        warnings: faults of the capture.
        devices: GPUs in the trace.
        steps_found_by, gates_told: how steps and gate GEMMs were told.
        precision: that was asked for; None where nobody said. `precision_seen`, `moe_backend_seen`: by the kernels
            that ran, with `evidence`. `contradiction`: a sentence where both differ. `verified`: whether they agree;
            None where one is not known.
        kv_cache_seen: `fp8` or `unquantised`, by the kernels that write and read the key-value cache. None where their
            names do not show it.
        unit: of the times in `categories` and `total`.
        transfer_ms: in which all ranks are in the same collective, each counted once. None for one rank.
        ceiling: 1 / (1 - share of expert_gemm), by durations without waiting for other ranks. None where nothing else
            ran, or for no trace.
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
    warnings: tuple[CaptureWarning, ...] = ()
    kernels: int = 0
    copies: int = 0
    sets: int = 0
    devices: int = 0
    steps_found_by: str | None = None
    gates_told: str | None = None
    precision: str | None = None
    precision_seen: str | None = None
    moe_backend_seen: str | None = None
    evidence: str | None = None
    contradiction: str | None = None
    verified: bool | None = None
    kv_cache_seen: str | None = None
    unit: Literal["ms"] = "ms"
    categories: Mapping[str, TracedTime] = field(default_factory=dict)
    transfer_ms: float | None = None
    total: TracedTime | None = None
    ceiling: float | None = None
    phases: Mapping[str, PhaseTime] = field(default_factory=dict)
    unprofiled_ms: float | None = None
    unprofiled_samples_ms: tuple[float, ...] = ()
    profiled_ms: float | None = None
    profiler_overhead: float | None = None
    origin: Origin = field(default_factory=Origin)
    schema: int = KERNELS_SCHEMA

    def withheld(self, phase: str) -> frozenset[str]:
        """The figures of a phase that faults of the capture spoil."""
        faults = (warning for warning in self.warnings if warning.phase in (None, phase))
        return frozenset(name for warning in faults for name in warning.withheld)
