"""What the Transformers engine refuses, in one sentence and before it scores anything."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError

Spoil = Callable[[Path], Path]


@pytest.fixture
def spoil(tmp_path: Path) -> Spoil:
    """A copy of a checkpoint to be damaged."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "checkpoint"))


def refusal(folder: Path | str, **settings: Any) -> str:
    with pytest.raises(UsageError) as refused:
        registry.load("transformers", EngineSettings(checkpoint=str(folder), **settings), None)
    sentence = str(refused.value)
    assert sentence
    assert "\n" not in sentence
    return sentence


def change_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"options": {"max_tokens_per_batch": 64, "peft": "adapter"}}, "knows no argument 'peft'"),
        ({"options": {"max_tokens_per_batch": "many"}}, "max_tokens_per_batch"),
        ({"options": {"moe_backend": "nonsense"}}, "nonsense"),
        ({"options": {"attn_implementation": "nonsense"}}, "nonsense"),
        ({"max_length": 65}, "max_length=65 is outside this model's window. Give 1 to 64"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": -1}, "max_length=-1"),
        ({"dtype": "nonsense"}, "dtype=nonsense is not supported"),
        ({"dtype": "int8"}, "dtype=int8 is not supported"),
        ({"precision": "fp8"}, "runs bf16, fp16, fp32, not fp8"),
        ({"precision": "nonsense"}, "no precision 'nonsense'"),
        ({"precision": "bf16", "dtype": "float32"}, "precision=bf16 and dtype=float32 contradict each other"),
        ({"device": "nonsense"}, "no device 'nonsense'"),
    ],
)
def test_settings_that_make_no_sense(mixtral: Path, settings: dict[str, Any], says: str) -> None:
    assert says in refusal(mixtral, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:9"])
def test_a_gpu_that_is_not_there(llama: Path, device: str) -> None:
    assert "device" in refusal(llama, device=device)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="needs flash_attn to be absent")
def test_an_attention_implementation_whose_library_is_not_there(llama: Path) -> None:
    assert "FlashAttention2" in refusal(llama, options={"attn_implementation": "flash_attention_2"})


def test_paths_that_hold_no_checkpoint(tmp_path: Path) -> None:
    assert "There is no folder" in refusal(tmp_path / "nowhere")
    assert "holds no config.json" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")


@pytest.mark.parametrize("content", ["{", "", "[1]", "\x00"])
def test_a_config_that_is_not_a_json_object(llama: Path, spoil: Spoil, content: str) -> None:
    folder = spoil(llama)
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "no_such_model"},
        {"hidden_size": "wide"},
        {"hidden_act": "nonsense"},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"dtype": "nonsense"},
        {"dtype": "float8_e4m3fn"},
    ],
    ids=["model_type", "hidden_size", "hidden_act", "rope", "dtype", "dtype_fp8"],
)
def test_a_config_that_transformers_cannot_use(llama: Path, spoil: Spoil, fields: dict[str, Any]) -> None:
    folder = spoil(llama)
    change_config(folder, **fields)
    refusal(folder)


def test_a_quantised_checkpoint(llama: Path, spoil: Spoil) -> None:
    folder = spoil(llama)
    change_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert "is quantised (fp8 with blocks of [128, 128])" in refusal(folder)


def test_a_checkpoint_that_modelopt_quantised(llama: Path, spoil: Spoil) -> None:
    folder = spoil(llama)
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert "is quantised (modelopt NVFP4)" in refusal(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_a_missing_tensor_is_named(llama: Path, spoil: Spoil, name: str) -> None:
    folder = spoil(llama)
    change_weights(folder, lambda weights: weights.pop(name))
    assert f"lacks 1 of the model's weights, or has them in another shape ({name} is the first)" in refusal(folder)


@pytest.mark.parametrize("matrix", ["w1", "w2"])
def test_a_missing_expert(mixtral: Path, spoil: Spoil, matrix: str) -> None:
    """Transformers stacks the experts it finds; three instead of four must not pass for a smaller model."""
    folder = spoil(mixtral)
    change_weights(folder, lambda weights: weights.pop(f"model.layers.1.block_sparse_moe.experts.3.{matrix}.weight"))
    refusal(folder)


def test_a_tensor_of_the_wrong_shape_is_named(llama: Path, spoil: Spoil) -> None:
    folder = spoil(llama)
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(31)}))
    assert "model.norm.weight" in refusal(folder)


def test_no_weights_at_all(llama: Path, spoil: Spoil) -> None:
    folder = spoil(llama)
    (folder / "model.safetensors").unlink()
    refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_weights_that_are_cut_short(llama: Path, spoil: Spoil, keep: int) -> None:
    file = spoil(llama) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert re.search(r"model\.safetensors is corrupt or cut short", refusal(file.parent))


def test_weights_that_are_no_numbers(llama: Path, spoil: Spoil) -> None:
    folder = spoil(llama)
    change_weights(folder, lambda weights: weights["model.norm.weight"].fill_(torch.nan))
    refusal(folder)


@pytest.mark.parametrize(
    ("dtype", "change"),
    [
        ("float32", lambda logits: logits * 1.001),
        ("float32", lambda logits: logits + torch.arange(logits.shape[-1], device=logits.device) / 100),
        ("float32", lambda logits: logits[..., :-1]),
        ("bfloat16", lambda logits: logits * 1.5),
        ("bfloat16", lambda logits: logits * 0.9),
    ],
    ids=["scaled", "shifted", "cut", "bfloat16-scaled-much", "bfloat16-scaled-a-little"],
)
def test_a_model_that_changes_its_logits_in_its_own_way(
    llama: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    forward = transformers.LlamaForCausalLM.forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = change(out.logits)
        return out

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", changed)
    assert "LlamaForCausalLM changes its logits behind the output head" in refusal(llama, dtype=dtype)
