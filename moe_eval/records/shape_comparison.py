"""Two arms at one shape: their speed, what makes it comparable, and the kernels that explain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.records.kernels import KernelTime
from moe_eval.records.ratios import Sides, SpeedRatios
from moe_eval.records.verdicts import Verdict


@frozen
class Fairness:
    """Whether both arms did the same work at a shape: steps of the prompts and experts per step.

    Attributes:
        is_fair: None where nobody could look. `reason` says why it is not, or not known.
        widened: the ratio of the experts that both read in a decode step, at least 1.
    """

    is_fair: bool | None = None
    reason: str | None = None
    widened: float = 1.0


@frozen
class Clocks:
    """Of both arms, reference first: the median SM clock in MHz, and how many iterations ran at a low clock.

    None where nobody could read it.
    """

    sm_mhz: tuple[float | None, float | None]
    slow_samples: tuple[int | None, int | None]

    @property
    def is_one_slow(self) -> bool:
        """Whether some iterations of one arm, and none of the other, ran at a low clock."""
        counts = self.slow_samples
        return None not in counts and (counts[0] == 0) != (counts[1] == 0)


@frozen
class CategoryChange:
    """A category in ms per step. `change_ms` is after minus before."""

    before_ms: float
    after_ms: float
    change_ms: float
    before_launches: float
    after_launches: float


@frozen
class PhaseChange:
    """One phase of two traces, after (the other arm) minus before (the reference), in ms per step.

    The step's change is the sum of the categories' changes, less the change of their overlap, plus the change of the
    time in which nothing runs, plus a residual: every figure is a median of its own, and medians do not add up.

    Attributes:
        kernel_change_ms: of all categories together.
        step_is: `wall` where `step_ms` is from a step's begin to the next one's, `span` where it is the kernels' span.
        step_ms, busy_ms: before and after.
        expert_gemm_ratio: how many times faster the expert GEMMs are. None where one side has none.
        ceiling_busy, ceiling_wall: what that alone would make of the first trace's busy and wall time.
        predicted_ratio_busy, predicted_ratio_step: how many times faster the kernels, and the steps under the profiler.
        measured_ratio: without a profiler: of the time to the first token of prefill, of the time per output token of
            decode. None where not known.
        new, vanished: kernels that run on one side only, longest first.
    """

    categories: Mapping[str, CategoryChange]
    kernel_change_ms: float
    step_is: str
    step_ms: tuple[float, float] | None
    busy_ms: tuple[float, float] | None
    overlap_change_ms: float | None
    waiting_change_ms: float | None
    residual_ms: float | None
    expert_gemm_ratio: float | None
    ceiling_busy: float | None
    ceiling_wall: float | None
    predicted_ratio_busy: float | None
    predicted_ratio_step: float | None
    measured_ratio: float | None = None
    new: tuple[KernelTime, ...] = ()
    vanished: tuple[KernelTime, ...] = ()
    text: str = ""

    @property
    def idle_share(self) -> tuple[float, float] | None:
        """Before and after, the share of the step in which nothing runs, 0 to 1. None without times."""
        if self.step_ms is None or self.busy_ms is None or not all(self.step_ms):
            return None
        before, after = (max(0.0, 1 - busy / step) for busy, step in zip(self.busy_ms, self.step_ms, strict=True))
        return before, after


@frozen
class CeilingOfPhase:
    """The reference's ceiling of one phase: of busy time, of wall time, and the expert GEMMs' share of busy time."""

    busy: float | None
    wall: float | None
    share: float | None


@frozen
class ShapeComparison:
    """Two arms at one shape.

    Attributes:
        name: of the shape. Sizes are None for a trace that names none.
        speed: ratios. `unthrottled`: the same without iterations at a low clock, where one arm alone had some.
            `figures`: of both arms by metric (e2e_ms, ttft_ms, tpot_ms, j_per_tok, and between numbers of GPUs
            output_tok_s_per_gpu). Empty where neither was timed.
        notes: of the measurement and of the trace, by arm.
        kernels: by phase. `breakdown`: ms of reference and other by phase and category. None where one side has no
            trace.
        no_kernels: why two traces are not compared. None where they are, or one side has none.
        ceiling: of the reference, by phase.
    """

    name: str
    batch_size: int | None
    input_len: int | None
    output_len: int | None
    verdict: Verdict = Verdict.OPEN
    reason: str = ""
    speed: SpeedRatios = field(default_factory=SpeedRatios)
    unthrottled: SpeedRatios | None = None
    figures: Mapping[str, Sides] = field(default_factory=dict)
    fairness: Fairness = field(default_factory=Fairness)
    clocks: Clocks | None = None
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kernels: Mapping[str, PhaseChange] | None = None
    breakdown: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
    no_kernels: str | None = None
    ceiling: Mapping[str, CeilingOfPhase] | None = None
