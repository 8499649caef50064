"""The record of a comparison: recorded arms side by side with the first of them, and a verdict for every pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.records.headline import Header, Headline
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Interval
from moe_eval.records.run import Mode, Skipped
from moe_eval.records.serving_comparison import ServingComparison
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.shape_latency import FloorReached
from moe_eval.records.task_comparison import TaskComparison
from moe_eval.records.verdicts import QualityVerdict, Rules, Verdict
from moe_eval.stats import Divergence, Estimate

COMPARISON_SCHEMA = 2
COMPARISON_FILE = "comparison.json"


@frozen
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


@frozen
class PairSchedule:
    """How both arms of a pair were timed.

    Attributes:
        mode, loads, per_load: see run.Schedule. `loads` is of the side that has fewer. The others are None where a tool
            that is not moe_eval measured the other side.
        one_run: whether one run measured them side by side.
        looks: how often a run until decided may look, and `look` which one this is, from 1. Both 1 elsewhere.
    """

    mode: Mode | None
    loads: int
    per_load: int | None
    one_run: bool
    look: int = 1
    looks: int = 1


@frozen
class LabelDifference:
    """A label whose value differs between two arms."""

    label: str
    reference: str
    other: str


@frozen
class Pair:
    """An arm against the reference.

    Attributes:
        sentence: the verdict, in whole sentences. `because`: by the kernels of the shape that decides. Empty where
            nothing was traced.
        settled_by: what would decide what is open, or let arms be compared. None where nothing would.
        differs: why the two cannot be compared, a sentence each. Empty where they can.
        labels: what differs without forbidding it.
        is_repeat: both are the same arm, measured twice.
        schedule: None without speed on both sides.
        shapes: by size. Traced ones that were not timed come last.
        quality: None where they did not score the same windows.
        contrast: what is compared with what, where that is more than precisions.
        tasks: a row for every metric of every task and group of the harness that both were evaluated on.
        serving: None where not both were served.
        headlines: in the order of HeadlineFigure. Empty where the two cannot be compared, or one is broken.
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
    headlines: tuple[Headline, ...] = ()
    contrast: str = ""
    tasks: tuple[TaskComparison, ...] = ()
    serving: ServingComparison | None = None


@frozen
class ComparedArm:
    """One arm of a comparison by itself.

    Attributes:
        model: the last part of the checkpoint's name. None where nothing was loaded.
        gpus: over how many the model is spread, 0 on a CPU. None where nothing was loaded.
        random_weights: then no score says anything.
        precision: that was asked for. `precision_seen`: by its kernels.
        broken: why its scores are no numbers. None where they are, or there are none.
        weights_gib: on each GPU. `kv_cache_tokens`: that fit beside them, see latency.Capacity.
        token_ppl, word_ppl, bits_per_byte: None where not measured.
        taken_gib: memory that the loaded arm took of the GPU that it takes most of.
        cost: of a million output tokens by shape, at Rules.price_per_gpu_hour. Empty without a price.
        speed: by shape and metric. `kernels`: ms by shape, phase and category.
        floors: by shape and step. `serving`: by load point and figure.
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
    model: str | None = None
    gpus: int | None = None
    random_weights: bool = False
    moe_backend: str | None = None
    weights_gib: float | None = None
    kv_cache_tokens: int | None = None
    token_ppl: float | None = None
    word_ppl: float | None = None
    bits_per_byte: float | None = None
    taken_gib: float | None = None
    cost: Mapping[str, Interval] = field(default_factory=dict)
    speed: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    floors: Mapping[str, Mapping[str, FloorReached]] = field(default_factory=dict)
    serving: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)


@frozen
class ComparisonRecord:
    """Every arm against the first one. `skipped` is what a run was asked for and did not begin."""

    reference: str
    arms: tuple[ComparedArm, ...]
    pairs: tuple[Pair, ...]
    skipped: tuple[Skipped, ...] = ()
    rules: Rules = field(default_factory=Rules)
    header: Header = field(default_factory=Header)
    schema: int = COMPARISON_SCHEMA
