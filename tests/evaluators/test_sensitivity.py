"""Sensitivity by layer against brute force: an emulated model's layers inside the plain one, in whole passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data import scoring_windows
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.emulation import formats
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.transformers import layerwise
from moe_eval.errors import UsageError
from moe_eval.evaluators import quality, sensitivity
from moe_eval.evaluators.quality import Scores
from moe_eval.records.sensitivity import LayerSensitivity, SensitivityFigures
from moe_eval.stats import Divergence, Estimate

SETTINGS = EngineSettings(
    str(SHIPPED), dtype="float32", precision="nvfp4", options={"emulate": True, "calibration_windows": 2}
)
LAYERS = range(5)
Joint = Callable[[Sequence[int]], Divergence]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def windows(tokenizer: Any) -> WindowSet:
    pages = scoring_windows.read_documents("moe_sample")
    return scoring_windows.cut(pages, lambda text: list(tokenizer.encode(text)), tokenizer.eos_token_id, 32, 9)


def plain(tokenizer: Any) -> Any:
    return registry.load("transformers", replace(SETTINGS, precision=None, options={}), tokenizer)


@pytest.fixture(scope="module")
def engine(tokenizer: Any) -> Any:
    return plain(tokenizer)


@pytest.fixture(scope="module")
def emulated(tokenizer: Any) -> Any:
    return registry.load("transformers", SETTINGS, tokenizer)


@pytest.fixture(scope="module")
def reference(engine: Any, windows: WindowSet) -> Scores:
    return quality.measure(engine, windows)


@pytest.fixture(scope="module")
def brute_force(engine: Any, emulated: Any, windows: WindowSet, reference: Scores) -> Joint:
    """Whole passes with some layers of the emulated model in place of the plain ones."""

    def scored(layers: Sequence[int]) -> Divergence:
        decoder = engine.model.model.layers
        before = {layer: decoder[layer] for layer in layers}
        for layer in layers:
            decoder[layer] = emulated.model.model.layers[layer]
        try:
            return quality.compare(reference, quality.measure(engine, windows, reference=reference))
        finally:
            for layer, module in before.items():
                decoder[layer] = module

    return scored


@pytest.fixture(scope="module")
def figures(tokenizer: Any, windows: WindowSet) -> SensitivityFigures:
    arm = plain(tokenizer).by_layer(SETTINGS)
    weights = [weight.clone() for weight in arm._model.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise, "STATE_BYTES", 1)  # every batch is a slab of its own
        measured = sensitivity.measure(arm, windows, "moe_sample", max_kld=0.06, experts=2)
    assert all(map(torch.equal, weights, arm._model.parameters())), "the model is left as it was"
    return measured


def test_every_layer_costs_what_brute_force_says(figures: SensitivityFigures, brute_force: Joint) -> None:
    expected = {layer: brute_force([layer]) for layer in LAYERS}
    ranking = sorted(LAYERS, key=lambda layer: -expected[layer].mean)
    assert [entry.layer for entry in figures.layers] == ranking
    for entry in figures.layers:
        assert entry.divergence.mean == pytest.approx(expected[entry.layer].mean, rel=1e-5)
        assert entry.divergence.p99 == pytest.approx(expected[entry.layer].p99, rel=1e-4)
        assert entry.divergence.same_top1 == expected[entry.layer].same_top1
        assert entry.divergence.kind == "reference ids"


def test_the_suggestion_is_the_most_layers_that_keep_the_bound_in_a_whole_pass(
    figures: SensitivityFigures, brute_force: Joint
) -> None:
    suggestion = figures.suggestion
    assert suggestion.divergence is not None
    assert suggestion.divergence.kld is not None
    assert suggestion.divergence.mean == pytest.approx(brute_force(suggestion.layers).mean, rel=1e-5)
    assert suggestion.divergence.kld.high <= suggestion.max_kld
    least_first = [entry.layer for entry in reversed(figures.layers)]
    count = len(suggestion.layers)
    assert 0 < count < len(LAYERS)
    assert set(suggestion.layers) == set(least_first[:count])
    assert set(suggestion.excluded) == set(least_first[count:])
    more = brute_force(least_first[: count + 1])
    assert more.kld is not None
    assert more.kld.high > suggestion.max_kld
    assert suggestion.least_over is not None
    assert suggestion.least_over.mean == pytest.approx(more.mean, rel=1e-5)
    # 16 experts of 3 x 192 x 96 weights in float32, of which 4.5 bits are left
    assert suggestion.saved_bytes == count * int(16 * 3 * 192 * 96 * (4 - 4.5 / 8))
    assert suggestion.expert_bytes == 5 * 16 * 3 * 192 * 96 * 4


def test_intervals_are_a_jackknife_over_documents(
    figures: SensitivityFigures, engine: Any, emulated: Any, windows: WindowSet
) -> None:
    """KLD over the whole vocabulary would differ, so sums of the log-probability lost stand for it."""
    entry = figures.layers[0]
    lost = [
        [before - after for before, after in zip(*pair, strict=True)]
        for pair in zip(
            quality.measure(engine, windows).by_document(), _alone(engine, emulated, entry, windows), strict=True
        )
    ]
    tokens = [len(document) for document in lost]
    estimate = entry.ln_ppl_ratio
    assert estimate is not None
    without = [
        sum(sum(document) for other, document in enumerate(lost) if other != index) / (sum(tokens) - tokens[index])
        for index in range(len(lost))
    ]
    error = math.sqrt((len(lost) - 1) * np.var(without))
    assert estimate.value == pytest.approx(sum(map(sum, lost)) / sum(tokens), rel=1e-4)
    assert estimate.error == pytest.approx(error, rel=1e-3)
    assert estimate.low < estimate.value < estimate.high
    kld = entry.divergence.kld
    assert kld is not None
    assert kld.value == pytest.approx(entry.divergence.mean)
    assert kld.low < kld.value < kld.high


def _alone(engine: Any, emulated: Any, entry: LayerSensitivity, windows: WindowSet) -> list[Any]:
    decoder = engine.model.model.layers
    before, decoder[entry.layer] = decoder[entry.layer], emulated.model.model.layers[entry.layer]
    try:
        return quality.measure(engine, windows).by_document()
    finally:
        decoder[entry.layer] = before


def test_the_order_of_neighbours_has_a_paired_interval(figures: SensitivityFigures) -> None:
    for entry, following in itertools.pairwise(figures.layers):
        assert entry.over_next is not None
        assert entry.over_next.value == pytest.approx(entry.divergence.mean - following.divergence.mean)
    assert figures.layers[-1].over_next is None


class OneRounded(nn.Module):
    """Experts of which one is rounded, one token and one expert at a time. It counts tokens."""

    def __init__(self, experts: Any, expert: int, sites: Sequence[Any]) -> None:
        super().__init__()
        self.experts, self.expert, self.sites = experts, expert, sites
        self.rounded = [formats.nvfp4(getattr(experts, part)[expert]) for part in ("gate_up_proj", "down_proj")]

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        for expert in range(self.experts.num_experts):
            tokens, place = (index == expert).nonzero(as_tuple=True)
            read = hidden[tokens]
            gate_up, down = (getattr(self.experts, part)[expert] for part in ("gate_up_proj", "down_proj"))
            if expert == self.expert:
                (gate_up, down), read = self.rounded, formats.nvfp4(read, self.sites[0].amax)
            gate, up = (read @ gate_up.T).chunk(2, -1)
            inner = nn.functional.silu(gate) * up
            inner = formats.nvfp4(inner, self.sites[1].amax) if expert == self.expert else inner
            out.index_add_(0, tokens, (inner @ down.T) * weights[tokens, place, None])
        return out


def test_an_expert_alone_costs_what_a_loop_over_experts_says(
    tokenizer: Any, windows: WindowSet, figures: SensitivityFigures
) -> None:
    arm = plain(tokenizer).by_layer(SETTINGS)
    engine = plain(tokenizer)
    reference = quality.measure(engine, windows)
    layer = next(entry for entry in figures.layers if entry.layer == 3)
    experts = engine.model.model.layers[3].mlp.experts
    for entry in layer.by_expert:
        engine.model.model.layers[3].mlp.experts = OneRounded(experts, entry.expert, arm._of(3).sites)
        with torch.no_grad():
            expected = quality.compare(reference, quality.measure(engine, windows, reference=reference))
        assert entry.divergence.mean == pytest.approx(expected.mean, rel=1e-3)
        assert entry.divergence.mean < layer.divergence.mean


def test_the_busiest_experts_are_those_of_the_router(
    engine: Any, windows: WindowSet, figures: SensitivityFigures
) -> None:
    counts = np.zeros((len(LAYERS), 16), int)
    for window in windows.windows:
        (routed,) = engine.routing([list(window.inputs)], 1)
        for layer in LAYERS:
            counts[layer] += np.bincount(routed[:, layer].ravel(), minlength=16)
    for entry in figures.layers:
        assert entry.tokens == tuple(counts[entry.layer])
        assert {expert.tokens for expert in entry.by_expert} == set(sorted(entry.tokens)[-2:])
        for expert in entry.by_expert:
            assert expert.load == expert.tokens / sum(entry.tokens)
        klds = [expert.divergence.mean for expert in entry.by_expert]
        assert klds == sorted(klds, reverse=True)


def cost(mean: float, reach: float = 0.0) -> Divergence:
    kld = Estimate(mean, reach, mean - reach, mean + reach, 9.0) if reach else None
    return Divergence(mean, mean, mean, 128, 1.0, 1.0, "reference ids", kld)


def layer_of(index: int, mean: float) -> LayerSensitivity:
    return LayerSensitivity(index, f"model.layers.{index}.mlp.experts", 8, cost(mean, 0.1), None, None, 10)


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("bound", [0.5, 3.0, 20.0, 1e6])
def test_a_suggestion_is_the_largest_that_was_measured_to_fit(scale: float, bound: float) -> None:
    layers = [layer_of(index, float(mean)) for index, mean in enumerate(range(48, 0, -1))]
    passes = []

    def joint(chosen: Sequence[int]) -> Divergence:
        passes.append(len(chosen))
        return cost(scale * sum(layers[index].divergence.mean for index in chosen), reach=0.1)

    suggestion = sensitivity.suggest(layers, bound, joint, {"experts": 480})
    # the least sensitive layer alone costs 1, whatever several cost together
    totals = [1.0, *(scale * total for total in itertools.accumulate(range(1, 49)) if total > 1)]
    fitting = sum(total + 0.1 <= bound for total in totals)
    assert len(suggestion.layers) == fitting
    assert (suggestion.divergence is None) == (fitting == 0)
    assert (suggestion.least_over is None) == (fitting == 48)
    assert suggestion.passes == len(passes) == len(set(passes) - {1}) <= 5
    assert suggestion.saved_bytes == 10 * fitting


def test_a_family_that_passes_more_between_layers_is_refused(tokenizer: Any) -> None:
    engine = plain(tokenizer)
    first, last = engine.model.model.layers[0], engine.model.model.layers[4]
    seen = []
    first.register_forward_hook(lambda _module, _args, out: seen.append(out))
    count = itertools.count()
    last.register_forward_hook(lambda _module, _args, out: out + len(seen) + next(count))
    with pytest.raises(UsageError, match="passes more between its layers than their outputs"):
        engine.by_layer(SETTINGS)
