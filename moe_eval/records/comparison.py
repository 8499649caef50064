"""The record of a comparison: recorded arms side by side with the first of them, and a verdict for every pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from moe_eval.records.kernels import KernelTime
from moe_eval.records.labels import Status
from moe_eval.records.run import Mode, Skipped
from moe_eval.stats import CONFIDENCE, Divergence, Estimate

COMPARISON_SCHEMA = 2
COMPARISON_FILE = "comparison.json"


class Verdict(str, Enum):
    """What a pair of arms, or one shape of it, comes to. A quick look is none: there are too few loads."""

    PAYS = "pays"
    SLOWER = "slower"
    NO_DIFFERENCE = "no worthwhile difference"
    OPEN = "open"
    BROKEN = "broken"
    NOT_COMPARABLE = "not comparable"
    QUICK_LOOK = "quick look"


class QualityVerdict(str, Enum):
    """What an arm costs in quality."""

    NO_COST = "costs nothing beyond the noise floor"
    COSTS = "costs"
    OPEN = "open"
    BROKEN = "broken"
    NOT_JUDGED = "not judged"


DecidingTime = Literal["e2e", "ttft", "tpot", "output_tok_s"]
TIME_OF: Mapping[DecidingTime, str] = {"e2e": "e2e_ms", "ttft": "ttft_ms", "tpot": "tpot_ms", "output_tok_s": "e2e_ms"}


@dataclass(frozen=True)
class Rules:
    """By which rules verdicts are made.

    Attributes:
        min_gain: the least gain that counts, 0.01 for 1 %.
        decide_on: the time that decides. `output_tok_s` goes by the same ratio as `e2e`.
    """

    min_gain: float = 0.01
    decide_on: DecidingTime = "e2e"


@dataclass(frozen=True)
class Ratio:
    """How much faster the other arm is: reference over other, above 1 where the other is faster.

    Attributes:
        value: the geometric mean over pairs of loads of the medians' ratio, by the clock `source`.
        low, high: its interval at `confidence`, by load. None where a side has one load.
        loads: of the side that has fewer.
        error, df: the standard error of ln(value) and the degrees of freedom of its Student's t.
        widened: the factor by which either end is farther away than by load: for what no load shows.
    """

    value: float
    low: float | None
    high: float | None
    loads: int
    source: str
    error: float | None = None
    df: float | None = None
    widened: float = 1.0
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class SpeedRatios:
    """Ratios by figure. None where a figure was not measured on both sides."""

    e2e_ms: Ratio | None = None
    ttft_ms: Ratio | None = None
    tpot_ms: Ratio | None = None
    j_per_tok: Ratio | None = None

    def deciding(self, rules: Rules) -> Ratio | None:
        """The ratio of the time that decides."""
        ratio: Ratio | None = getattr(self, TIME_OF[rules.decide_on])
        return ratio


@dataclass(frozen=True)
class Interval:
    """A median and its interval, see latency.Metric. `low` and `high` are None where there is none."""

    median: float
    low: float | None = None
    high: float | None = None
    loads: int = 1


@dataclass(frozen=True)
class Sides:
    """A figure of both arms. None where a side does not have it."""

    reference: Interval | None
    other: Interval | None


@dataclass(frozen=True)
class Fairness:
    """Whether both arms did the same work at a shape: steps of the prompts and experts per step.

    Attributes:
        is_fair: None where nobody could look. `reason` says why it is not, or not known.
        widened: the ratio of the experts that both read in a decode step, at least 1.
    """

    is_fair: bool | None = None
    reason: str | None = None
    widened: float = 1.0


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class CeilingOfPhase:
    """The reference's ceiling of one phase: of busy time, of wall time, and the expert GEMMs' share of busy time."""

    busy: float | None
    wall: float | None
    share: float | None


@dataclass(frozen=True)
class ShapeComparison:
    """Two arms at one shape.

    Attributes:
        name: of the shape. Sizes are None for a trace that names none.
        speed: ratios. `unthrottled`: the same without iterations at a low clock, where one arm alone had some.
            `figures`: of both arms by metric (e2e_ms, ttft_ms, tpot_ms, j_per_tok). Empty where neither was
            timed.
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


@dataclass(frozen=True)
class QualityComparison:
    """What an arm costs in quality against the reference.

    Attributes:
        ln_ppl_ratio: ln(perplexity of other / reference). None where there is no interval: `no_interval` says why.
        ppl_change: 0.004 for a perplexity 0.4 % higher. None where a perplexity is no number.
        divergence: None where the scores of the tokens are not at hand.
        noise_floor: how far batching alone moves ln(perplexity). None where there is no interval of it.
        random_weights: then no score says anything.
        flag: a sentence where weights are random, or a lower precision scores better than can be.
        calibration: a sentence where static scales were calibrated on what was scored.
        run_id: of the run that scored both arms. None where two runs did.
        verdict: on ln_ppl_ratio against the noise floor, or that an arm is broken. `sentence`: the same in whole
            sentences, with divergence and agreement.
    """

    ln_ppl_ratio: Estimate | None
    ppl_change: float | None
    divergence: Divergence | None = None
    noise_floor: Estimate | None = None
    random_weights: bool = False
    flag: str | None = None
    calibration: str | None = None
    no_interval: str | None = None
    run_id: str | None = None
    verdict: QualityVerdict = QualityVerdict.NOT_JUDGED
    sentence: str = ""

    @property
    def largest_noise(self) -> float:
        """The end of the noise floor's interval that is farther from 0. 0 where it was not measured."""
        return max(abs(self.noise_floor.low), abs(self.noise_floor.high)) if self.noise_floor else 0.0


@dataclass(frozen=True)
class PairSchedule:
    """How both arms of a pair were timed.

    Attributes:
        mode, loads, per_load: see run.Schedule. `loads` is of the side that has fewer.
        one_run: whether one run measured them side by side.
        looks: how often a run until decided may look, and `look` which one this is, from 1. Both 1 elsewhere.
    """

    mode: Mode
    loads: int
    per_load: int
    one_run: bool
    look: int = 1
    looks: int = 1


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
        sentence: the verdict, in whole sentences. `because`: by the kernels of the shape that decides. Empty where
            nothing was traced.
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
        broken: why its scores are no numbers. None where they are, or there are none.
        weights_gib: on each GPU. `kv_cache_tokens`: that fit beside them, see latency.Capacity.
        token_ppl, word_ppl, bits_per_byte: None where not measured.
        speed: by shape and metric. `kernels`: ms by shape, phase and category.
    """

    name: str
    precision: str
    status: Status
    error: str | None = None
    broken: str | None = None
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
    rules: Rules = field(default_factory=Rules)
    schema: int = COMPARISON_SCHEMA
