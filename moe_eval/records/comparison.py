"""The record of a comparison: recorded arms side by side with the first of them, and a verdict for every pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from moe_eval.records.kernels import KernelTime
from moe_eval.records.labels import Status
from moe_eval.records.run import Mode, Skipped
from moe_eval.stats import Divergence, Estimate

COMPARISON_SCHEMA = 2
COMPARISON_FILE = "comparison.json"


class Verdict(str, Enum):
    """What a pair of arms, or one shape of it, comes to."""

    PAYS = "pays"
    DOES_NOT_PAY = "does not pay"
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Ratio:
    """How much faster the other arm is: reference over other, above 1 where the other is faster.

    Attributes:
        value: the geometric mean over blocks of the medians' ratio, by the clock `source`.
        low, high: its 95 % interval by block. None with one block.
    """

    value: float
    low: float | None
    high: float | None
    blocks: int
    source: str


@dataclass(frozen=True)
class SpeedRatios:
    """Ratios by time. None where a time was not measured on both sides."""

    e2e_ms: Ratio | None = None
    ttft_ms: Ratio | None = None
    tpot_ms: Ratio | None = None


@dataclass(frozen=True)
class Interval:
    """A median and its interval. `low` and `high` are None where there is none."""

    median: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Sides:
    """A figure of both arms. None where a side does not have it."""

    reference: Interval | None
    other: Interval | None


@dataclass(frozen=True)
class Fairness:
    """Whether both arms did the same work at a shape: steps of the prompts and experts per step.

    `is_fair` is None where nobody could look. `reason` says why it is not, or not known.
    """

    is_fair: bool | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Clocks:
    """Of both arms, reference first: the median SM clock in MHz, and how many iterations ran at a low clock.

    None where nobody could read it.
    """

    sm_mhz: tuple[float | None, float | None]
    slow_samples: tuple[int | None, int | None]


@dataclass(frozen=True)
class CategoryChange:
    """A category in ms per step. `change_ms` is after minus before."""

    before_ms: float
    after_ms: float
    change_ms: float
    before_launches: float
    after_launches: float


@dataclass(frozen=True)
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
        measured_ratio: without a profiler. None where not known.
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


@dataclass(frozen=True)
class CeilingOfPhase:
    """The reference's ceiling of one phase: of busy time, of wall time, and the expert GEMMs' share of busy time."""

    busy: float | None
    wall: float | None
    share: float


@dataclass(frozen=True)
class Predicted:
    """How much faster a decode step becomes by its kernels alone, and by its steps under the profiler."""

    busy: float
    step: float | None


@dataclass(frozen=True)
class ShapeComparison:
    """Two arms at one shape.

    Attributes:
        name: of the shape. Sizes are None for a trace that names none.
        speed: ratios. `figures`: of both arms by metric (e2e_ms, ttft_ms, tpot_ms, j_per_tok). Empty where neither was
            timed.
        notes: of the measurement, by arm.
        kernels: by phase. `breakdown`: ms of reference and other by phase and category. None where one side has no
            trace.
        ceiling: of the reference, by phase. `predicted` by kernels against `measured`, of a decode step.
    """

    name: str
    batch_size: int | None
    input_len: int | None
    output_len: int | None
    verdict: Verdict = Verdict.INCONCLUSIVE
    reason: str = ""
    speed: SpeedRatios = field(default_factory=SpeedRatios)
    figures: Mapping[str, Sides] = field(default_factory=dict)
    fairness: Fairness = field(default_factory=Fairness)
    clocks: Clocks | None = None
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kernels: Mapping[str, PhaseChange] | None = None
    breakdown: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
    ceiling: Mapping[str, CeilingOfPhase] | None = None
    predicted: Predicted | None = None
    measured: float | None = None


@dataclass(frozen=True)
class QualityComparison:
    """What an arm costs in quality against the reference.

    Attributes:
        ln_ppl_ratio: ln(perplexity of other / reference). None where there is no interval: `no_interval` says why.
        ppl_change: 0.004 for a perplexity 0.4 % higher. None where a perplexity is no number.
        divergence: None where the scores of the tokens are not at hand.
        noise_floor: how far batching alone moves ln(perplexity). None where not measured.
        random_weights: then no score says anything.
        flag: a sentence where weights are random, or a lower precision scores better than can be.
        calibration: a sentence where static scales were calibrated on what was scored.
        run_id: of the run that scored both arms. None where two runs did.
    """

    ln_ppl_ratio: Estimate | None
    ppl_change: float | None
    divergence: Divergence | None = None
    noise_floor: float | None = None
    random_weights: bool = False
    flag: str | None = None
    calibration: str | None = None
    no_interval: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class PairSchedule:
    """How both arms of a pair were timed. `one_run`: whether one run measured them side by side."""

    mode: Mode
    blocks: int
    per_block: int
    one_run: bool


@dataclass(frozen=True)
class LabelDifference:
    """A label whose value differs between two arms."""

    label: str
    reference: str
    other: str


@dataclass(frozen=True)
class Pair:
    """An arm against the reference.

    Attributes:
        sentence: the verdict, in whole sentences. `because`: by the kernels of a decode step. Empty where not traced.
        settled_by: what would decide what is open. None where nothing is.
        differs: why the two cannot be compared, a sentence each. Empty where they can.
        labels: what differs without forbidding it.
        is_repeat: both are the same arm, measured twice.
        schedule: None without speed on both sides.
        shapes: by size. Traced ones that were not timed come last.
        quality: None where they did not score the same windows.
    """

    reference: str
    other: str
    verdict: Verdict
    sentence: str
    because: str
    settled_by: str | None
    differs: tuple[str, ...]
    labels: tuple[LabelDifference, ...]
    is_repeat: bool
    schedule: PairSchedule | None
    shapes: tuple[ShapeComparison, ...]
    quality: QualityComparison | None


@dataclass(frozen=True)
class ComparedArm:
    """One arm of a comparison by itself.

    Attributes:
        precision: that was asked for. `precision_seen`: by its kernels.
        weights_gib: of the loaded weights, all GPUs together. `kv_cache_tokens`: that the key-value cache holds as it
            was loaded, which may be less than memory has room for. None where the engine does not say.
        token_ppl, word_ppl, bits_per_byte: None where not measured.
        speed: by shape and metric. `kernels`: ms by shape, phase and category.
    """

    name: str
    precision: str
    status: Status
    error: str | None = None
    precision_seen: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    gpu: str | None = None
    emulated: bool = False
    moe_backend: str | None = None
    weights_gib: float | None = None
    kv_cache_tokens: int | None = None
    token_ppl: float | None = None
    word_ppl: float | None = None
    bits_per_byte: float | None = None
    speed: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonRecord:
    """Every arm against the first one. `skipped` is what a run was asked for and did not begin."""

    reference: str
    arms: tuple[ComparedArm, ...]
    pairs: tuple[Pair, ...]
    skipped: tuple[Skipped, ...] = ()
    schema: int = COMPARISON_SCHEMA
