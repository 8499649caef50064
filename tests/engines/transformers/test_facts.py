"""What the Transformers engine says of itself, and how settings reach the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moe_eval.checkpoint import contents
from moe_eval.engines.transformers.engine import TransformersEngine

Start = Callable[..., TransformersEngine]


def test_facts_of_the_shipped_model(shipped: Path, start: Start, tmp_path: Path) -> None:
    facts = start(shipped).facts
    assert (facts.name, facts.version, facts.worker) == ("transformers", transformers.__version__, "in_process")
    assert (facts.checkpoint, facts.architecture, facts.vocabulary) == (str(shipped), "Qwen3MoeForCausalLM", 4096)
    assert (facts.dtype, facts.precision, facts.kv_cache_dtype, facts.emulated) == (
        "bfloat16",
        "bf16",
        "bfloat16",
        False,
    )
    assert (facts.max_length, facts.moe_backend_requested, facts.cuda_graph_batch_sizes) == (1024, "auto", ())
    copied = shutil.copytree(shipped, tmp_path / "copy")
    assert facts.fingerprint == contents.fingerprint(shipped) == start(copied).facts.fingerprint


@pytest.mark.parametrize(
    ("asked", "dtype", "precision"),
    [
        ({"dtype": "float32"}, "float32", "fp32"),
        ({"dtype": "float16"}, "float16", "fp16"),
        ({"precision": "fp32"}, "float32", "fp32"),
        ({"precision": "bf16", "dtype": "bfloat16"}, "bfloat16", "bf16"),
    ],
)
def test_precision_follows_what_was_asked(
    shipped: Path, start: Start, asked: dict[str, str], dtype: str, precision: str
) -> None:
    engine = start(shipped, **asked)
    assert (engine.facts.dtype, engine.facts.precision) == (dtype, precision)
    assert engine.model.dtype == getattr(torch, dtype)


def test_settings_reach_the_model(mixtral: Path, start: Start) -> None:
    options = {"moe_backend": "eager", "attn_implementation": "eager"}
    facts = start(mixtral, max_length=32, device="cpu", options=options).facts
    assert (facts.moe_backend_requested, facts.moe_backend_observed) == ("eager", "eager")
    assert (facts.attention_backend, facts.max_length, facts.device, facts.device_name) == ("eager", 32, "cpu", "cpu")


def test_a_path_in_the_home_folder_is_loaded(llama: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(llama.parent))
    assert start(f"~/{llama.name}").facts.fingerprint == contents.fingerprint(llama)


def test_a_closed_engine_holds_no_model(llama: Path, start: Start) -> None:
    engine = start(llama)
    engine.close()
    assert not hasattr(engine, "model")
    assert not hasattr(engine, "head")


def test_the_stored_type_of_a_model_that_nests_its_text_config(start: Start, tmp_path: Path) -> None:
    """Gemma 3 and Llama 4 state their dtype once, outside text_config."""
    text = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text | heads, vision_config=vision | {"image_size": 28, "patch_size": 14}
    )
    transformers.Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    assert stored["dtype"] == "bfloat16"
    stored["text_config"].pop("dtype", None)
    file.write_text(json.dumps(stored))
    facts = start(tmp_path).facts
    assert (facts.dtype, facts.precision, facts.vocabulary, facts.max_length) == ("bfloat16", "bf16", 99, 32)


def test_the_context_length_is_read_under_its_old_name_too(checkpoint_of: Callable[[str], Path], start: Start) -> None:
    assert start(checkpoint_of("gpt2")).facts.max_length == 64


@pytest.mark.parametrize(
    ("bounds", "rows", "tokens"),
    [
        ({}, None, 4096),
        ({"batch_size": 3}, 3, None),
        ({"options": {"max_tokens_per_batch": 50}}, None, 50),
        ({"batch_size": 3, "options": {"max_tokens_per_batch": 50}}, 3, 50),
    ],
)
def test_tokens_in_a_batch_are_bounded_unless_its_rows_are(
    llama: Path, start: Start, bounds: dict[str, Any], rows: int | None, tokens: int | None
) -> None:
    engine = start(llama, device="cpu", **bounds)
    assert (engine.max_rows, engine.max_tokens) == (rows, tokens)
