"""Sizes from config.json, against models that Transformers builds from the same configuration and published counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from moe_eval.checkpoint import geometry

Settings = dict[str, Any]
DATA = Path(__file__).parent
# a model type of Transformers with small sizes, for every rule of where parameters are
FAMILIES: list[tuple[str, Settings]] = json.loads((DATA / "small_configs.json").read_text())
QWEN3 = FAMILIES[0][1]
# the language model's own figures, from the checkpoints' config.json
PUBLISHED: dict[str, Settings] = json.loads((DATA / "published_configs.json").read_text())


def built(kind: str, settings: Settings) -> tuple[Settings, torch.nn.Module]:
    """A configuration as it stands in config.json, and its model without memory."""
    try:
        config = AutoConfig.for_model(kind, **settings)
    except ValueError:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return json.loads(config.to_json_string(use_diff=True)), model


def counted(model: torch.nn.Module) -> Counter[str]:
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            continue
        if (".experts." in name or "_linear.weight" in name) and "shared" not in name:
            parts["experts"] += parameter.numel()
        elif ".self_attn." in name:
            parts["attention"] += parameter.numel()
        elif name.startswith("lm_head") or "embed_tokens" in name:
            parts["vocabulary"] += parameter.numel()
        else:
            parts["dense"] += parameter.numel()
    return parts


def active_params(sizes: geometry.Geometry) -> int:
    """Parameters of one token's path, after which models are called (the A3B of Qwen3-30B-A3B)."""
    return sizes.params.total - sizes.params.experts + sizes.moe_layers * sizes.top_k * sizes.expert_params


@pytest.mark.parametrize(("kind", "settings"), FAMILIES)
def test_every_part_holds_the_models_parameters_and_a_tokens_cache_its_values(kind: str, settings: Settings) -> None:
    config, model = built(kind, settings)
    sizes = geometry.read(config)
    parts = counted(model)
    assert sizes.params.experts == parts["experts"]
    assert sizes.params.attention == parts["attention"]
    assert sizes.params.dense == parts["dense"]
    assert sizes.params.head + sizes.params.embedding == parts["vocabulary"]
    assert sizes.params.total == parts.total()
    assert sizes.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)  # type: ignore[operator]
    assert (sizes.layers, sizes.experts, sizes.top_k, sizes.vocabulary) == (5, 6, 2, 96)

    # a token's cache is as large as the model's
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    # with latent attention one matrix makes all that has to be kept; else what k_proj and v_proj make
    cached = ("kv_a_proj_with_mqa.weight",) if "kv_lora_rank" in settings else ("k_proj.weight", "v_proj.weight")
    values = sum(shape[0] for name, shape in shapes.items() if name.endswith(cached))
    assert sizes.kv_bytes_per_token(2) == 2 * values
    assert sizes.kv_bytes_per_token(0.5) == values / 2
    queries = next(shape[0] for name, shape in shapes.items() if name.endswith(("q_proj.weight", "q_b_proj.weight")))
    outputs = next(shape[1] for name, shape in shapes.items() if name.endswith("o_proj.weight"))
    assert sizes.heads * sizes.head_dim == queries
    assert sizes.heads * sizes.value_dim == outputs


def test_one_token_uses_its_experts_and_all_the_rest() -> None:
    config, model = built("qwen3_moe", {**QWEN3, "mlp_only_layers": [0, 3]})
    sizes = geometry.read(config)
    assert sizes.moe_layers == 3
    assert sizes.expert_params == 3 * 32 * 12
    parts = counted(model)
    assert active_params(sizes) == parts.total() - parts["experts"] + parts["experts"] * 2 // 6


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen3-30B-A3B", 30.5, 3.3),
        ("Mixtral-8x7B", 46.7, 12.9),
        ("DeepSeek-V3", 671, 37),
        ("Qwen1.5-MoE-A2.7B", 14.3, 2.7),
    ],
)
def test_published_counts(name: str, total: float, active: float) -> None:
    sizes = geometry.read(PUBLISHED[name])
    assert sizes.params.total / 1e9 == pytest.approx(total, rel=0.003)
    assert active_params(sizes) / 1e9 == pytest.approx(active, rel=0.02)


def test_qwen3_30b_a3b_by_hand() -> None:
    sizes = geometry.read(PUBLISHED["Qwen3-30B-A3B"])
    assert sizes.params.experts == 48 * 128 * 3 * 2048 * 768
    assert 2 * sizes.params.experts / 1e9 == pytest.approx(58.0, abs=0.05)
    assert sizes.kv_bytes_per_token(2) == 48 * 2 * 4 * 128 * 2
    assert (sizes.layers, sizes.moe_layers, sizes.hidden, sizes.heads, sizes.kv_heads) == (48, 48, 2048, 32, 4)
    assert (sizes.head_dim, sizes.experts, sizes.top_k, sizes.vocabulary, sizes.tied) == (128, 128, 8, 151936, False)


def test_deepseeks_latent_cache_is_the_published_one() -> None:
    sizes = geometry.read(PUBLISHED["DeepSeek-V3"])
    assert sizes.kv_bytes_per_token(2) == 70_272
    assert sizes.kv_bytes_per_gpu(2, tensor=8) == 70_272, "a latent has no heads to split"
    assert sizes.kv_bytes_per_gpu(2, tensor=8, pipeline=2) == 31 * 576 * 2, "61 layers on two GPUs"


@pytest.mark.parametrize(("tensor", "heads"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_heads_are_split_until_every_gpu_has_one(tensor: int, heads: int) -> None:
    sizes = geometry.read(PUBLISHED["Qwen3-30B-A3B"])
    assert sizes.kv_bytes_per_gpu(1, tensor) == 48 * 2 * heads * 128


def test_the_language_model_of_a_larger_one() -> None:
    plain = PUBLISHED["Qwen3-30B-A3B"]
    inner = {key: value for key, value in plain.items() if key != "tie_word_embeddings"}
    outer = {"model_type": "qwen3_vl_moe", "text_config": {**inner, "model_type": "qwen3_vl_moe_text"}}
    assert geometry.read({**outer, "tie_word_embeddings": False}) == geometry.read(plain)
    tied = geometry.read({**outer, "tie_word_embeddings": True})
    assert (tied.tied, tied.params.embedding) == (True, 0)


def test_layers_of_which_every_other_one_has_a_router() -> None:
    deep = {**PUBLISHED["DeepSeek-V3"], "num_hidden_layers": 9}
    frequencies = (1, 2, [0, 1, 1, 1, 0, 0, 0, 0, 1])
    models = [geometry.read({**deep, "moe_layer_freq": frequency}) for frequency in frequencies]
    # 3 to 8; 4, 6 and 8; 3 and 8
    assert [sizes and sizes.moe_layers for sizes in models] == [6, 3, 2]
    listed = ["dense", "sparse", "dense", "dense", "dense", "dense", "dense", "dense", "sparse"]
    from_list = geometry.read({**deep, "mlp_layer_types": listed})
    assert from_list.moe_layers == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"model_type": "qwen3_next"},
        {"model_type": None},
        {"layer_types": ["full_attention", "sliding_attention"] * 24},
        {"sliding_window": 4096, "use_sliding_window": True, "max_position_embeddings": 40960},
        {"sliding_window": "wide", "use_sliding_window": True},
        {"num_experts": None},
        {"num_experts": 0},
        {"hidden_size": "large"},
        {"decoder_sparse_step": 0},
        {"mlp_layer_types": ["sparse"]},
    ],
)
def test_what_is_not_understood_has_no_sizes(change: Settings) -> None:
    assert geometry.read({**PUBLISHED["Qwen3-30B-A3B"], **change}) is None


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_key_value_heads", "vocab_size", "num_experts_per_tok"])
def test_a_missing_size_is_not_guessed(missing: str) -> None:
    config = {name: value for name, value in PUBLISHED["Qwen3-30B-A3B"].items() if name != missing}
    assert geometry.read(config) is None


def test_a_window_as_long_as_the_context_is_none() -> None:
    wide = {"sliding_window": 32768, "use_sliding_window": True, "max_position_embeddings": 32768}
    assert geometry.read({**PUBLISHED["Qwen3-30B-A3B"], **wide}) is not None
    assert geometry.read({}) is None
