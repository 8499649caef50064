"""The sensitivity evaluator: what quantising every layer's experts alone costs, and which layers fit under a bound."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.emulation.formats import STORED_BITS
from moe_eval.engines.base import ExpertsOfLayer, LayerwiseArm, Variant, WindowScores
from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import divergence, quality
from moe_eval.evaluators.quality import TOP_K, Scores
from moe_eval.records.quality import NO_NUMBERS
from moe_eval.records.sensitivity import ExpertSensitivity, LayerSensitivity, SensitivityFigures, Suggestion
from moe_eval.stats import Divergence, Estimate

Array = npt.NDArray[Any]


@dataclass
class _Cost:
    """What a variant costs by window: nats and sameness of the most probable token at every position, ln(ppl ratio)."""

    nats: dict[int, Array] = field(default_factory=dict)
    same: dict[int, Array] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)

    def add(
        self, index: int, reference: WindowScores, distributions: divergence.Reference, scores: WindowScores
    ) -> None:
        """Take in one window. `distributions` are those of the reference."""
        self.nats[index] = distributions.nats(scores.of_ids)
        self.same[index] = reference.top_ids[:, 0] == scores.top_ids[:, 0]
        self.lost[index] = float((reference.logprobs.astype(np.float64) - scores.logprobs).sum())


class _Measurement:
    """The scores of one arm's variants over fixed windows."""

    def __init__(self, arm: LayerwiseArm, windows: WindowSet, done: Callable[[], object]) -> None:
        self.arm, self.windows, self._done = arm, windows, done
        self.reference: dict[int, WindowScores] = {}
        self._distributions: dict[int, divergence.Reference] = {}
        self.costs: dict[Variant, _Cost] = {}
        self.layers = {layer.layer: layer for layer in arm.layers}

    def score(self, variants: Sequence[Variant]) -> Array:
        """Score variants. Returns the tokens of every expert, shape (layers, experts)."""

        def done(variant: Variant | None, index: int, scores: WindowScores) -> None:
            if variant is None:
                self.reference[index] = scores
                self._distributions[index] = divergence.Reference(scores.top_logprobs)
            else:
                self._add(self.costs.setdefault(variant, _Cost()), index, scores)
            self._done()

        return self.arm.score(self.windows.windows, variants, TOP_K, done)

    def joint(self, layers: Sequence[int]) -> Divergence:
        """The divergence with the experts of several layers quantised at once."""
        cost = _Cost()
        ids = [self.reference[index].top_ids for index in range(len(self.windows.windows))]
        for index, scores in enumerate(self.arm.joint(self.windows.windows, layers, ids)):
            self._add(cost, index, scores)
            self._done()
        return self.divergence(cost)

    def _add(self, cost: _Cost, index: int, scores: WindowScores) -> None:
        cost.add(index, self.reference[index], self._distributions[index], scores)

    def divergence(self, cost: _Cost) -> Divergence:
        """Over all windows.

        Raises:
            EngineError: a score is no number.
        """
        nats = self._joined(cost.nats)
        if not np.isfinite(nats).all():
            raise EngineError(f"Scores of a quantised layer {NO_NUMBERS}. Try another checkpoint.")
        return divergence.of_positions(
            nats,
            self._joined(cost.same),
            documents=self.scores.document_lengths,
            k=self.scores.top_ids.shape[1],
            covered=self._covered,
        )

    @functools.cached_property
    def _covered(self) -> float:
        return divergence.covered(self.scores.top_logprobs)

    @functools.cached_property
    def scores(self) -> Scores:
        """Of the unquantised model, once all windows are scored."""
        windows = [self.reference[index] for index in range(len(self.windows.windows))]
        return Scores(
            logprobs=np.concatenate([window.logprobs for window in windows]),
            lengths=np.array([len(window.logprobs) for window in windows], dtype=np.int64),
            documents=np.array(self.windows.documents, dtype=np.int64),
            top_ids=np.concatenate([window.top_ids for window in windows]).astype(np.int32),
            top_logprobs=np.concatenate([window.top_logprobs for window in windows]),
            digest=self.windows.digest,
        )

    def by_document(self, sums: Mapping[int, float]) -> Estimate | None:
        """The mean per token of what windows sum to, with its interval. None with too few documents."""
        totals = dict.fromkeys(self.windows.documents, 0.0)
        for index, document in enumerate(self.windows.documents):
            totals[document] += sums[index]
        try:
            return stats.ratio_of_sums(np.array(list(totals.values())), np.array(self.scores.document_lengths, float))
        except UsageError:
            return None

    @staticmethod
    def _joined(parts: Mapping[int, Array]) -> Array:
        return np.concatenate([parts[index] for index in range(len(parts))])


def measure(
    arm: LayerwiseArm,
    windows: WindowSet,
    dataset: str,
    *,
    max_kld: float,
    experts: int = 0,
    done: Callable[[], object] = lambda: None,
) -> SensitivityFigures:
    """Quantise the experts of every layer alone, rank the layers, and find those that fit under a bound together.

    Args:
        max_kld: nats for a token, above 0.
        experts: how many experts of every layer are quantised alone as well: those with the most tokens.
        done: called whenever a window is scored in one variant.

    Raises:
        EngineError: a score is no number.
        UsageError: experts that cannot be quantised one at a time.
    """
    started = time.perf_counter()
    if experts and not all(layer.is_fused for layer in arm.layers):
        raise UsageError("This model keeps its experts as separate layers, which --experts cannot tell. Leave it out.")
    measurement = _Measurement(arm, windows, done)
    counts = measurement.score([Variant(layer.layer) for layer in arm.layers])
    measurement.scores.check()
    loads = {layer.layer: tuple(map(int, row[: layer.experts])) for layer, row in zip(arm.layers, counts, strict=True)}
    busiest = {
        layer: sorted(range(len(row)), key=lambda expert, row=row: -row[expert])[:experts]  # type: ignore[misc]
        for layer, row in loads.items()
    }
    if experts:
        measurement.score([Variant(layer, expert) for layer, chosen in busiest.items() for expert in chosen])
    layers = _ranked(measurement, loads)
    return SensitivityFigures(
        reference=quality.figures(measurement.scores, windows, dataset),
        layers=layers,
        suggestion=suggest(layers, max_kld, measurement.joint, arm.facts.weight_bytes or {}),
        seconds=time.perf_counter() - started,
    )


def _ranked(measurement: _Measurement, loads: Mapping[int, tuple[int, ...]]) -> tuple[LayerSensitivity, ...]:
    """The layers, the most sensitive first."""
    costs = {variant.layer: cost for variant, cost in measurement.costs.items() if variant.expert is None}
    layers = [_layer(measurement, measurement.layers[layer], cost, loads[layer]) for layer, cost in costs.items()]
    layers.sort(key=lambda layer: -layer.divergence.mean)
    for at, (layer, following) in enumerate(itertools.pairwise(layers)):
        higher, lower = costs[layer.layer].nats, costs[following.layer].nats
        sums = {index: float((higher[index] - lower[index]).sum()) for index in higher}
        layers[at] = replace(layer, over_next=measurement.by_document(sums))
    return tuple(layers)


def _layer(measurement: _Measurement, layer: ExpertsOfLayer, cost: _Cost, tokens: tuple[int, ...]) -> LayerSensitivity:
    facts = measurement.arm.facts
    by_expert = [
        ExpertSensitivity(
            variant.expert,
            tokens[variant.expert],
            tokens[variant.expert] / max(1, sum(tokens)),
            measurement.divergence(of_expert),
        )
        for variant, of_expert in measurement.costs.items()
        if variant.layer == layer.layer and variant.expert is not None
    ]
    return LayerSensitivity(
        layer=layer.layer,
        module=layer.module,
        experts=layer.experts,
        divergence=measurement.divergence(cost),
        ln_ppl_ratio=measurement.by_document(cost.lost),
        over_next=None,
        saved_bytes=int(layer.weights * (layer.bytes_per_weight - STORED_BITS[facts.precision] / 8)),
        tokens=tokens if layer.is_fused else (),
        by_expert=tuple(sorted(by_expert, key=lambda expert: -expert.divergence.mean)),
    )


def suggest(
    layers: Sequence[LayerSensitivity],
    max_kld: float,
    joint: Callable[[Sequence[int]], Divergence],
    weight_bytes: Mapping[str, int],
) -> Suggestion:
    """The most of the least sensitive layers whose experts keep a bound together, by passes of the whole model.

    The sum of what the layers cost alone says which number of layers is tried first. What a pass measures scales that
    sum for the next one. A number of layers is taken for too many where fewer were measured to be too many. One layer
    needs no pass of its own.

    Args:
        layers: the most sensitive first.
        joint: measures layers that are quantised at once.
        weight_bytes: of the unquantised model by part.
    """
    order = [layer.layer for layer in reversed(layers)]
    sums = [0.0, *itertools.accumulate(layer.divergence.mean for layer in reversed(layers))]
    measured = {1: layers[-1].divergence}
    fitting, over, scale = 0, len(order) + 1, 1.0
    while over - fitting > 1:
        expected = max(count for count, total in enumerate(sums) if total * scale <= max_kld)
        count = min(max(expected, fitting + 1), over - 1)
        measured[count] = measured.get(count) or joint(order[:count])
        upper = upper_end(measured[count])
        scale = upper / sums[count] if sums[count] > 0 else scale
        fitting, over = (count, over) if upper <= max_kld else (fitting, count)
    saved = {layer.layer: layer.saved_bytes for layer in layers}
    return Suggestion(
        max_kld=max_kld,
        layers=tuple(sorted(order[:fitting])),
        excluded=tuple(sorted(order[fitting:])),
        divergence=measured.get(fitting),
        sum_of_klds=sums[fitting],
        least_over=measured.get(over),
        passes=len(measured) - 1,
        saved_bytes=sum(saved[layer] for layer in order[:fitting]),
        expert_bytes=weight_bytes.get("experts", 0),
    )


def upper_end(cost: Divergence) -> float:
    """The upper end of a divergence's interval, or its mean where there is none."""
    return cost.mean if cost.kld is None else cost.kld.high
