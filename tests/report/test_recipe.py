"""The recipe of a suggestion, read as llm-compressor reads it: `re:` patterns that match from a name's beginning on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from moe_eval.records.quality import QualityFigures
from moe_eval.records.sensitivity import LayerSensitivity, SensitivityFigures, SensitivityRecord, Suggestion
from moe_eval.report import recipe
from moe_eval.stats import Divergence

COST = Divergence(0.1, 0.1, 0.1, 128, 1.0, 1.0, "reference ids")
TEXT = QualityFigures("moe_sample", "0" * 16, 8, 1, 1, 2.0, (2.0,), 8, 1, 0, 0, 0, None, None, None)


def record(module: str, excluded: tuple[int, ...], precision: str = "nvfp4") -> SensitivityRecord:
    layers = tuple(LayerSensitivity(at, module.format(at), 4, COST, None, None, 1) for at in (11, 1, 2))
    chosen = tuple(sorted({1, 2, 11} - set(excluded)))
    suggestion = Suggestion(0.2, chosen, excluded, COST if chosen else None, 0.1, None, 1, 2, 3)
    return SensitivityRecord(precision, SensitivityFigures(TEXT, layers, suggestion, 1.0), "2026-01-01T00:00:00+00:00")


def matches(patterns: list[str], name: str) -> bool:
    return any(
        re.match(pattern.removeprefix("re:"), name) if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )


def modifier(text: str | None) -> Any:
    assert text is not None
    return yaml.safe_load(text)["default_stage"]["default_modifiers"]["QuantizationModifier"]


@pytest.mark.parametrize(
    ("module", "linear"),
    [
        ("model.layers.{}.mlp.experts", "model.layers.{}.mlp.experts.3.down_proj"),
        ("model.layers.{}.mlp.experts", "model.layers.{}.block_sparse_moe.experts.0.w1"),
        ("model.language_model.layers.{}.mlp.experts", "language_model.model.layers.{}.mlp.experts.7.up_proj"),
    ],
)
def test_experts_of_suggested_layers_alone_are_quantised(module: str, linear: str) -> None:
    content = modifier(recipe.recipe(record(module, (1,)), "a label\nanother"))

    def is_quantised(name: str) -> bool:
        return matches(content["targets"], name) and not matches(content["ignore"], name)

    assert [is_quantised(linear.format(layer)) for layer in (1, 2, 11)] == [False, True, True]
    for name in ("mlp.shared_experts.up_proj", "mlp.gate", "self_attn.q_proj", "mlp.shared_expert.down_proj"):
        assert not is_quantised(f"model.layers.2.{name}")
    assert "lm_head" in content["ignore"]


@pytest.mark.parametrize(("precision", "scheme"), [("nvfp4", "NVFP4"), ("fp8", "FP8"), ("fp8_block", "FP8_BLOCK")])
def test_schemes_are_presets(precision: str, scheme: str) -> None:
    text = recipe.recipe(record("model.layers.{}.mlp.experts", (), precision), "labels")
    assert modifier(text)["scheme"] == scheme
    assert str(text).startswith("# labels\n")


def test_no_layer_makes_no_recipe() -> None:
    assert recipe.recipe(record("model.layers.{}.mlp.experts", (1, 2, 11)), "") is None
