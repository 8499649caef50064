"""Forms of quantisation by module: which experts, shared experts, attention and cache are in what, and what decides."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from moe_eval.checkpoint import declared
from moe_eval.checkpoint.carried import Carried, read_carried
from moe_eval.errors import UsageError

F8 = {"type": "float", "num_bits": 8}
F4 = {"type": "float", "num_bits": 4}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
EXPERT = "model.layers.{}.mlp.experts.0.{}_proj"


def carried(folder: Path, declared: object = None, beside: object = None, **fields: object) -> Carried:
    config = {"dtype": "bfloat16", "num_hidden_layers": 2, "quantization_config": declared, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    return read_carried(folder)


def store(folder: Path, *layers: dict[str, tuple[str, list[int]]], name: str = "model") -> None:
    """The header of a file with an expert in each layer: the type and shape of its tensors by name."""
    tensors = {
        f"{EXPERT.format(layer, 'up')}.{part}": {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        for layer, parts in enumerate(layers)
        for part, (dtype, shape) in parts.items()
    }
    content = json.dumps(tensors).encode()
    (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)


BF16 = {"weight": ("BF16", [256, 512])}
FP8 = {"weight": ("F8_E4M3", [256, 512]), "weight_scale": ("F32", [])}
FP8_CHANNEL = {"weight": ("F8_E4M3", [256, 512]), "weight_scale": ("F32", [256, 1])}
FP8_BLOCK = {"weight": ("F8_E4M3", [256, 512]), "weight_scale_inv": ("F32", [2, 4])}
NVFP4 = {"weight": ("U8", [256, 256]), "weight_scale": ("F8_E4M3", [256, 32]), "weight_scale_2": ("F32", [])}
MXFP4 = {"weight": ("U8", [256, 256]), "weight_scale": ("U8", [256, 16])}
MXFP8 = {"weight": ("F8_E4M3", [256, 512]), "weight_scale": ("U8", [256, 16])}


def compressed(weights: dict[str, Any], activations: Any = "none stated", **more: Any) -> dict[str, Any]:
    group = {"weights": weights} | ({} if activations == "none stated" else {"input_activations": activations})
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **more}


@pytest.mark.parametrize(
    ("declared", "precision", "named"),
    [
        (compressed(F8), "fp8", "float-8-tensor"),
        (compressed(F8 | {"strategy": "channel"}, F8 | {"strategy": "token"}), "fp8_channel", "float-8-channel"),
        (compressed(F8 | {"group_size": -1}), "fp8_channel", "float-8-channel"),
        (compressed(F8 | {"strategy": "channel"}, None), "fp8_channel-w8a16", "weights alone"),
        (compressed(F8 | {"strategy": "block", "block_structure": "128x128"}), "fp8_block", "float-8-block"),
        (compressed(F8 | {"strategy": "block", "block_structure": [64, 128]}), None, "blocks of [64, 128]"),
        (compressed(F8 | {"strategy": "block", "block_structure": [128, 128]}, None), "fp8_block-w8a16", "alone"),
        (compressed(F8 | {"strategy": "group", "group_size": 32}, F8), "mxfp8", "float-8-group"),
        (compressed(F8 | {"strategy": "group", "group_size": 32}, None), "mxfp8-w8a16", "weights alone"),
        (compressed(F4 | {"strategy": "tensor_group", "group_size": 16}, F4), "nvfp4", "float-4-tensor_group"),
        (compressed(F4 | {"strategy": "tensor_group", "group_size": 32}, F4), None, "of 32"),
        (compressed(F4 | {"strategy": "group", "group_size": 32}, F4), "mxfp4", "float-4-group"),
        (compressed(F4 | {"strategy": "group", "group_size": 32}, None), "mxfp4-w4a16", "weights alone"),
        (compressed(F4 | {"strategy": "group", "group_size": 32}, F8), None, "float-8 activations"),
        (compressed({"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}, F8), None, "int-4-group"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "int8 (bitsandbytes)"),
        ({"quant_method": "awq", "w_bit": 4}, None, "int4 (awq)"),
        ({"quant_method": "gptq", "bits": 8}, None, "int8 (gptq)"),
        ({"quant_method": "quark"}, None, "quark"),
        ({"quant_method": "torchao"}, None, "torchao"),
        ({"quant_method": "mxfp8"}, "mxfp8", "mxfp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "fp8_channel", "PER_TOKEN"),
        ({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, "nvfp4", "modelopt NVFP4"),
    ],
)
@pytest.mark.parametrize("place", ["quantization_config", "compression_config", "text_config", "language_config"])
def test_a_form_is_read_wherever_it_stands(
    tmp_path: Path, place: str, declared: dict[str, Any], precision: str | None, named: str
) -> None:
    content = {"quantization_config": declared} if place.endswith(("t_config", "e_config")) else declared
    read = carried(tmp_path, **{place: content}) if place != "quantization_config" else carried(tmp_path, declared)
    assert read.precision == precision
    assert named in read.method


@pytest.mark.parametrize(
    ("declared", "experts", "shared", "attention"),
    [
        (BLOCKS | {"modules_to_not_convert": ["shared_experts"]}, "fp8_block", "bf16", "fp8_block"),
        (BLOCKS | {"modules_to_not_convert": ["model.layers.*.self_attn"]}, "fp8_block", "fp8_block", "bf16"),
        (compressed(F8, ignore=[r"re:.*\.experts\..*"]), "bf16", "fp8", "fp8"),
        (compressed(F8, ignore=["re:.*shared_experts.*", "re:.*self_attn.*"]), "fp8", "bf16", "bf16"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*shared_experts*", "*self_attn*"]},
            "nvfp4",
            "bf16",
            "bf16",
        ),
    ],
)
def test_routed_and_shared_experts_and_attention_are_apart(
    tmp_path: Path, declared: object, experts: str, shared: str, attention: str
) -> None:
    read = carried(tmp_path, declared, model_type="deepseek_v3", n_shared_experts=1)
    assert (read.precision, read.shared, read.attention) == (experts, shared, attention)
    assert carried(tmp_path, declared).shared is None  # of a model without shared experts


def test_experts_of_some_layers_alone_are_told_and_have_no_name(tmp_path: Path) -> None:
    read = carried(tmp_path, BLOCKS | {"modules_to_not_convert": ["model.layers.0.mlp"]})
    assert read.precision is None
    assert "fp8 with blocks of [128, 128] in 3 and not quantised in 3 modules" in read.method


@pytest.mark.parametrize("nested", [True, False])
def test_mixed_precision_goes_by_experts_in_modelopts_file(tmp_path: Path, nested: bool) -> None:
    layers = {EXPERT.format(layer, "up"): {"quant_algo": "NVFP4"} for layer in range(2)}
    layers["model.layers.0.mlp.shared_experts.up_proj"] = {"quant_algo": "FP8"}
    settings = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}
    read = carried(tmp_path, {"quant_method": "fp8"}, {"quantization": settings} if nested else settings)
    assert (read.precision, read.kv_cache, read.layers) == ("nvfp4", "fp8", (("FP8", 1), ("NVFP4", 2)))
    layers[EXPERT.format(1, "up")] = {"quant_algo": "FP8"}
    read = carried(tmp_path, None, {"quantization": settings})
    assert (read.precision, read.method) == (None, "modelopt MIXED_PRECISION, experts FP8 and NVFP4")


@pytest.mark.parametrize(
    ("scheme", "cache"),
    [({"type": "float", "num_bits": 8}, "fp8"), ({"num_bits": 4, "type": "float"}, "nvfp4"), (None, None), ([], None)],
)
def test_the_cache_of_a_scheme(tmp_path: Path, scheme: object, cache: str | None) -> None:
    assert carried(tmp_path, compressed(F8, kv_cache_scheme=scheme)).kv_cache == cache


@pytest.mark.parametrize(
    ("stored", "precision"),
    [
        (FP8, "fp8"),
        (FP8_CHANNEL, "fp8_channel"),
        (FP8_BLOCK, "fp8_block"),
        (NVFP4, "nvfp4"),
        (MXFP4, "mxfp4"),
        (MXFP8, "mxfp8"),
        (BF16, "bf16"),
        ({"qweight": ("I32", [64, 512]), "scales": ("F16", [4, 512])}, None),
    ],
)
def test_headers_decide_where_files_are_silent(
    tmp_path: Path, stored: dict[str, tuple[str, list[int]]], precision: str | None
) -> None:
    store(tmp_path, stored, stored)
    assert carried(tmp_path).precision == precision


def test_headers_decide_between_files_and_refuse_a_wrong_label(tmp_path: Path) -> None:
    beside = {"quantization": {"quant_algo": "NVFP4"}}
    store(tmp_path, NVFP4)
    assert carried(tmp_path, BLOCKS, beside).precision == "nvfp4"
    store(tmp_path, FP8_BLOCK)
    assert carried(tmp_path, BLOCKS, beside).precision == "fp8_block"
    store(tmp_path, BF16)
    with pytest.raises(UsageError, match=r"no weights of .* tell which of them is right"):
        carried(tmp_path, BLOCKS, beside)
    (tmp_path / "hf_quant_config.json").unlink()
    with pytest.raises(UsageError, match=r"say fp8 with blocks of \[128, 128\], and its experts are stored as bf16"):
        carried(tmp_path, BLOCKS)


def test_files_that_differ_in_form_alone_agree(tmp_path: Path) -> None:
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    read = carried(tmp_path, compressed(F8, F8, ignore=["lm_head"]), beside)
    assert (read.precision, read.method, read.excluded) == ("fp8", "modelopt FP8", ("lm_head",))


def test_a_type_that_nothing_states_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert (read_carried(tmp_path).dtype, read_carried(tmp_path).precision) == (None, None)


def test_a_type_in_the_section_of_the_language_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"language_config": {"torch_dtype": "bfloat16"}}))
    assert (read_carried(tmp_path).dtype, read_carried(tmp_path).precision) == ("bfloat16", "bf16")


def test_modules_that_differ_in_digits_are_told_apart_where_a_pattern_does(tmp_path: Path) -> None:
    """Brute force: every pattern on every module, by the standard library."""
    chance = random.Random(3)
    patterns = [r".*experts\.\d+\.up.*", r".*layers\.[0-3]\..*", r"(?P<a>\w+)\.(?P=a)\.", r"[+-z]*7$", r".*gate$"]
    parts = ["model", "layers", "experts", "gate", "up_proj", "7", "3", "2", "11"]
    for pattern in patterns:
        modules = [".".join(chance.choices(parts, k=chance.randint(1, 5))) for _ in range(200)]
        declaration = declared.read(compressed(F8, targets=["Linear"], ignore=[f"re:{pattern}"]), "config.json")
        for module in modules:
            assert declaration.is_excluded(module) == (re.match(pattern, module) is not None), (pattern, module)
