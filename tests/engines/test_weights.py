"""Bytes of weights by part: against the checkpoint's file and against what the configuration says of its sizes."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from moe_eval.checkpoint import geometry
from moe_eval.engines import weights
from moe_eval.engines.transformers.engine import TransformersEngine
from tests.conftest import ROOT
from tests.engines.conftest import _SIZES, FAMILIES

SMALL: list[tuple[str, dict[str, Any]]] = json.loads((ROOT / "tests/checkpoint/small_configs.json").read_text())
Start = Callable[..., TransformersEngine]
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
VOCABULARY, HIDDEN, LAYERS = (_SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers"))
EMBEDDING = VOCABULARY * HIDDEN
QWEN3 = {**MOE, "num_experts": 4, "head_dim": 8}
QWEN2 = {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 40}
INNER = _SIZES["intermediate_size"]
# kind and settings of a configuration, and the experts that routers choose from, of three matrices each
MODELS: dict[str, tuple[str, dict[str, int], int]] = {
    "llama": ("Llama", {}, 0),
    "qwen3_moe": ("Qwen3Moe", QWEN3, LAYERS * 4 * 3 * 24 * HIDDEN),
    "qwen3_moe, every other layer dense": (
        "Qwen3Moe",
        QWEN3 | {"decoder_sparse_step": 2},
        LAYERS * 2 * 3 * 24 * HIDDEN,
    ),
    "qwen2_moe, with shared experts": ("Qwen2Moe", QWEN2, LAYERS * 4 * 3 * 24 * HIDDEN),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}, LAYERS * 6 * 3 * INNER * HIDDEN),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, LAYERS * 4 * 3 * INNER * HIDDEN),
}


def model_of(name: str, tied: bool) -> Any:
    kind, more, _ = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**_SIZES, **more, tie_word_embeddings=tied)
    return transformers.AutoModelForCausalLM.from_config(config)


def in_file(folder: Path) -> dict[str, int]:
    """Numbers of every tensor of the one safetensors file, read from its header."""
    (file,) = folder.glob("*.safetensors")
    with file.open("rb") as content:
        header = json.loads(content.read(struct.unpack("<Q", content.read(8))[0]))
    return {name: prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("size", [4, 2], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_model(name: str, tied: bool, size: int, tmp_path: Path) -> None:
    model, experts = model_of(name, tied), MODELS[name][-1]
    model.save_pretrained(tmp_path)
    stored = in_file(tmp_path)
    assert ("lm_head.weight" in stored) is not tied
    embedding = 0 if tied else EMBEDDING
    assert weights.by_part(model.to(torch.float32 if size == 4 else torch.bfloat16)) == {
        "experts": experts * size,
        "embedding": embedding * size,
        "encoders": 0,
        "other": (sum(stored.values()) - experts - embedding) * size,
    }


@pytest.mark.parametrize(("kind", "settings"), SMALL)
def test_experts_and_tables_of_other_shapes_are_those_of_the_configuration(kind: str, settings: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(kind, **settings)
    is_larger = "text_config" in settings
    maker: Any = transformers.AutoModelForImageTextToText if is_larger else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = maker.from_config(config)
    sizes = geometry.read(json.loads(config.to_json_string()))
    assert sizes is not None
    found = weights.by_part(model)
    biases = sum(part.numel() for name, part in model.named_parameters() if re.search(r"\.experts\..*bias", name))
    assert found["experts"] == 4 * (sizes.params.experts + biases)
    assert found["embedding"] == 4 * sizes.params.embedding
    assert (found["encoders"] > 0) == is_larger


def test_a_shared_expert_is_read_in_every_step(tmp_path: Path) -> None:
    name = "qwen2_moe, with shared experts"
    model, experts = model_of(name, False), MODELS[name][-1]
    model.save_pretrained(tmp_path)
    stored = in_file(tmp_path)
    shared = sum(numbers for tensor, numbers in stored.items() if "shared_expert" in tensor)
    assert shared == LAYERS * (3 * 40 * HIDDEN + HIDDEN)  # with the gate of each
    beside = {name: tensor for name, tensor in model.named_parameters() if "shared_expert" not in name}
    bare = nn.Module()
    for at, (_, tensor) in enumerate(beside.items()):
        bare.register_parameter(f"p{at}", tensor)
    assert weights.by_part(model)["experts"] == experts * 4
    assert sum(weights.by_part(model).values()) - sum(weights.by_part(bare).values()) == shared * 4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_engine_s_label_adds_up_to_the_file(family: str, checkpoint_of: Callable[[str], Path], start: Start) -> None:
    folder = checkpoint_of(family)
    found = start(folder).facts.weight_bytes
    assert found is not None
    assert sum(found.values()) == 4 * sum(in_file(folder).values())
    assert (found["experts"] > 0) == (family in ("qwen3_moe", "mixtral", "granitemoe"))


def test_the_shipped_model(shipped: Path, start: Start) -> None:
    config = json.loads((shipped / "config.json").read_text(encoding="utf-8"))
    stored = in_file(shipped)
    experts = sum(numbers for name, numbers in stored.items() if ".experts." in name)
    each = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    assert experts == config["num_hidden_layers"] * config["num_experts"] * each
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        assert start(shipped, dtype=dtype).facts.weight_bytes == {
            "experts": experts * size,
            "embedding": 0,  # tied: all of it is read as the head
            "encoders": 0,
            "other": (sum(stored.values()) - experts) * size,
        }


def test_what_sees_images_is_no_part_of_a_step_that_reads_text() -> None:
    text = {**_SIZES, **MOE, "num_experts": 4, "head_dim": 8}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": HIDDEN}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    model = transformers.Qwen3VLMoeForConditionalGeneration(config)
    found = weights.by_part(model)
    assert found["encoders"] == 4 * sum(tensor.numel() for tensor in model.model.visual.parameters()) > 0
    language = sum(tensor.numel() for tensor in model.model.language_model.parameters())
    head = model.lm_head.weight.numel()
    assert sum(found.values()) - found["encoders"] == 4 * (language + head)


class Fused(nn.Module):
    """Experts as an engine may hold them: shared ones in the same module, quantised ones with their scales."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 4)
        self.mlp = nn.Module()
        self.mlp.gate = nn.Linear(4, 2, bias=False)
        self.mlp.experts = nn.Module()
        self.mlp.experts.w13_weight = nn.Parameter(torch.zeros(2, 6, 4, dtype=torch.float8_e4m3fn), requires_grad=False)
        self.mlp.experts.shared_experts = nn.Linear(4, 3, bias=False)
        self.lm_head = nn.Linear(4, 10, bias=False)


def test_experts_that_an_engine_fuses_and_quantises() -> None:
    model = Fused()
    assert weights.by_part(model) == {"experts": 48, "embedding": 160, "encoders": 0, "other": 4 * (8 + 12 + 40)}
    beside = [("mlp.experts.w2_weight", torch.zeros(2, 4, 3, dtype=torch.int8)), ("norm.scale", torch.zeros(5))]
    parameter = ("mlp.experts.w13_weight", model.mlp.experts.w13_weight)
    again = weights.by_part(model, [*beside, parameter])
    assert again == {"experts": 48 + 24, "embedding": 160, "encoders": 0, "other": 4 * (8 + 12 + 40) + 20}, (
        "none is counted twice"
    )
