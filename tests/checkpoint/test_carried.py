"""The precision that a checkpoint carries, by its settings and its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_eval.checkpoint.carried import Carried, read_carried
from moe_eval.errors import UsageError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "cases" / "checkpoints"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without weights."""
    return tmp_path


NVFP4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group"}


def _groups(**weights: object) -> dict[str, object]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("declared", "precision", "method"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", "fp8 with blocks of [128, 128]"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, None, "fp8 with blocks of [64, 64]"),
        ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", "modelopt FP8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "modelopt NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, None, "modelopt W4A8_AWQ"),
        (_groups(type="float", num_bits=8, strategy="tensor"), "fp8", "compressed-tensors float-8-tensor"),
        (_groups(type="float", num_bits=8, strategy="block"), "fp8_block", "compressed-tensors float-8-block"),
        (_groups(type="float", num_bits=8, strategy="channel"), "fp8_channel", "compressed-tensors float-8-channel"),
        (_groups(type="float", num_bits=4, strategy="tensor"), None, "compressed-tensors float-4-tensor"),
        (
            _groups(type="float", num_bits=4, strategy="tensor_group"),
            "nvfp4",
            "compressed-tensors float-4-tensor_group",
        ),
        (_groups(type="int", num_bits=4, strategy="group"), None, "compressed-tensors int-4-group"),
        ({"quant_method": "mxfp4"}, "mxfp4", "mxfp4"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", "fp8 static"),
        ({"bits": 4}, None, "int4 (unnamed)"),
        (None, "bf16", "none"),
    ],
)
def test_what_a_checkpoint_carries_is_what_its_config_declares(
    folder: Path, declared: dict[str, object] | None, precision: str | None, method: str
) -> None:
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", "quantization_config": declared}))
    carried = read_carried(folder)
    assert (carried.precision, carried.method, carried.kv_cache) == (precision, method, None)


_LAYERS = {
    "model.layers.0.mlp.experts.0.up_proj": {"quant_algo": "NVFP4"},
    "model.layers.0.mlp.experts.1.up_proj": {"quant_algo": "NVFP4"},
    "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
}


@pytest.mark.parametrize(
    ("quantization", "carried"),
    [
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, ("nvfp4", "modelopt NVFP4", "fp8")),
        ({"quant_algo": "FP8", "exclude_modules": ["lm_head"]}, ("fp8", "modelopt FP8", None, ("lm_head",))),
        ({"quant_algo": "fp8_pb_wo"}, ("fp8_block", "modelopt fp8_pb_wo", None)),
        ({"quant_algo": "MIXED_PRECISION"}, (None, "modelopt MIXED_PRECISION, experts not named", None)),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": _LAYERS},
            ("nvfp4", "modelopt MIXED_PRECISION, experts NVFP4", None, (), (("FP8", 1), ("NVFP4", 2))),
        ),
        ({"quant_algo": None, "kv_cache_quant_algo": "FP8"}, ("fp16", "none", "fp8")),
        ({"quant_algo": "W4A16_FUTURE"}, (None, "modelopt W4A16_FUTURE", None)),
    ],
)
def test_the_file_of_modelopt_is_read(folder: Path, quantization: dict[str, object], carried: tuple[str, ...]) -> None:
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float16"}))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    read = read_carried(folder)
    assert Carried(read.precision, read.method, read.kv_cache, read.excluded, read.layers) == Carried(*carried)


def test_the_file_of_modelopt_and_the_config_may_agree_and_not_contradict(folder: Path) -> None:
    file = folder / "hf_quant_config.json"
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    file.write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert read_carried(folder).precision == "fp8"
    file.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(UsageError) as caught:
        read_carried(folder)
    assert str(caught.value) == (
        f"{file.name} says modelopt NVFP4 and config.json says fp8, and no weights of {folder} tell which of them is "
        "right. Give a copy with its weights, or one whose files agree."
    )
    file.write_text("{quantization")
    with pytest.raises(UsageError, match=r"hf_quant_config.json is damaged"):
        read_carried(folder)


CASES = {
    "a1-int4-in-text_config": None,
    "a3-expert_dtype-fp4": "mxfp4",
    "b2-modelopt-0.31-without-quant_method": "fp8",
    "b3-modelopt-0.31-config-alone": "fp8",
    "c1-nvfp4a16": "nvfp4-w4a16",
    "c3-fp8-weight-only": "fp8-w8a16",
    "d1-kv-scheme-modelopt": "nvfp4",
    "e1-experts-in-ignore": "bf16",
    "e3-modelopt-excludes-experts": "bf16",
    "e4-fp8-modules_to_not_convert-experts": "bf16",
    "f1-compression_config": "fp8",
    "f2-gptq-quantize_config.json-alone": None,
    "g1-block-64x64": None,
    "i1-no-dtype-stated-fp8": "fp8_block",
}
CACHES = {"b2-modelopt-0.31-without-quant_method", "b3-modelopt-0.31-config-alone", "d1-kv-scheme-modelopt"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared checkpoints are not beside the checkout")
@pytest.mark.parametrize("case", CASES)
def test_given_checkpoints_are_read_as_they_are(case: str) -> None:
    carried = read_carried(SHARED / case)
    assert carried.precision == CASES[case]
    assert carried.kv_cache == ("fp8" if case in CACHES else None)
    assert (carried.dtype is None) == case.startswith("i1")
    if carried.precision is None:
        assert "int4" in carried.method.replace("int-4", "int4") or "[64, 64]" in carried.method
