"""Whatever stands in a checkpoint's settings and headers gives an answer or one sentence, never a traceback."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_eval.checkpoint.carried import Carried, read_carried
from moe_eval.errors import UsageError

KEYS = [
    "quant_method",
    "quant_algo",
    "config_groups",
    "group_0",
    "weights",
    "input_activations",
    "targets",
    "ignore",
    "type",
    "num_bits",
    "strategy",
    "group_size",
    "block_structure",
    "kv_cache_scheme",
    "kv_cache_quant_algo",
    "producer",
    "name",
    "quantization",
    "quantized_layers",
    "exclude_modules",
    "modules_to_not_convert",
    "ignored_layers",
    "weight_block_size",
    "activation_scheme",
    "bits",
    "load_in_4bit",
    "model.layers.0.mlp.experts.0.up_proj",
]
TEXTS = [
    "fp8",
    "modelopt",
    "compressed-tensors",
    "mxfp4",
    "gptq",
    "MIXED_PRECISION",
    "FP8",
    "NVFP4",
    "NO_QUANT",
    "float",
    "int",
    "channel",
    "tensor",
    "group",
    "tensor_group",
    "block",
    "128x128",
    "Linear",
    "re:.*experts.*",
    "re:(",
    "re:(a+)+$",
    "*",
    "*[",
    "[!a-b",
    "modelopt",
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(TEXTS) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=8)
configs = st.fixed_dictionaries(
    {},
    optional={
        "quantization_config": values | objects,
        "compression_config": values | objects,
        "quantization": values | objects,
        "text_config": objects | st.fixed_dictionaries({"quantization_config": values | objects}),
        "language_config": values,
        "dtype": values,
        "expert_dtype": values,
        "model_type": values,
        "num_hidden_layers": st.integers(-1, 3) | scalars,
        "n_shared_experts": values,
        "first_k_dense_replace": values,
    },
)


def _answer(folder: Path) -> Carried | None:
    try:
        return read_carried(folder)
    except UsageError as error:
        sentence = str(error)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        return None


@given(config=configs, beside=objects | st.none())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_settings_give_an_answer_or_a_sentence(tmp_path: Path, config: dict[str, Any], beside: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "hf_quant_config.json"
    file.write_text(json.dumps(beside)) if beside is not None else file.unlink(missing_ok=True)
    _answer(tmp_path)


dtypes = st.sampled_from(["BF16", "F32", "F8_E4M3", "F8_E8M0", "U8", "I32", "F4", "X"])
sizes = st.lists(st.integers(-1, 256) | st.sampled_from([2**70]), max_size=3)
tensors = st.fixed_dictionaries({"dtype": dtypes, "shape": sizes, "data_offsets": st.just([0, 0])})
names = st.sampled_from(["weight", "weight_scale", "weight_scale_inv", "weight_packed", "blocks", "qweight"])


@given(
    header=st.dictionaries(names.map("model.layers.0.mlp.experts.0.up_proj.{}".format), tensors)
    | st.dictionaries(st.text(max_size=4), values)
    | values
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_gives_an_answer_or_a_sentence(tmp_path: Path, header: Any) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    content = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    _answer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000,
        '{"quantization_config": ' * 9000 + "{}" + "}" * 9000,
        '{"quantization_config": {"bits": ' + "9" * 5000 + "}}",
        '{"quantization_config": {"quant_method": "fp8", "weight_block_size": [Infinity, NaN]}}',
        '{"quantization_config": {"quant_method": "compressed-tensors", "config_groups": ["FP8"]}}',
        '{"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"FP8": ["Linear"]}}}',
        '{"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["re:("], "config_groups": {}}}',
        "null",
        "[]",
    ],
)
def test_hostile_settings_are_one_sentence(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert _answer(tmp_path) is None


def test_an_expression_that_backtracks_for_ever_is_refused(tmp_path: Path) -> None:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}}
    declared = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": [r"re:(?:.|..|...)*[0-9]$"]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": declared}))
    with pytest.raises(UsageError, match="expression without an end"):
        read_carried(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'{"a": {"dtype": "F32", "shape": [1], "more": %s1%s}}' % (b"[" * 100_000, b"]" * 100_000),
        b'{"a": {"dtype": "F32", "shape": [1%s]}}' % (b"0" * 5_000),
        b'{"a": {"dtype": "F32", "shape": [NaN]}}',
        b'{"a": {"dtype": "\xff", "shape": [1]}}',
        b'{"\xff": {"dtype": "F32", "shape": [1]}}',
    ],
    ids=["list", "nested", "digits", "NaN", "bytes in a value", "bytes in a name"],
)
def test_headers_that_hold_no_tensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(UsageError, match=r"model\.safetensors is corrupt or cut short"):
        read_carried(tmp_path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 10])
def test_headers_of_a_wrong_length_are_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UsageError, match="corrupt or cut short"):
        read_carried(tmp_path)
