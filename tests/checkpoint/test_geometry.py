"""Sizes from config.json, against models that Transformers builds from the same configuration and published counts."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from docs.generate import model_types_page
from moe_eval.checkpoint import geometry
from moe_eval.checkpoint.geometry import Entries
from tests.conftest import ROOT

Settings = dict[str, Any]
DATA = Path(__file__).parent
# a model type of Transformers with small sizes, for every rule of where parameters are
FAMILIES: list[tuple[str, Settings]] = json.loads((DATA / "small_configs.json").read_text())
QWEN3 = FAMILIES[0][1]
# the language model's own figures, from the checkpoints' config.json
PUBLISHED: dict[str, Settings] = json.loads((DATA / "published_configs.json").read_text())
# billions of parameters that makers publish, with the sources of both
COUNTS: list[Settings] = json.loads((DATA / "published_counts.json").read_text())


def built(kind: str, settings: Settings, *, device: str = "meta") -> tuple[Settings, torch.nn.Module]:
    """A configuration as it stands in config.json, and its model, on the meta device without memory."""
    try:
        config = AutoConfig.for_model(kind, **json.loads(json.dumps(settings)))
    except ValueError:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    is_larger = "text_config" in settings
    maker: Any = transformers.AutoModelForImageTextToText if is_larger else AutoModelForCausalLM
    with torch.device(device):
        model = maker.from_config(config).eval()
    return json.loads(config.to_json_string(use_diff=True)), model


def counted(model: torch.nn.Module) -> Counter[str]:
    """Parameters of the language model by part. Vectors are norms, biases, scales and the like."""
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias") or parameter.ndim < 2 or re.search("vision|projector", name):
            continue
        if (".experts." in name or "_linear.weight" in name) and "shared" not in name:
            parts["experts"] += parameter.numel()
        elif re.search(r"\.(self_attn|linear_attn)\.|\.mixer\.([qkvo]_proj|in_proj|out_proj|conv1d)", name):
            parts["attention"] += parameter.numel()
        elif re.search("lm_head|embed_tokens|embeddings", name):
            parts["vocabulary"] += parameter.numel()
        else:
            parts["dense"] += parameter.numel()
    return parts


def cached(model: Any, tokens: int) -> tuple[Counter[str], int]:
    """Numbers that Transformers caches for a sequence: by what they are, and those of states."""
    with torch.no_grad():
        layers = model(input_ids=torch.arange(1, tokens + 1)[None], use_cache=True).past_key_values.layers
    entries: Counter[str] = Counter()
    states = 0
    for layer in layers:
        found = vars(layer)
        kept = {"attention": [found.get("keys")], "index": [found.get("indexer_keys"), found.get("idx_keys")]}
        is_same = model.config.model_type == "deepseek_v4"  # one tensor under two names
        kept["attention"] += [] if is_same else [found.get("values")]
        compressed = found.get("compressed_kv", {})
        kept["attention"] += [compressed.get("compressor")]
        kept["index"] += [compressed.get("indexer")]
        for part, tensors in kept.items():
            entries[part] += sum(tensor.numel() for tensor in tensors if tensor is not None)
        states += sum(state.numel() for state in found.get("recurrent_states", {}).values())
        # a convolution's oldest input is not needed again
        states += sum(state[..., 1:].numel() for state in found.get("conv_states", {}).values())
    return entries, states


@pytest.mark.parametrize(("kind", "settings"), FAMILIES)
def test_every_part_holds_the_models_parameters(kind: str, settings: Settings) -> None:
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
    assert sizes.moe_layers == sum(name.endswith(".experts") for name, _ in model.named_modules())


@pytest.mark.parametrize(("kind", "settings"), FAMILIES)
def test_a_sequences_cache_is_as_large_as_the_models(kind: str, settings: Settings) -> None:
    config, model = built(kind, settings, device="cpu")
    sizes = geometry.read(config)
    entries, states = cached(model, tokens := 11)
    expected: Counter[str] = Counter()
    for mixer in sizes.mixers:
        for part in mixer.entries:
            # of a window Transformers keeps what the next token sees, which is one of those itself
            kept = tokens if part.window is None else min(tokens, part.window - 1)
            expected["index" if part.width else "attention"] += mixer.layers * (kept // part.tokens) * part.values
    assert expected == entries
    assert sizes.state_bytes(1) == states


@pytest.mark.parametrize(("window", "chunked"), [(None, False), (4, False), (4, True), (1, False)])
def test_a_query_sees_what_the_models_mask_shows(window: int | None, chunked: bool) -> None:
    masks: Any = transformers.masking_utils
    mask = masks.causal_mask_function
    if window is not None and chunked:
        mask = masks.chunked_causal_mask_function(window, torch.zeros(1, dtype=int))
    elif window is not None:
        mask = masks.sliding_window_causal_mask_function(window)
    places = torch.arange(11)
    shown = [sum(bool(mask(torch.tensor(0), 0, query, key)) for key in places) for query in places]
    entries = Entries(1, 1, window=window, is_chunked=chunked)
    assert entries.seen(np.arange(1, 12)).tolist() == shown
    chosen = replace(entries, chosen=3)
    assert chosen.seen(np.arange(1, 12)).tolist() == [min(3, count) for count in shown]
    assert Entries(1, 1, tokens=4).seen(np.arange(1, 12)).tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_one_token_uses_its_experts_and_all_the_rest() -> None:
    config, model = built("qwen3_moe", {**QWEN3, "mlp_only_layers": [0, 3]})
    sizes = geometry.read(config)
    assert sizes.moe_layers == 3
    assert sizes.expert_params == 3 * 32 * 12
    parts = counted(model)
    everything = parts.total() - parts["experts"] + parts["experts"] * 2 // 6
    assert sizes.active_params == everything - sizes.params.embedding


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: row["model"])
def test_published_counts(row: Settings) -> None:
    """In billions. Makers count one, both or none of the two matrices of the vocabulary as active."""
    sizes = geometry.read(PUBLISHED[row["model"]])
    counts = (-sizes.params.head, 0, sizes.params.embedding)
    active = (sizes.active_params + counts[row["vocabulary_matrices"]]) / 1e9
    assert sizes.params.total / 1e9 == pytest.approx(row["total"], rel=0.018, abs=0.5)
    assert active == pytest.approx(row["active"], rel=0.025, abs=0.5)
    assert row["config"]
    assert row["counts"]


def test_the_page_of_model_types_is_what_the_generator_writes() -> None:
    page = ROOT / "docs" / "reference" / "model-types.md"
    assert page.read_text() == model_types_page(), "run python docs/generate.py"


def test_a_sequence_keeps_what_its_layers_keep() -> None:
    oss = geometry.read(PUBLISHED["gpt-oss-120b"])
    token = 2 * 8 * 64 * 2  # keys and values of 8 heads in 16 bits
    assert oss.sequence_bytes(100, 2) == 36 * 100 * token
    assert oss.sequence_bytes(1000, 2) == 18 * (1000 + 128) * token
    # 43 layers keep 128 keys; 21 keep one for 4 tokens with an indexer's in FP4, 20 one for 128
    flash = geometry.read(PUBLISHED["DeepSeek-V4-Flash"])
    kept = 43 * 128 * 512 * 2 + 21 * 250 * (512 * 2 + 128 / 2) + 20 * 7 * 512 * 2
    assert flash.sequence_bytes(1000, 2) == kept


def test_every_published_configuration_is_counted() -> None:
    assert {row["model"] for row in COUNTS} == set(PUBLISHED)


def test_qwen3_30b_a3b_by_hand() -> None:
    sizes = geometry.read(PUBLISHED["Qwen3-30B-A3B"])
    assert sizes.params.experts == 48 * 128 * 3 * 2048 * 768
    assert 2 * sizes.params.experts / 1e9 == pytest.approx(58.0, abs=0.05)
    assert sizes.kv_bytes_per_token(2) == 48 * 2 * 4 * 128 * 2
    assert (sizes.layers, sizes.moe_layers, sizes.sums, sizes.hidden) == (48, 48, 96, 2048)
    assert (sizes.experts, sizes.top_k, sizes.vocabulary, sizes.tied) == (128, 8, 151936, False)
    (mixer,) = sizes.mixers
    assert mixer.entries == (Entries(values=2 * 4 * 128, flops=4 * 32 * 128, heads=4),)


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
        {"layer_types": ["full_attention", "lightning_attention"] * 24},
        {"layer_types": ["full_attention"]},
        {"num_hidden_layers": 10**12},
        {"hidden_size": 10**400},
        {"layer_types": {"0": "full_attention"}},
        {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28},
        {"model_type": None},
        {"layer_types": ["full_attention", "sliding_attention"] * 24},
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


def test_a_window_in_all_layers_is_one_kind_of_layer() -> None:
    windowed = {"sliding_window": 4096, "use_sliding_window": True, "max_position_embeddings": 32768}
    (mixer,) = geometry.read({**PUBLISHED["Qwen3-30B-A3B"], **windowed}).mixers
    assert (mixer.layers, mixer.entries[0].window) == (48, 4096)
    assert geometry.read({}) is None


def test_which_layers_have_a_router() -> None:
    assert geometry.routers(PUBLISHED["DeepSeek-V3"]) == tuple(range(3, 61))
    assert geometry.routers(PUBLISHED["Llama-4-Maverick-17B-128E"]) == tuple(range(1, 48, 2))
    nano = PUBLISHED["Nemotron-3-Nano-30B-A3B"]
    places = tuple(place for place, block in enumerate(nano["hybrid_override_pattern"]) if block == "E")
    assert geometry.routers(nano) == places
    assert geometry.routers({"model_type": "llama", "num_hidden_layers": 2}) is None


def test_layers_are_the_same_however_a_file_lists_them() -> None:
    """Released files state intervals, ratios and patterns, and Transformers writes lists."""
    next_80b, delta = PUBLISHED["Qwen3-Next-80B-A3B"], ["linear_attention"] * 3 + ["full_attention"]
    assert geometry.read({**next_80b, "full_attention_interval": None, "layer_types": delta * 12}) == geometry.read(
        next_80b
    )
    flash = PUBLISHED["DeepSeek-V4-Flash"]
    names = {0: "sliding", 4: "compressed_sparse", 128: "heavily_compressed"}
    kinds = [f"{names[ratio]}_attention" for ratio in flash["compress_ratios"]][:43]
    assert geometry.read({**flash, "compress_ratios": None, "layer_types": kinds}) == geometry.read(flash)
    assert geometry.read({**flash, "compress_ratios": [0, 0, *[2] * 41]}) is None, "a ratio that is not known"
    nano = PUBLISHED["Nemotron-3-Nano-30B-A3B"]
    blocks = [{"M": "mamba", "E": "moe", "*": "attention"}[block] for block in nano["hybrid_override_pattern"]]
    assert geometry.read({**nano, "hybrid_override_pattern": None, "layers_block_type": blocks}) == geometry.read(nano)
    oss = PUBLISHED["gpt-oss-120b"]
    assert geometry.read({**oss, "layer_types": None}) == geometry.read(oss)
    scout = PUBLISHED["Llama-4-Scout-17B-16E"]
    listed = {**scout["text_config"], "no_rope_layers": [1, 1, 1, 0] * 12}
    assert geometry.read({**scout, "text_config": listed}) == geometry.read(scout)
