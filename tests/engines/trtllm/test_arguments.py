"""What the user set reaches the constructor of every version, or is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.engines.trtllm import sizing
from moe_eval.errors import UsageError
from tests.engines.trtllm.conftest import EVERY, OLDEST, Load

Events = Callable[[str], list[dict[str, Any]]]

EVERYTHING = {
    "tensor_parallel_size": "1",
    "moe_expert_parallel_size": "1",
    "max_batch_size": "4",
    "max_num_tokens": "512",
    "max_seq_len": "256",
    "attn_backend": "FLASHINFER",
    "load_format": "auto",
    "enable_chunked_prefill": "true",
    "disable_overlap_scheduler": "true",
    "model_kwargs": '{"rope_theta": 20000.0}',
    "moe_backend": "vanilla",
    "moe_max_num_tokens": "128",
    "moe_disable_finalize_fusion": "true",
    "kv_cache_free_gpu_memory_fraction": "0.25",
    "kv_cache_dtype": "FP8",
    "kv_cache_tokens_per_block": "64",
    "cuda_graph_batch_sizes": "1:8:32",
    "cuda_graph_enable_padding": "true",
    "worker": "in_process",
    "disable_fusion": "on",
}


def test_every_documented_setting_reaches_the_constructor(load: Load, events: Events) -> None:
    engine = load(options=EVERYTHING)
    args, facts = engine.session.llm.args, engine.facts
    assert (args.tensor_parallel_size, args.moe_expert_parallel_size) == (1, 1)
    assert (args.max_batch_size, args.max_num_tokens, args.max_seq_len) == (4, 512, 256)
    assert (args.attn_backend, args.load_format.value) == ("FLASHINFER", "auto")
    assert (args.enable_chunked_prefill, args.disable_overlap_scheduler) == (True, True)
    assert args.model_kwargs == {"rope_theta": 20000.0}
    moe, cache, graph = args.moe_config, args.kv_cache_config, args.cuda_graph_config
    assert (moe.backend, moe.max_num_tokens, moe.disable_finalize_fusion) == ("VANILLA", 128, True)
    assert (cache.free_gpu_memory_fraction, cache.dtype, cache.tokens_per_block) == (0.25, "fp8", 64)
    assert cache.enable_block_reuse is False
    assert (graph.batch_sizes, graph.enable_padding) == ([1, 8, 32], True)
    assert events("import")[0]["env"]["TRTLLM_QWEN3_EAGER_FUSION_DISABLED"] == "1", "set before the import"
    assert events("import")[0]["env"]["TLLM_WORKER_USE_SINGLE_PROCESS"] == "1"
    assert not {"worker", "disable_fusion", "moe_backend"} & set(events("construct")[0]["kwargs"])
    assert facts.max_length == 254
    assert (facts.cuda_graph_batch_sizes, facts.cuda_graph_padding) == ((1, 4), True), "no batch is larger than 4"
    assert (facts.kv_cache_dtype, facts.attention_backend, facts.worker) == ("fp8", "FLASHINFER", "in_process")
    assert (facts.moe_backend_requested, facts.moe_backend_observed) == ("vanilla", "VanillaMoE")
    assert facts.arguments["disable_fusion"] is True
    assert facts.arguments["kv_cache_config"]["enable_block_reuse"] is False


def test_what_nobody_set(load: Load, events: Events) -> None:
    engine = load(options={"moe_backend": "AUTO", "cuda_graph_batch_sizes": "none"})
    given = events("construct")[0]["kwargs"]
    assert "moe_config" not in given, "AUTO is no literal of 1.2.0"
    assert given["cuda_graph_config"] is None
    assert engine.facts.cuda_graph_batch_sizes == ()
    assert engine.facts.moe_backend_requested == "AUTO"
    assert engine.session.llm.args.kv_cache_config.free_gpu_memory_fraction == 0.5
    assert engine.session.llm.args.tensor_parallel_size == 1
    assert engine.facts.arguments["disable_fusion"] is False
    assert "TRTLLM_QWEN3_EAGER_FUSION_DISABLED" not in events("import")[0]["env"]


def test_batch_size_of_the_harness(load: Load) -> None:
    assert load(batch_size=3).session.llm.args.max_batch_size == 3
    assert load(batch_size=3, options={"max_batch_size": 5}).session.llm.args.max_batch_size == 5


@EVERY
@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"nonsense_of_mine": "1"}, "has no setting nonsense_of_mine. Omit it"),
        ({"tensor_paralel_size": "1"}, "Did you mean tensor_parallel_size?"),
        ({"tp_size": "1"}, "Did you mean tensor_parallel_size?"),
        ({"gpu_memory_utilization": "0.9"}, "Did you mean kv_cache_free_gpu_memory_fraction?"),
        ({"max_model_len": "64"}, "Did you mean max_seq_len?"),
        ({"kv_cache_dtyp": "auto"}, "Did you mean kv_cache_dtype?"),
        ({"use_cuda_graph": "true"}, "Did you mean cuda_graph_batch_sizes?"),
        ({"quant_config": "fp8"}, "has no setting quant_config"),
        ({"kv_cache_config": "{}"}, "kv_cache_free_gpu_memory_fraction"),
        ({"moe_config": "{}"}, "moe_backend"),
        ({"speculative_config": "{}"}, "no context logits with speculative decoding"),
        ({"num_postprocess_workers": "2"}, "drops the logits"),
        ({"max_beam_width": "2"}, "Beam search is not supported"),
        ({"gather_generation_logits": "true"}, "worker=in_process"),
        ({"model": "other"}, "pretrained"),
        ({"backend": "tensorrt"}, "engine"),
        ({"tensor_parallel_size": "abc"}, "tensor_parallel_size=abc"),
        ({"tensor_parallel_size": "0"}, "tensor_parallel_size=0"),
        ({"kv_cache_free_gpu_memory_fraction": "2"}, "kv_cache_free_gpu_memory_fraction=2"),
        ({"kv_cache_dtype": "foo"}, "kv_cache_dtype=foo"),
        ({"kv_cache_tokens_per_block": "many"}, "kv_cache_tokens_per_block=many"),
        ({"cuda_graph_batch_sizes": "x"}, "cuda_graph_batch_sizes=x"),
        ({"cuda_graph_batch_sizes": "0:8"}, "Write a list as 1:8:32"),
        ({"cuda_graph_enable_padding": "maybe"}, "cuda_graph_enable_padding=maybe"),
        ({"moe_max_num_tokens": "x"}, "moe_max_num_tokens=x"),
        ({"moe_backend": "nonsense"}, "moe_backend"),
        ({"moe_backend": "CUTLAS"}, "moe_backend"),
        ({"max_batch_size": "many"}, "max_batch_size=many"),
        ({"max_num_tokens": "many"}, "max_num_tokens=many"),
        ({"max_seq_len": "-5"}, "max_seq_len=-5"),
        ({"max_seq_len": "2"}, "max_seq_len=2"),
        ({"max_num_tokens": "2"}, "max_num_tokens=2"),
        ({"enable_chunked_prefill": "maybe"}, "enable_chunked_prefill=maybe"),
        ({"load_format": "nonsense"}, "load_format=nonsense"),
        ({"model_kwargs": "{broken"}, "model_kwargs={broken is not JSON"),
        ({"allreduce_strategy": "FAST"}, "allreduce_strategy=FAST"),
        ({"worker": "elsewhere"}, "worker=elsewhere"),
        ({"disable_fusion": "perhaps"}, "disable_fusion=perhaps"),
    ],
    ids=lambda value: "=".join(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_what_is_refused_before_anything_is_built(
    load: Load, events: Events, option: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        load(options=option)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert events("construct") == []


@pytest.mark.parametrize(
    ("option", "lacking"),
    [
        ({"env_overrides": '{"A": "1"}'}, {"1.2.0"}),
        ({"moe_backend": "WIDEEP"}, {"1.4.0rc1"}),
        ({"moe_backend": "DENSEGEMM"}, {"1.2.0", "1.3.0rc8"}),
        ({"disable_flashinfer_sampling": "true"}, {"1.2.0", "1.4.0rc1"}),
        ({"enable_energy_metrics": "true"}, {"1.2.0", "1.3.0rc8"}),
    ],
    ids=["env_overrides", "WIDEEP", "DENSEGEMM", "disable_flashinfer_sampling", "enable_energy_metrics"],
)
def test_what_some_versions_lack(
    load: Load, events: Events, version: str, option: dict[str, str], lacking: set[str]
) -> None:
    name, value = next(iter(option.items()))
    if version not in lacking:
        load(options=option)
        return
    with pytest.raises(UsageError, match=f"TensorRT-LLM {version} has no ") as refused:
        load(options=option)
    assert name in str(refused.value)
    if name == "moe_backend":
        assert value in str(refused.value)
        assert "Choose auto, CUTLASS" in str(refused.value)
    assert events("construct") == []


@OLDEST
def test_fusion_cannot_be_switched_off_after_the_import(load: Load) -> None:
    load()
    with pytest.raises(UsageError, match="imported before TRTLLM_QWEN3_EAGER_FUSION_DISABLED could be set"):
        load(options={"disable_fusion": "on"})


POSITIVE = st.integers(1, 10_000)
LEAST = 16  # the shortest window that the self-test can tell anything from


@given(
    positions=st.integers(1, 10_000),
    max_length=st.none() | st.integers(-1, 10_000),
    max_seq_len=st.none() | POSITIVE,
    max_num_tokens=st.none() | POSITIVE,
    chunked=st.booleans(),
    at_once=st.integers(512, 8192),
)
def test_the_window_fits_into_every_limit(
    *,
    positions: int,
    max_length: int | None,
    max_seq_len: int | None,
    max_num_tokens: int | None,
    chunked: bool,
    at_once: int,
) -> None:
    asked = {"max_seq_len": max_seq_len, "max_num_tokens": max_num_tokens, "enable_chunked_prefill": str(chunked)}
    options = {name: value for name, value in asked.items() if value is not None}
    longest = min(positions, max_seq_len or positions)
    fits = longest >= LEAST + 2 and (max_length is None or LEAST <= max_length <= longest - 2)
    if max_num_tokens is not None and not chunked:
        fits = fits and max_num_tokens >= (LEAST if max_length is None else max_length) + 2
    if not fits:
        with pytest.raises(UsageError):
            sizing.limits(options, max_length, positions, at_once)
        return
    found = sizing.limits(options, max_length, positions, at_once)
    assert LEAST <= found.window <= found.max_seq_len - 2
    assert found.max_seq_len <= positions
    assert chunked or found.window + 2 <= found.max_num_tokens
    assert max_length in (None, found.window)
    assert max_num_tokens in (None, found.max_num_tokens)
    assert max_seq_len is None or found.max_seq_len == longest
    if max_length is None:
        budget = longest if chunked else max_num_tokens or at_once
        assert found.window == min(longest, budget) - 2, "no shorter than need be"


@given(st.integers(100, 300_000), st.none() | st.integers(0, 200 << 30))
def test_logits_of_all_tokens_at_once_fit_into_half_of_the_free_memory(vocabulary: int, free: int | None) -> None:
    tokens = sizing.tokens_at_once(vocabulary, free)
    assert 512 <= tokens <= 8192
    assert tokens % 256 == 0
    if free is not None:
        row = 3 * 4 * vocabulary
        assert tokens == 512 or tokens * row <= free / 2
        assert tokens == 8192 or (tokens + 256) * row > free / 2, "no fewer than need be"


def test_free_memory_is_known_only_where_both_sizes_are() -> None:
    assert sizing.free_bytes(None, 5, 1) is sizing.free_bytes(5, None, 1) is None
    assert sizing.free_bytes(80 << 30, 60 << 30, 2) == (80 - 30 - 4) << 30
    assert sizing.free_bytes(24 << 30, 60 << 30, 1) == 0
