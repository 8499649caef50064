"""Weights that are made up, and 16-bit weights that become FP8 while they are loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from moe_eval.data.window import Window
from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.transformers import routing
from moe_eval.engines.vllm import observe, random_weights
from moe_eval.engines.vllm.engine import VllmEngine
from moe_eval.errors import UsageError
from tests.conftest import ROOT
from tests.engines.vllm.conftest import Load

RANDOM = {"weights": "random"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.input_layernorm.weight", "ones"),
        ("model.layers.0.self_attn.q_norm.weight", "ones"),
        ("model.norm.weight", "ones"),
        ("transformer.h.0.ln_1.weight", "ones"),
        ("model.layers.0.self_attn.qkv_proj.bias", "zeros"),
        ("model.layers.0.mlp.experts.w13_bias", "zeros"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "zeros"),
        ("model.layers.0.attn.sinks", "zeros"),
        ("model.layers.0.linear_attn.A_log", "zeros"),
        ("model.layers.0.mixer.A", "rate"),
        ("model.layers.0.linear_attn.dt_bias", "step"),
        ("model.layers.0.mixer.D", "ones"),
        ("model.layers.0.router.per_expert_scale", "ones"),
        ("model.layers.0.linear_attn.conv1d.weight", "normal"),
        ("model.layers.0.self_attn.kv_b_proj.weight", "normal"),
        ("model.layers.0.self_attn.indexer.k_norm.bias", "zeros"),
        ("model.layers.0.mlp.experts.w13_weight", "normal"),
        ("model.layers.0.mlp.gate.weight", "normal"),
        ("model.embed_tokens.weight", "normal"),
        ("lm_head.weight", "normal"),
    ],
)
def test_what_a_tensor_is_filled_with_follows_from_its_name(name: str, kind: str) -> None:
    assert random_weights.kind(name) == kind


def test_a_norm_that_adds_one_itself_gets_none() -> None:
    class GemmaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4))

    model = nn.Module()
    model.input_layernorm, model.q_norm = GemmaRMSNorm(), nn.RMSNorm(4)
    random_weights.fill_model(model, lambda _: False, lambda *_: None)
    assert model.input_layernorm.weight.tolist() == [0] * 4
    assert model.q_norm.weight.tolist() == [1] * 4


SMALL = json.loads((ROOT / "tests/checkpoint/small_configs.json").read_text())


@pytest.mark.parametrize(("kind", "settings"), [row for row in SMALL if row[0] not in ("minimax_m3_vl", "deepseek_v4")])
def test_every_tensor_of_other_shapes_is_filled_and_the_load_is_spread(kind: str, settings: dict[str, Any]) -> None:
    """On Transformers' classes, whose tensors have the names that vLLM's have or those that it joins."""
    config = AutoConfig.for_model(kind, **{**settings, "vocab_size": 96})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    buffers = dict(AutoModelForCausalLM.from_config(config).named_buffers())
    model = model.to_empty(device="cpu").eval()
    for tensor in model.parameters():
        tensor.data.fill_(torch.nan)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.tie_weights()
    random_weights.fill_model(model, lambda _: False, lambda *_: None)
    random_weights.check(json.loads(config.to_json_string()), 1)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 90)[None], use_cache=False).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    chosen = routing.experts(model, list(range(1, 90)))
    load = torch.stack([torch.bincount(layer.flatten().int(), minlength=6) for layer in chosen.unbind(1)])
    assert load.sum(dim=1).tolist() == [2 * 89] * len(load)
    used = (load > 0).sum(dim=1).float().mean()
    assert used >= 4, "of 6 experts"


@pytest.mark.parametrize(
    ("config", "ranks", "sentence"),
    [
        ({"model_type": "deepseek_v4", "n_routed_experts": 8}, 1, "the tensors that vLLM has for the model type deeps"),
        ({"model_type": "of the future", "num_experts": 8}, 1, "the tensors that vLLM has for the model type of the f"),
        ({"text_config": {"model_type": "nested", "num_experts": 8}}, 1, "for the model type nested"),
        (dict(reversed(SMALL))["qwen3_next"] | {"model_type": "qwen3_next"}, 2, "how vLLM cuts the recurrent layers"),
    ],
)
def test_tensors_that_are_not_known_are_refused(config: dict[str, Any], ranks: int, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        random_weights.check(config, ranks)
    assert "\n" not in str(refused.value)


def test_models_without_experts_and_states_on_one_gpu_are_not_refused() -> None:
    random_weights.check({"model_type": "llama"}, 8)
    random_weights.check(dict(SMALL)["qwen3_next"] | {"model_type": "qwen3_next"}, 1)


def test_every_name_has_a_seed_of_its_own() -> None:
    names = [f"model.layers.{layer}.{part}" for layer in range(100) for part in ("mlp.gate.weight", "norm.weight")]
    assert len({random_weights.seed(name) for name in names}) == len(names)
    assert random_weights.seed("lm_head.weight") == random_weights.seed("lm_head.weight") < 2**63


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_are_normal_and_differ_from_tensor_to_tensor(dtype: torch.dtype) -> None:
    tensors = {name: torch.empty(64, 512, dtype=dtype) for name in ("a.weight", "b.weight")}
    for name, tensor in tensors.items():
        assert random_weights.fill(name, tensor)
        assert abs(tensor.float().mean().item()) < 5 * 0.02 / 181
        assert abs(tensor.float().std().item() / 0.02 - 1) < 0.02
    both = torch.stack([each.flatten().float() for each in tensors.values()])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 0.03
    again = torch.empty(64, 512, dtype=dtype)
    random_weights.fill("a.weight", again)
    assert torch.equal(again, tensors["a.weight"])


def test_what_is_no_number_or_has_no_memory_is_left() -> None:
    whole = torch.arange(3)
    assert not random_weights.fill("a.weight", whole)
    assert whole.tolist() == [0, 1, 2]
    assert not random_weights.fill("a.weight", torch.empty(2, device="meta"))
    with pytest.raises(UsageError, match="quantised already"):
        random_weights.fill("a.weight", torch.zeros(2, dtype=torch.float8_e4m3fn))


def _tied() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(8, 4)
    model.norm = nn.LayerNorm(4)
    model.register_buffer("cos_sin_cache", torch.ones(3))
    model.head = nn.Linear(4, 8, bias=False)
    model.head.weight = model.embed.weight
    return model


def test_a_shared_tensor_is_filled_once_and_buffers_keep_their_values() -> None:
    model = _tied()
    random_weights.fill_model(model, lambda _: False, lambda *_: None)
    expected = torch.empty(8, 4)
    random_weights.fill("embed.weight", expected)
    assert torch.equal(model.head.weight, expected)
    assert model.norm.weight.tolist() == [1] * 4
    assert model.norm.bias.tolist() == [0] * 4
    assert model.cos_sin_cache.tolist() == [1] * 3


def test_weights_that_are_quantised_while_loading_are_filled_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, device="meta"))
    seen: list[torch.Tensor] = []

    def quantise(module: nn.Module, put: Callable[[], None]) -> None:
        module.to_empty(device="cpu")
        put()
        seen.append(module.weight.detach().clone())
        module.weight = nn.Parameter(module.weight.data.to(torch.float8_e4m3fn), requires_grad=False)

    random_weights.fill_model(model, lambda module: module is model[1], quantise)
    expected = torch.empty(2, 4)
    random_weights.fill("1.weight", expected)
    assert torch.equal(seen[0], expected)


def test_memory_that_comes_again_does_not_hide_a_tensor() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False, device="meta") for _ in range(50)))
    drawn: list[float] = []

    def quantise(module: nn.Module, put: Callable[[], None]) -> None:
        module.weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        put()
        drawn.append(module.weight.abs().sum().item())
        module.weight = nn.Parameter(module.weight.data.to(torch.float8_e4m3fn), requires_grad=False)

    random_weights.fill_model(model, lambda module: isinstance(module, nn.Linear), quantise)
    assert len(set(drawn)) == 50
    assert min(drawn) > 0


def test_a_tensor_that_is_left_unfilled_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, device="meta"))
    with pytest.raises(UsageError, match=r"left 2 tensors of this model unfilled \(1.bias is the first\)"):
        random_weights.fill_model(model, lambda _: False, lambda *_: None)


def _weights(engine: VllmEngine) -> dict[str, torch.Tensor]:
    return dict(observe.model(engine.session.llm).named_parameters())


def test_precisions_start_from_the_same_values_and_the_router_is_left(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        plain = load(dtype="auto", options=RANDOM)
    assert "the weights are random" in caplog.text
    assert (plain.facts.weights, plain.facts.fingerprint) == ("random", "random weights (weights=random)")
    weights = _weights(plain)
    experts = "model.layers.3.mlp.experts.w2_weight"
    for precision, algo in (("fp8", "FP8 per tensor"), ("fp8_block", "FP8 in blocks of 128x128")):
        engine = load(dtype="auto", precision=precision, options=RANDOM)
        facts, quantised = engine.facts, _weights(engine)
        assert facts.precision == precision
        assert facts.quant_algo == f"{algo}, quantised by vLLM while loading, dynamic activations"
        assert quantised[experts].dtype == torch.float8_e4m3fn
        gate = "model.layers.3.mlp.gate.weight"
        assert torch.equal(quantised[gate], weights[gate])
        scales = quantised[f"{experts}_scale"]
        value = quantised[experts].float()[:, :128, :96] * scales[:, :1, :1]
        difference = (value - weights[experts].float()[:, :128, :96]).abs().max()
        assert 0 < difference < 0.01
        assert facts.weight_bytes is not None
        assert plain.facts.weight_bytes is not None
        assert 0.5 <= facts.weight_bytes["experts"] / plain.facts.weight_bytes["experts"] < 0.51


def test_a_spawned_worker_has_the_weights_of_one_in_this_process(load: Load) -> None:
    window = [Window((5, 6), (7, 8, 9))]
    engines = [load(dtype="auto", options={**RANDOM, "worker": worker}) for worker in ("in_process", "spawned")]
    assert engines[1].facts.worker == "spawned"
    first, second = (engine.score(window)[0].logprobs for engine in engines)
    assert np.array_equal(first, second)
    assert first.std() > 0


def test_a_folder_with_only_a_configuration_suffices(load: Load, spoil: Callable[..., Path], tokenizer: Any) -> None:
    folder = spoil(num_experts=32)
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    engine = load(folder, options={**RANDOM, "enable_return_routed_experts": True, "enforce_eager": True})
    chosen = engine.routing([[token] for token in range(100, 116)], 3)
    # one token of each of 16 sequences, in every layer: independent draws give 32 x (1 - (1 - 4/32) ** 16) = 28.2
    distinct = [len(np.unique([each[1, layer] for each in chosen])) for layer in range(5)]
    assert np.mean(distinct) > 0.8 * 32 * (1 - (1 - 4 / 32) ** 16)
    assert len(engine.generate([[5]], GenerationRequest(4, ignore_eos=True))[0].token_ids) == 4


def test_a_checkpoint_in_sixteen_bits_becomes_fp8(load: Load) -> None:
    plain, engine = load(dtype="auto"), load(dtype="auto", precision="fp8")
    assert (engine.facts.weights, engine.facts.fingerprint) == ("checkpoint", plain.facts.fingerprint)
    assert engine.facts.moe_backend_observed == "Fp8PerTensorOnlineMoEMethod/TRITON"
    assert engine.facts.arguments["quantization"] == "fp8_per_tensor"
    prompt = [list(range(40, 60))]
    found = [each.generate(prompt, GenerationRequest(4, ignore_eos=True))[0].token_ids for each in (plain, engine)]
    assert found[0][0] == found[1][0]


def test_kernels_that_only_unpack_weights_are_another_precision(load: Load) -> None:
    facts = load(dtype="auto", precision="fp8", options={"moe_backend": "marlin"}).facts
    assert (facts.precision, facts.moe_backend_observed) == ("fp8-w8a16", "Fp8PerTensorOnlineMoEMethod/MARLIN")


def test_a_version_that_loads_otherwise_is_told(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.model_executor.layers.quantization as quantisations
    from vllm.model_executor.model_loader.reload import meta

    monkeypatch.setattr(quantisations, "QUANTIZATION_METHODS", ["fp8"])
    with pytest.raises(UsageError, match="does not quantise to fp8_block while it loads"):
        load(dtype="auto", precision="fp8_block")
    monkeypatch.delattr(meta, "materialize_layer")
    with pytest.raises(UsageError, match="in a way that weights=random does not know"):
        load(options=RANDOM)
