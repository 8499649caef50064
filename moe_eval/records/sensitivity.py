"""The record of `moe-eval sensitivity`: what the quantisation of every layer's experts costs by itself."""

from __future__ import annotations

from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.records.labels import ArmLabels, Origin
from moe_eval.records.quality import QualityFigures
from moe_eval.stats import Divergence, Estimate

SENSITIVITY_SCHEMA = 1


@frozen
class ExpertSensitivity:
    """One expert that is quantised alone.

    Attributes:
        tokens: that the unquantised router sends to it, and `load` their share of all that it sends in this layer.
        divergence: from the unquantised model.
    """

    expert: int
    tokens: int
    load: float
    divergence: Divergence


@frozen
class LayerSensitivity:
    """One layer whose experts are quantised alone.

    Attributes:
        layer: its index in the model. `module`: the path of its experts.
        experts: how many a router chooses from.
        divergence: from the unquantised model. Its `kld` has the interval over documents.
        ln_ppl_ratio: against the unquantised model. None where there are too few documents for an interval.
        over_next: its mean KLD less that of the next less sensitive layer, paired by document. An interval that holds 0
            means that the order of the two is open. None for the last one, and where there is no interval.
        saved_bytes: of weights, by the format's bits with the scales of blocks.
        tokens: that the unquantised router sends to every expert. Empty where they are not counted.
        by_expert: the experts that were quantised alone, the most sensitive first.
    """

    layer: int
    module: str
    experts: int
    divergence: Divergence
    ln_ppl_ratio: Estimate | None
    over_next: Estimate | None
    saved_bytes: int
    tokens: tuple[int, ...] = ()
    by_expert: tuple[ExpertSensitivity, ...] = ()


@frozen
class Suggestion:
    """The layers to quantise together so that the KLD stays under a bound.

    Attributes:
        max_kld: the bound in nats for a token. The upper end of the interval keeps it, or the mean without interval.
        layers: whose experts are quantised: the least sensitive ones. `excluded`: whose experts are left as they are.
        divergence: measured with all of `layers` quantised at once. Of several layers that is a pass of the whole
            model. None without any.
        sum_of_klds: of these layers alone, for comparison.
        least_over: measured with one layer more, which is over the bound. None where all layers keep it.
        passes: of the whole model, that the search took.
        saved_bytes: of weights, of `expert_bytes` that all experts have unquantised.
    """

    max_kld: float
    layers: tuple[int, ...]
    excluded: tuple[int, ...]
    divergence: Divergence | None
    sum_of_klds: float
    least_over: Divergence | None
    passes: int
    saved_bytes: int
    expert_bytes: int


@frozen
class SensitivityFigures:
    """What one loaded model says.

    Attributes:
        reference: the figures of the unquantised model.
        layers: the most sensitive first.
        seconds: of the measurement, without loading and calibration.
    """

    reference: QualityFigures
    layers: tuple[LayerSensitivity, ...]
    suggestion: Suggestion
    seconds: float


@frozen
class SensitivityRecord:
    """The sensitivity of one model's layers to one precision, with all labels.

    Attributes:
        precision: that the experts are rounded to.
        labels: of the emulated variants. The reference differs from them in `precision` and `emulated` alone.
    """

    precision: str
    figures: SensitivityFigures
    started: str
    labels: ArmLabels = field(default_factory=ArmLabels)
    origin: Origin = field(default_factory=Origin)
    schema: int = SENSITIVITY_SCHEMA
