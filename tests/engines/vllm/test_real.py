"""The vLLM engine on the real library and a GPU; skipped, with the reason, wherever either is missing."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import moe_eval.engines.vllm.load as vllm_load
from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, GenerationRequest
from moe_eval.engines.vllm.engine import VllmEngine
from moe_eval.errors import UsageError
from tests.conftest import SAMPLE, SHIPPED


def _missing() -> str | None:
    """Why these tests cannot run here."""
    from importlib.util import find_spec

    found = find_spec("vllm")
    if found is None or found.origin is None:
        return "vllm is not installed"
    if "doubles" in found.origin:
        return "the vllm on the path is a double"
    return None if torch.cuda.is_available() else "there is no CUDA GPU"


pytestmark = pytest.mark.skipif(_missing() is not None, reason=f"real vLLM: {_missing()}")

# Triton kernels alone, no compilation and no graphs: an engine then starts in seconds
FAST: dict[str, Any] = {"moe_backend": "triton", "enforce_eager": True}
TELLING = {**FAST, "enable_return_routed_experts": True}
EXPERTS, TOP_K, LAYERS, VOCABULARY = 128, 8, 4, 151936
LARGE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "eos_token_id": 0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 4096,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}
PROMPT, NEW = 64, 9


@pytest.fixture(scope="module", autouse=True)
def _plain_sampler() -> Iterator[None]:
    """FlashInfer's sampler is compiled when it is first used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture
def load(tokenizer: Any) -> Iterator[Callable[..., VllmEngine]]:
    loaded: list[VllmEngine] = []

    def make(folder: Path, **given: Any) -> VllmEngine:
        loaded.append(vllm_load.load(EngineSettings(str(folder), **given), tokenizer))
        return loaded[-1]

    yield make
    for each in loaded:
        each.close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A configuration without weights, in the shape of Qwen3-30B-A3B with four layers."""
    (tmp_path / "config.json").write_text(json.dumps(LARGE), encoding="utf-8")
    return tmp_path


def _prompts(count: int, length: int = PROMPT) -> list[list[int]]:
    rows = torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(5))
    return [[int(token) for token in row] for row in rows]


@pytest.mark.parametrize("precision", [None, "fp8"])
def test_tokens_spread_over_the_experts_like_independent_draws(
    load: Callable[..., VllmEngine], large: Path, precision: str | None
) -> None:
    options = {**TELLING, "weights": "random"}
    engine = load(large, precision=precision, batch_size=32, kv_tokens=32 * 128, max_length=128, options=options)
    facts = engine.facts
    print(facts)
    assert (facts.worker, facts.weights, facts.gpus, facts.dtype) == ("in_process", "random", 1, "bfloat16")
    assert facts.moe_backend_observed is not None
    assert facts.moe_backend_observed.endswith("/TRITON")
    assert facts.precision == (precision or "bf16")
    assert (facts.quant_algo == "none") == (precision is None)
    bytes_each = LAYERS * EXPERTS * 3 * 768 * 2048
    assert facts.weight_bytes is not None
    assert facts.weight_bytes["experts"] == pytest.approx(bytes_each * (1 if precision else 2), rel=0.01)
    assert facts.weight_bytes["embedding"] == 2 * VOCABULARY * 2048
    for batch in (8, 32):
        chosen = engine.routing(_prompts(batch), NEW)
        assert {each.shape for each in chosen} == {(PROMPT + NEW - 1, LAYERS, TOP_K)}
        expected = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** batch)
        for layer in range(LAYERS):
            rows = [np.concatenate([each[step, layer] for each in chosen]) for step in range(PROMPT, PROMPT + NEW - 1)]
            distinct = float(np.mean([len(np.unique(row)) for row in rows]))
            print(f"{precision or 'bf16'} batch {batch} layer {layer}: {distinct:.1f} of {expected:.1f} expected")
            assert distinct == pytest.approx(expected, rel=0.1)


def test_one_seed_gives_one_model(load: Callable[..., VllmEngine], large: Path) -> None:
    """The same name has the same values in every arm: FP8 chooses mostly the same experts in the first layer."""
    chosen = []
    for precision in (None, "fp8"):
        options = {**TELLING, "weights": "random"}
        engine = load(large, precision=precision, batch_size=8, kv_tokens=1024, max_length=128, options=options)
        chosen.append(engine.routing(_prompts(4), 2))
        engine.close()
    same = [
        len(set(one[token, 0]) & set(other[token, 0])) / TOP_K
        for one, other in zip(*chosen, strict=True)
        for token in range(PROMPT)
    ]
    print(f"experts in common in layer 0: {np.mean(same):.3f}")
    assert np.mean(same) > 0.75


# the Triton experts multiply float32 in TF32, which has 10 bits of mantissa
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 5e-3), ("bfloat16", 0.06)])
def test_scores_are_those_of_transformers(
    load: Callable[..., VllmEngine], tokenizer: Any, dtype: str, allowed: float
) -> None:
    tokens = tokenizer.encode(SAMPLE.read_text(encoding="utf-8"), verbose=False)
    windows = [Window(tuple(tokens[at : at + 5]), tuple(tokens[at + 5 : at + 200])) for at in range(0, 2000, 200)]
    try:
        engine = load(SHIPPED, dtype=dtype, batch_size=8, max_length=256, kv_tokens=8 * 256, options=FAST)
    except UsageError as error:
        if dtype == "float32":
            pytest.skip(f"real vLLM: {error}")
        raise
    found = engine.score(windows, top_k=16)
    engine.close()
    reference = registry.load("transformers", EngineSettings(str(SHIPPED), dtype="float32", device="cuda"), tokenizer)
    expected = reference.score(windows, top_k=16)
    reference.close()
    far = np.concatenate([np.abs(a.logprobs - b.logprobs) for a, b in zip(found, expected, strict=True)])
    print(f"{dtype}: mean {far.mean():.2g}, largest {far.max():.2g} nats")
    assert far.mean() < allowed
    same = np.concatenate([(a.top_ids[:, 0] == b.top_ids[:, 0]) for a, b in zip(found, expected, strict=True)])
    assert same.mean() > 0.95
    for one in found:
        assert (np.diff(one.top_logprobs, axis=1) <= 0).all()
        assert (one.logprobs <= one.top_logprobs[:, 0] + 1e-6).all()


def test_completions_and_their_times(load: Callable[..., VllmEngine], tokenizer: Any) -> None:
    engine = load(SHIPPED, dtype="bfloat16", batch_size=4, max_length=256, kv_tokens=4 * 256, options=FAST)
    prompts = [tokenizer.encode(text) for text in ("The history of", "In", "He was born in", "A")]
    timed = engine.generate(prompts, GenerationRequest(24, ignore_eos=True, timed=True))
    assert [len(each.token_ids) for each in timed] == [24] * 4
    for each in timed:
        print(each.times)
        assert each.times is not None
        assert 0 <= each.times.scheduled <= each.times.first_token < each.times.last_token < 60
    streamed = engine.generate(prompts, GenerationRequest(24, ignore_eos=True))
    assert [each.token_ids for each in streamed] == [each.token_ids for each in timed]
    text = tokenizer.decode(timed[0].token_ids)
    stop = text[8:11]
    stopped = engine.generate(prompts[:1], GenerationRequest(24, stop=(stop,)))[0]
    assert stopped.finish_reason == "stop"
    assert stop in tokenizer.decode(stopped.token_ids)


def test_a_trace_holds_kernels(load: Callable[..., VllmEngine], tmp_path: Path) -> None:
    engine = load(SHIPPED, dtype="bfloat16", batch_size=4, max_length=256, kv_tokens=4 * 256, options=FAST)
    with engine.trace(tmp_path / "trace.json") as handle:
        engine.generate([[5, 6, 7]], GenerationRequest(4, ignore_eos=True))
    events = json.loads(handle.path.read_text())["traceEvents"]
    assert sum(event.get("cat") == "kernel" for event in events) > 10


def test_memory_is_given_back_and_a_second_arm_fits_beside_the_first(
    load: Callable[..., VllmEngine], large: Path, tmp_path: Path
) -> None:
    def used() -> float:
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30

    second = tmp_path / "second"
    second.mkdir()
    shutil.copy(large / "config.json", second)
    before = used()
    settings = {"batch_size": 8, "kv_tokens": 1024, "max_length": 128, "options": {**FAST, "weights": "random"}}
    engine = load(large, **settings)
    held = used() - before
    engine.close()
    left = used() - before
    print(f"held {held:.2f} GiB, {left:.2f} GiB after it was closed")
    assert held > 4
    assert left < 1.5
    # an allocation of another process would look the same to the start-up check
    total = torch.cuda.get_device_properties(0).total_memory
    other = torch.empty(int(total * 0.6), dtype=torch.uint8, device="cuda")
    again = load(second, **settings)
    assert len(again.generate(_prompts(2), GenerationRequest(4, ignore_eos=True))) == 2
    del other


def test_a_spawned_worker_answers(load: Callable[..., VllmEngine]) -> None:
    settings = {"batch_size": 4, "max_length": 256, "kv_tokens": 1024}
    engine = load(SHIPPED, dtype="bfloat16", options={**FAST, "worker": "spawned"}, **settings)
    assert engine.facts.worker == "spawned"
    found = engine.score([Window((5, 6), (7, 8, 9))])[0].logprobs
    engine.close()
    os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    here = load(SHIPPED, dtype="bfloat16", options=FAST, **settings).score([Window((5, 6), (7, 8, 9))])[0].logprobs
    np.testing.assert_allclose(found, here, atol=0.05)
