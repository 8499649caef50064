"""What the user set reaches vLLM's constructor, or is refused before anything is loaded."""

from __future__ import annotations

import enum
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_eval.checkpoint import contents
from moe_eval.engines.vllm import installed, observe, sizing
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from tests.conftest import ROOT, SHIPPED
from tests.engines.vllm.conftest import Load

H100 = Gpu("NVIDIA H100", "9.0", 80 << 30, None)
A100 = Gpu("NVIDIA A100", "8.0", 80 << 30, None)
EVERYTHING: dict[str, Any] = {
    "tensor_parallel_size": "1",
    "max_num_seqs": "4",
    "max_num_batched_tokens": 512,
    "max_model_len": "256",
    "gpu_memory_utilization": "0.5",
    "block_size": "32",
    "attention_backend": "triton_attn",
    "moe_backend": "FLASHINFER-CUTLASS",
    "kv_cache_dtype": "fp8",
    "enable_chunked_prefill": "true",
    "async_scheduling": "off",
    "cuda_graph_batch_sizes": "1:8:32",
    "limit_mm_per_prompt": '{"image": 0}',
    "hf_token": "hf_secret",
    "seed": 7,
    "worker": "in_process",
    "weights": "checkpoint",
}
SERVER_GRAPHS = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))


def test_every_documented_setting_reaches_the_constructor(load: Load) -> None:
    engine = load(options=EVERYTHING)
    config, facts = engine.session.llm.llm_engine.vllm_config, engine.facts
    assert vars(config.scheduler_config) == {"max_num_seqs": 4, "max_num_batched_tokens": 512}
    assert (config.cache_config.gpu_memory_utilization, config.cache_config.block_size) == (0.5, 32)
    assert config.cache_config.enable_prefix_caching is False
    assert config.kernel_config.moe_backend == "flashinfer_cutlass"
    assert facts.moe_backend_observed == "UnquantizedFusedMoEMethod/FLASHINFER_CUTLASS"
    assert (facts.attention_backend, facts.kv_cache_dtype, facts.cuda_graph_batch_sizes) == (
        *("TRITON_ATTN", "fp8"),
        (1, 8, 32),
    )
    assert (facts.max_length, facts.max_batch, facts.worker) == (254, 4, "in_process")
    assert facts.arguments["limit_mm_per_prompt"] == {"image": 0}
    assert (facts.arguments["enable_chunked_prefill"], facts.arguments["async_scheduling"]) == (True, False)
    assert "hf_secret" not in str(facts.arguments)
    assert not {"worker", "weights", "cuda_graph_batch_sizes"} & set(facts.arguments)


def test_with_nothing_set_the_labels_are_what_vllm_chose(load: Load) -> None:
    facts = load(dtype="auto").facts
    assert (facts.name, facts.version, facts.architecture, facts.vocabulary) == (
        *("vllm", "0.22.1", "Qwen3MoeForCausalLM"),
        4096,
    )
    assert (facts.precision, facts.dtype, facts.kv_cache_dtype, facts.quant_algo) == (
        *("bf16", "bfloat16", "bfloat16", "none"),
    )
    assert (facts.moe_backend_requested, facts.moe_backend_observed) == ("auto", "UnquantizedFusedMoEMethod/TRITON")
    assert (facts.cuda_graph_batch_sizes, facts.cuda_graph_padding) == (SERVER_GRAPHS, True)
    assert (facts.weights, facts.max_batch, facts.gpus, facts.device) == ("checkpoint", 256, 0, "cpu")
    experts = 5 * 16 * 3 * 96 * 192 * 2
    assert facts.weight_bytes is not None
    assert dict(facts.weight_bytes) == {
        "experts": experts,
        "embedding": 0,
        "encoders": 0,
        "other": facts.weight_bytes["other"],
    }
    assert 2 * 4096 * 192 < facts.weight_bytes["other"] < 3 * 4096 * 192 * 2
    assert facts.arguments["max_logprobs"] == -1


class FallbackExperts:
    """As vLLM calls experts that choose their kernels anew for every call."""


class TritonOrDeepGemmExperts(FallbackExperts):
    """One of them."""


class DeepGemmExperts:
    """Experts that always run the same."""


@pytest.mark.parametrize(
    ("experts", "named"),
    [
        (TritonOrDeepGemmExperts, "SimpleNamespace/DEEPGEMM/TritonOrDeepGemmExperts"),
        (DeepGemmExperts, "SimpleNamespace/DEEPGEMM"),
        (None, "SimpleNamespace/DEEPGEMM"),
    ],
)
def test_experts_that_choose_by_the_shape_of_a_call_are_named(experts: type | None, named: str) -> None:
    layer = SimpleNamespace(moe_config=1, local_num_experts=8, base_quant_method=None)
    layer.quant_method = SimpleNamespace(fp8_backend=enum.Enum("Fp8MoeBackend", "DEEPGEMM").DEEPGEMM)
    layer.quant_method.experts_cls = experts
    assert observe.moe_backend(SimpleNamespace(modules=lambda: [layer])) == named


@pytest.mark.parametrize("given", ["none", "off", "NONE"])
def test_graphs_are_turned_off_and_compilation_stays(load: Load, given: str) -> None:
    engine = load(options={"cuda_graph_batch_sizes": given, "compilation_config": '{"level": 3}'})
    assert engine.facts.cuda_graph_batch_sizes == ()
    assert engine.facts.arguments["compilation_config"] == {"level": 3, "cudagraph_mode": "NONE"}
    assert load(options={"enforce_eager": "true"}).facts.cuda_graph_batch_sizes == ()


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, SERVER_GRAPHS),
        ({"max_cudagraph_capture_size": 4}, (1, 2, 4)),
        ({"cuda_graph_batch_sizes": "1:8"}, (1, 8)),
        ({"compilation_config": '{"cudagraph_capture_sizes": [2]}'}, (2,)),
    ],
)
def test_a_batch_of_one_has_the_graphs_of_a_server(load: Load, options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert load(batch_size=1, options=options).facts.cuda_graph_batch_sizes == sizes


def test_a_spawned_worker_tells_what_one_in_this_process_tells(load: Load) -> None:
    engine = load(options={"worker": "spawned"})
    facts = engine.facts
    assert os.environ[installed.MULTIPROCESSING] == "1"
    assert facts.worker == "spawned"
    assert load().facts == replace(facts, worker="in_process")
    assert facts.moe_backend_observed == "UnquantizedFusedMoEMethod/TRITON"
    assert facts.weight_bytes is not None
    assert os.environ[installed.MULTIPROCESSING] == "0"
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"


def test_an_untied_head_leaves_an_embedding_of_which_only_rows_are_read(load: Load, spoil: Callable[..., Path]) -> None:
    folder = spoil(tie_word_embeddings=False)
    facts = load(folder, options={"weights": "random"}, dtype="bfloat16").facts
    assert facts.weight_bytes is not None
    assert facts.weight_bytes["embedding"] == 2 * 4096 * 192


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_modle_len": 5}, "Did you mean max_model_len?"),
        ({"tp": 2}, "Did you mean tensor_parallel_size?"),
        ({"attn_backend": "X"}, "Did you mean attention_backend?"),
        ({"zzz": 1}, "has no setting zzz. Omit it"),
        ({"_api_process_rank": 1}, "has no setting"),
        ({"quantization": "fp8"}, "Give precision=fp8 or precision=fp8_block"),
        ({"cudagraph_capture_sizes": "1:2"}, "Give cuda_graph_batch_sizes"),
        ({"speculative_config": "{}"}, "drafted tokens"),
        ({"logprobs_mode": "raw_logits"}, "raw log-probabilities"),
        ({"generation_config": "vllm"}, "greedy has to stay greedy"),
        ({"enable_prefix_caching": "true"}, "would skip the prefill of repeated prompts"),
        ({"moe_backend": "nothing"}, "moe_backend=nothing does not suit vLLM 0.22.1"),
        ({"moe_backend": "emulation"}, "computes in 16 bits"),
        ({"max_num_seqs": "many"}, "max_num_seqs=many is not a whole number"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype=int3 does not suit"),
        ({"compilation_config": "{3"}, "is not JSON"),
        ({"cuda_graph_batch_sizes": "1:x"}, "Write a list as 1:8:32"),
        ({"worker": "else"}, "Give worker=in_process or worker=spawned"),
        ({"weights": "none"}, "Give weights=checkpoint or weights=random"),
        ({"weights": "random", "load_format": "auto"}, "contradict each other"),
        ({"worker_extension_cls": "a.B"}, "Omit it"),
        ({"weights": "random", "tensor_parallel_size": 2}, "ask for 2 GPUs, and this machine has 0"),
        ({"worker": "in_process", "tensor_parallel_size": 2}, "is for one GPU, and the parallel sizes ask for 2"),
        ({"tensor_parallel_size": "two"}, "is not a whole number from 1"),
        ({"tensor_parallel_size": 2}, "ask for 2 GPUs, and this machine has 0"),
        ({"max_model_len": 10}, "leaves too small a window"),
        ({"max_model_len": 4096}, None),
        ({"moe_backend": "cutlass"}, "cannot load .*not supported for unquantized MoE"),
        ({"load_format": "none_such"}, "is not supported"),
    ],
)
def test_what_cannot_be_met_is_refused_in_a_sentence(load: Load, options: dict[str, Any], words: str | None) -> None:
    if words is None:  # cut down to what the model supports
        assert load(options=options).facts.max_length == 1022
        return
    with pytest.raises(UsageError, match=words.replace("?", r"\?")) as caught:
        load(options=options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "nvfp4"}, "is fp32, not precision=nvfp4. While it loads, vLLM quantises it to"),
        ({"precision": "nvfp4", "dtype": "auto"}, "is bf16, not precision=nvfp4. While it loads, vLLM quantises it to"),
        ({"precision": "fp8", "dtype": "float32"}, "Add dtype=bfloat16"),
        ({"precision": "fp16", "dtype": "bfloat16"}, "is bf16, not precision=fp16"),
        ({"dtype": "int8"}, "dtype=int8 is not supported"),
        ({"device": "cpu"}, "vLLM runs on NVIDIA GPUs only"),
        ({"max_length": 4}, "Give 16 to 1022"),
        ({"max_length": 1023}, "Give 16 to 1022"),
        ({"revision": "x", "folder": "/nowhere"}, "There is no folder"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(load: Load, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(given.pop("folder", SHIPPED), **given)


def test_a_quantised_checkpoint_is_not_quantised_again(load: Load, spoil: Callable[..., Path]) -> None:
    held = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    folder = spoil(quantization_config=held)
    with pytest.raises(UsageError, match=r"is fp8_block.* vLLM does not quantise it again, as it is fp8 with"):
        load(folder, precision="fp8", dtype="auto")
    with pytest.raises(UsageError, match="Give the configuration of the BF16 model with precision=fp8_block"):
        load(folder, options={"weights": "random"})


def test_a_precision_that_the_gpu_does_not_run_is_refused(load: Load, gpus: Callable[..., None]) -> None:
    gpus(A100)
    with pytest.raises(UsageError, match=r"vLLM cannot run .* in fp8 on NVIDIA A100: .*SM89 or newer"):
        load(precision="fp8", dtype="auto")


@pytest.mark.parametrize(
    ("knob", "worker", "words"),
    [
        ("oom_load", "in_process", "memory does not suffice for loading"),
        ("no_gpu", "in_process", "vLLM finds no NVIDIA GPU"),
        ("free=10", "in_process", "less than desired GPU memory utilization"),
        # only a line that its process has printed says so
        (
            "free=10",
            "spawned",
            r"hold a key-value cache for .*printed: ValueError: Free memory .* is less than desired",
        ),
    ],
)
def test_failures_while_loading_are_sentences(
    load: Load, monkeypatch: pytest.MonkeyPatch, knob: str, worker: str, words: str
) -> None:
    monkeypatch.setenv("VLLM_DOUBLE", knob)
    with pytest.raises(UsageError, match=words) as caught:
        load(options={"worker": worker})
    assert "\n" not in str(caught.value)


def test_a_cache_of_the_tokens_asked_for_starts_beside_another_process(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DOUBLE", "free=10")
    engine = load(kv_tokens=8 * 96, batch_size=8, max_length=96)
    cache = engine.session.llm.llm_engine.vllm_config.cache_config
    assert cache.gpu_memory_utilization == sizing.MIN_UTILIZATION
    assert cache.num_gpu_blocks == 8 * 6 + 8 + 2
    assert engine.facts.kv_cache_tokens == 16 * (8 * 6 + 8 + 2)
    assert engine.facts.arguments["kv_cache_memory_bytes"] == 58 * 16 * 5 * 2 * 2 * 32 * 4
    # one sequence of the longest length fits in any case
    assert load(kv_tokens=10, batch_size=1).session.llm.llm_engine.vllm_config.cache_config.num_gpu_blocks == 67


@pytest.mark.parametrize(
    ("cache", "model", "tokens"),
    [
        ({"num_gpu_blocks": 100, "block_size": 16}, {}, 1600),
        ({"num_gpu_blocks": 100, "block_size": 16, "kv_cache_size_tokens": 900}, {"is_hybrid": True}, 900),
        ({"num_gpu_blocks": 100, "block_size": 16}, {"is_hybrid": True}, None),
        ({"num_gpu_blocks": 100, "block_size": 16}, {"layer_types": ["sliding_attention", "full_attention"]}, None),
        ({"num_gpu_blocks": 100, "block_size": 16}, {"layer_types": ["full_attention"] * 2}, 1600),
        ({"num_gpu_blocks": None, "block_size": 16}, {}, None),
        ({}, {}, None),
    ],
)
def test_tokens_of_the_cache_are_vllm_s_count_or_that_of_blocks_of_one_kind(
    cache: dict[str, Any], model: dict[str, Any], tokens: int | None
) -> None:
    text = SimpleNamespace(layer_types=model.get("layer_types"))
    config = SimpleNamespace(hf_text_config=text, is_hybrid=model.get("is_hybrid", False))
    assert (
        observe.kv_cache_tokens(SimpleNamespace(cache_config=SimpleNamespace(**cache), model_config=config)) == tokens
    )


def test_the_cache_counts_what_the_model_and_the_settings_say() -> None:
    config = {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
    token = 2 * 48 * 4 * 128 * 2
    assert sizing.cache_bytes(config, {}, "bfloat16", 1000, 4) == (63 + 4 + 2) * 16 * token
    assert sizing.cache_bytes(config, {"block_size": 64}, "bfloat16", 1000, 4) == (16 + 4 + 2) * 64 * token
    assert sizing.cache_bytes(config, {"kv_cache_dtype": "fp8"}, "bfloat16", 1000, 4) == 69 * 16 * token // 2
    assert sizing.cache_bytes(config, {"tensor_parallel_size": 8}, "bfloat16", 1000, 4) == 69 * 16 * token // 4
    latent = config | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert sizing.cache_bytes(latent, {}, "bfloat16", 1000, 4) == (8 + 4 + 2) * 128 * 48 * (512 + 64) * 2
    assert sizing.cache_bytes(latent | {"index_topk": 2048}, {}, "bfloat16", 1000, 4) is None
    mixed = {"layer_types": ["full_attention", "sliding_attention"]}
    assert sizing.cache_bytes(config | mixed, {}, "bfloat16", 1000, 4) is None
    assert sizing.cache_bytes({"num_hidden_layers": 2}, {}, "bfloat16", 1000, 4) is None


@pytest.mark.parametrize("name", ["Qwen3-Next-80B-A3B", "Nemotron-3-Nano-30B-A3B", "Llama-4-Scout-17B-16E"])
def test_layers_that_cache_otherwise_are_left_to_vllm(name: str) -> None:
    published = json.loads((ROOT / "tests/checkpoint/published_configs.json").read_text())[name]
    config = contents.text_config(published)
    assert "layer_types" not in config, "it says so by other settings"
    assert sizing.cache_bytes(config, {}, "bfloat16", 1000, 4) is None


def test_memory_is_left_for_the_logits_of_a_window() -> None:
    assert sizing.memory(None, 151936, 2048) == {}
    assert sizing.memory(80 << 30, 151936, 2048) == {"gpu_memory_utilization": 0.884}
    # another program holds half of it, or next to nothing
    assert sizing.memory(80 << 30, 151936, 2048, 0.5) == {"gpu_memory_utilization": 0.434}
    assert sizing.memory(80 << 30, 151936, 2048, 0.01) == {"gpu_memory_utilization": 0.884}
    long = sizing.memory(80 << 30, 151936, 32768)
    assert long == {"gpu_memory_utilization": 0.82, "max_num_batched_tokens": 5632}


def test_a_gpu_is_named_and_its_memory_counted(load: Load, gpus: Callable[..., None]) -> None:
    gpus(H100)
    facts = load(max_length=64).facts
    assert (facts.gpus, facts.device, facts.device_name) == (1, "cuda", "NVIDIA H100")
    assert facts.arguments["gpu_memory_utilization"] == 0.92


def test_weights_that_vllm_makes_up_itself_are_warned_of(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        facts = load(options={"load_format": "dummy"}).facts
    assert (facts.weights, facts.fingerprint) == ("random", "random weights (load_format=dummy)")
    assert "all tokens go through the same experts" in caplog.text
