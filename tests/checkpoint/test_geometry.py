"""Sizes from config.json, against models that Transformers builds from the same configuration and published counts."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from moe_eval.checkpoint import geometry

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
LATENT = {
    **SMALL,
    "n_routed_experts": 6,
    "moe_intermediate_size": 12,
    "n_shared_experts": 2,
    "first_k_dense_replace": 2,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "n_group": 1,
    "topk_group": 1,
}
QWEN3 = {**SMALL, "head_dim": 16, "num_experts": 6, "moe_intermediate_size": 12}
DEEP = {**SMALL, "n_routed_experts": 6, "moe_intermediate_size": 12, "first_k_dense_replace": 2, "n_shared_experts": 2}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", QWEN3),
    ("qwen3_moe", {**QWEN3, "mlp_only_layers": [1], "decoder_sparse_step": 2}),
    ("qwen3_moe", {**QWEN3, "tie_word_embeddings": True, "attention_bias": True}),
    ("qwen2_moe", {**SMALL, "num_experts": 6, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 28}),
    ("mixtral", {**SMALL, "num_local_experts": 6}),
    ("olmoe", {**SMALL, "num_experts": 6}),
    ("phimoe", {**SMALL, "num_local_experts": 6}),
    ("granitemoe", {**SMALL, "num_local_experts": 6, "tie_word_embeddings": True}),
    ("glm4_moe", {**DEEP, "head_dim": 16}),
    ("dots1", {**DEEP, "head_dim": 16}),
    ("deepseek_v2", LATENT),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None, "n_shared_experts": 1}),
    ("deepseek_v3", LATENT),
]
# the language model's own figures, from the checkpoints' config.json
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "intermediate_size": 6144, "vocab_size": 151936, "tie_word_embeddings": False,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "sliding_window": None, "use_sliding_window": False,
    },
    "Mixtral-8x7B": {
        "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336,
        "vocab_size": 32000, "tie_word_embeddings": False, "sliding_window": None,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048, "intermediate_size": 18432, "vocab_size": 129280, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "tie_word_embeddings": False,
    },
    "Qwen1.5-MoE-A2.7B": {
        "model_type": "qwen2_moe", "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "intermediate_size": 5632, "shared_expert_intermediate_size": 5632, "vocab_size": 151936,
        "tie_word_embeddings": False, "sliding_window": 32768, "use_sliding_window": False,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip


def built(kind: str, settings: dict[str, Any]) -> tuple[dict[str, Any], torch.nn.Module]:
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


@pytest.mark.parametrize(("kind", "settings"), FAMILIES)
def test_every_part_holds_the_models_parameters(kind: str, settings: dict[str, Any]) -> None:
    config, model = built(kind, settings)
    found = geometry.read(config)
    assert found is not None
    parts = counted(model)
    assert found.params.experts == parts["experts"]
    assert found.params.attention == parts["attention"]
    assert found.params.dense == parts["dense"]
    assert found.params.head + found.params.embedding == parts["vocabulary"]
    assert found.params.total == parts.total()
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)  # type: ignore[operator]
    assert (found.layers, found.experts, found.top_k, found.vocabulary) == (5, 6, 2, 96)


@pytest.mark.parametrize(("kind", "settings"), FAMILIES)
def test_a_tokens_cache_is_as_large_as_the_models(kind: str, settings: dict[str, Any]) -> None:
    config, model = built(kind, settings)
    found = geometry.read(config)
    assert found is not None
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    # with latent attention one matrix makes all that has to be kept; else what k_proj and v_proj make
    kept = ("kv_a_proj_with_mqa.weight",) if "kv_lora_rank" in settings else ("k_proj.weight", "v_proj.weight")
    values = sum(shape[0] for name, shape in shapes.items() if name.endswith(kept))
    assert found.kv_bytes_per_token(2) == 2 * values
    assert found.kv_bytes_per_token(0.5) == values / 2
    queries = next(shape[0] for name, shape in shapes.items() if name.endswith(("q_proj.weight", "q_b_proj.weight")))
    outputs = next(shape[1] for name, shape in shapes.items() if name.endswith("o_proj.weight"))
    assert found.heads * found.head_dim == queries
    assert found.heads * found.value_dim == outputs


def test_one_token_uses_its_experts_and_all_the_rest() -> None:
    config, model = built("qwen3_moe", {**QWEN3, "mlp_only_layers": [0, 3]})
    found = geometry.read(config)
    assert found is not None
    assert found.moe_layers == 3
    assert found.expert_params == 3 * 32 * 12
    parts = counted(model)
    assert found.active_params == parts.total() - parts["experts"] + parts["experts"] * 2 // 6


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
    found = geometry.read(PUBLISHED[name])
    assert found is not None
    assert found.params.total / 1e9 == pytest.approx(total, rel=0.003)
    assert found.active_params / 1e9 == pytest.approx(active, rel=0.02)


def test_qwen3_30b_a3b_by_hand() -> None:
    found = geometry.read(PUBLISHED["Qwen3-30B-A3B"])
    assert found is not None
    assert found.params.experts == 48 * 128 * 3 * 2048 * 768
    assert 2 * found.params.experts / 1e9 == pytest.approx(58.0, abs=0.05)
    assert found.kv_bytes_per_token(2) == 48 * 2 * 4 * 128 * 2
    assert (found.layers, found.moe_layers, found.hidden, found.heads, found.kv_heads) == (48, 48, 2048, 32, 4)
    assert (found.head_dim, found.experts, found.top_k, found.vocabulary, found.tied) == (128, 128, 8, 151936, False)


def test_deepseeks_latent_cache_is_the_published_one() -> None:
    found = geometry.read(PUBLISHED["DeepSeek-V3"])
    assert found is not None
    assert found.kv_bytes_per_token(2) == 70_272
    assert found.kv_bytes_per_gpu(2, tensor=8) == 70_272, "a latent has no heads to split"
    assert found.kv_bytes_per_gpu(2, tensor=8, pipeline=2) == 31 * 576 * 2, "61 layers on two GPUs"


@pytest.mark.parametrize(("tensor", "heads"), [(1, 4), (2, 2), (4, 1), (8, 1)])
def test_heads_are_split_until_every_gpu_has_one(tensor: int, heads: int) -> None:
    found = geometry.read(PUBLISHED["Qwen3-30B-A3B"])
    assert found is not None
    assert found.kv_bytes_per_gpu(1, tensor) == 48 * 2 * heads * 128


def test_the_language_model_of_a_larger_one() -> None:
    plain = PUBLISHED["Qwen3-30B-A3B"]
    inner = {key: value for key, value in plain.items() if key != "tie_word_embeddings"}
    outer = {"model_type": "qwen3_vl_moe", "text_config": {**inner, "model_type": "qwen3_vl_moe_text"}}
    assert geometry.read({**outer, "tie_word_embeddings": False}) == geometry.read(plain)
    tied = geometry.read({**outer, "tie_word_embeddings": True})
    assert tied is not None
    assert (tied.tied, tied.params.embedding) == (True, 0)


def test_layers_of_which_every_other_one_has_a_router() -> None:
    deep = {**PUBLISHED["DeepSeek-V3"], "num_hidden_layers": 9}
    found = [geometry.read({**deep, "moe_layer_freq": each}) for each in (1, 2, [0, 1, 1, 1, 0, 0, 0, 0, 1])]
    # 3 to 8; 4, 6 and 8; 3 and 8
    assert [each and each.moe_layers for each in found] == [6, 3, 2]
    listed = ["dense", "sparse", "dense", "dense", "dense", "dense", "dense", "dense", "sparse"]
    other = geometry.read({**deep, "mlp_layer_types": listed})
    assert other is not None
    assert other.moe_layers == 2


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
def test_what_is_not_understood_has_no_sizes(change: dict[str, Any]) -> None:
    assert geometry.read({**PUBLISHED["Qwen3-30B-A3B"], **change}) is None


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_key_value_heads", "vocab_size", "num_experts_per_tok"])
def test_a_missing_size_is_not_guessed(missing: str) -> None:
    config = dict(PUBLISHED["Qwen3-30B-A3B"])
    del config[missing]
    assert geometry.read(config) is None


def test_a_window_as_long_as_the_context_is_none() -> None:
    wide = {"sliding_window": 32768, "use_sliding_window": True, "max_position_embeddings": 32768}
    assert geometry.read({**PUBLISHED["Qwen3-30B-A3B"], **wide}) is not None
    assert geometry.read({}) is None
