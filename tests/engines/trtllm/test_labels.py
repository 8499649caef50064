"""The labels that a speed is judged by, and the size of the key-value cache, on the doubles."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_eval.checkpoint import contents
from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.trtllm import observe
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from tests.conftest import SHIPPED
from tests.engines.conftest import check, window
from tests.engines.trtllm.conftest import ALL, EVERY, NEWEST, Distribution, Load

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, None)


def stored() -> dict[str, int]:
    """Numbers of every tensor of the shipped checkpoint, read from the header of its file."""
    with (SHIPPED / "model.safetensors").open("rb") as content:
        header = json.loads(content.read(struct.unpack("<Q", content.read(8))[0]))
    return {name: prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


@EVERY
def test_an_unquantised_checkpoint_without_a_gpu(engine: TrtllmEngine) -> None:
    facts, numbers = engine.facts, stored()
    assert (facts.quant_algo, facts.weights, facts.gpus, facts.worker) == ("none", "checkpoint", 0, "in_process")
    assert facts.fingerprint == contents.fingerprint(SHIPPED)
    assert facts.max_batch == engine.session.llm.args.max_batch_size
    experts = sum(count for name, count in numbers.items() if ".experts." in name)
    expected = {
        "experts": experts,
        "embedding": 0,
        "encoders": 0,
        "other": sum(numbers.values()) - experts,
    }  # the head is tied
    assert facts.weight_bytes == {part: 4 * count for part, count in expected.items()}, "loaded in float32"


@NEWEST
def test_the_cache_tells_its_tokens_in_this_process_and_where_one_window_has_them_all(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(options={"kv_cache_max_tokens": 1000, "kv_cache_tokens_per_block": 32})
    assert engine.facts.kv_cache_tokens == 31 * 32, "whole blocks"
    llm = engine.session.llm
    manager = llm._executor.engine.kv_cache_manager
    statistics = manager.get_kv_cache_stats()
    statistics.num_free_blocks_per_window_size = {128: 10, 4096: 21}
    monkeypatch.setattr(manager, "get_kv_cache_stats", lambda: statistics)
    assert observe.kv_cache_tokens(llm) is None, "blocks of several windows do not add up to tokens"
    monkeypatch.delattr(statistics, "max_num_blocks")
    observer = observe.Observer()
    assert observer.label("kv_cache_tokens", observe.kv_cache_tokens, llm) is None
    assert observer.failures == [
        "kv_cache_tokens: AttributeError: 'types.SimpleNamespace' object has no attribute 'max_num_blocks'"
    ]
    monkeypatch.setattr(llm._executor.engine, "kv_cache_manager", type("MambaHybridCacheManager", (), {})())
    assert observe.kv_cache_tokens(llm) is None
    assert observe.kv_cache_tokens(SimpleNamespace(_executor=object())) is None, "in another process"


@NEWEST
@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({"batch_size": 3}, 3),
        ({"batch_size": 3, "options": {"max_batch_size": "5"}}, 5),
        ({"options": {"max_batch_size": 7}}, 7),
    ],
)
def test_the_most_sequences_in_a_step(load: Load, given: dict[str, Any], most: int) -> None:
    engine = load(**given)
    assert engine.facts.max_batch == most == engine.session.llm.args.max_batch_size


@NEWEST
@pytest.mark.parametrize(
    ("options", "sizes", "padding"),
    [
        ({"cuda_graph_batch_sizes": "1:2:8"}, (1, 2), False),
        ({"cuda_graph_batch_sizes": "1:2:8", "cuda_graph_enable_padding": True}, (1, 2, 3), True),
        ({"cuda_graph_batch_sizes": "2:1", "cuda_graph_enable_padding": True}, (1, 2), True),
        ({"cuda_graph_batch_sizes": "none"}, (), None),
    ],
)
def test_graphs_beyond_the_largest_batch_are_never_recorded(
    load: Load, options: dict[str, Any], sizes: tuple[int, ...], padding: bool | None
) -> None:
    facts = load(batch_size=3, options=options).facts
    assert (facts.cuda_graph_batch_sizes, facts.cuda_graph_padding) == (sizes, padding)


@NEWEST
def test_arms_of_one_comparison_read_as_many_tokens_a_step(load: Load, gpus: Callable[..., None]) -> None:
    """What the heaviest arm leaves of the memory decides, whichever arm is loaded."""
    gpus(H100)
    alone = load().facts.max_step_tokens
    assert load(heaviest_bytes=1 << 30).facts.max_step_tokens == alone
    assert load(heaviest_bytes=79 << 30).facts.max_step_tokens != alone


@EVERY
def test_a_cache_of_so_many_tokens(load: Load) -> None:
    cache = load(kv_tokens=1234).session.llm.args.kv_cache_config
    assert cache.max_tokens == 1234
    assert cache.enable_block_reuse is False


@NEWEST
def test_a_cache_that_nobody_bounds_and_one_that_the_user_does(load: Load) -> None:
    assert load().session.llm.args.kv_cache_config.max_tokens is None
    asked = load(kv_tokens=1234, options={"kv_cache_max_tokens": "4321"})
    assert asked.session.llm.args.kv_cache_config.max_tokens == 4321


@NEWEST
def test_dummy_weights_are_labelled_as_random(load: Load) -> None:
    facts = load(options={"load_format": "dummy"}).facts
    assert facts.weights == "random"
    assert facts.fingerprint != contents.fingerprint(SHIPPED)
    assert "random" in facts.fingerprint
    assert facts.weight_bytes is not None
    assert sum(facts.weight_bytes.values()) == 4 * sum(stored().values()), "as many as the checkpoint has"


@NEWEST
@pytest.mark.parametrize(
    ("quantisation", "algo", "precision"),
    [
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "modelopt FP8", "fp8"),
        ({"quant_algo": "NVFP4"}, "modelopt NVFP4", "nvfp4"),
    ],
)
def test_the_algorithm_of_a_quantised_checkpoint(
    load: Load, spoil: Callable[..., Path], quantisation: dict[str, str], algo: str, precision: str
) -> None:
    folder = spoil(files={"hf_quant_config.json": {"quantization": quantisation}})
    facts = load(folder, dtype="auto").facts
    assert (facts.quant_algo, facts.precision, facts.emulated) == (algo, precision, False)


@NEWEST
def test_one_gpu_of_several(load: Load, gpus: Callable[..., None]) -> None:
    gpus(H100, H100, H100)
    facts = load().facts
    assert (facts.gpus, facts.device_name, facts.worker) == (1, H100.name, "in_process")


@NEWEST
def test_two_gpus_in_workers_whose_weights_are_not_seen(load: Load, gpus: Callable[..., None]) -> None:
    gpus(H100, H100, H100)
    facts = load(options={"tensor_parallel_size": "2"}).facts
    assert (facts.gpus, facts.device_name, facts.worker) == (2, f"2 x {H100.name}", "spawned")
    assert (facts.weight_bytes, facts.weights) == (None, "checkpoint")


@NEWEST
def test_routing_is_refused_in_a_sentence(engine: TrtllmEngine) -> None:
    with pytest.raises(UsageError, match="TensorRT-LLM does not report") as refused:
        engine.routing([[1, 2, 3]], 2)
    assert "\n" not in str(refused.value)


@ALL
def test_the_experts_are_found_wherever_the_model_has_them(load: Load, version: str) -> None:
    facts = load().facts
    assert facts.moe_backend_observed == ("TrtllmCutlassFusedMoeImpl" if version >= "1.4" else "CutlassFusedMoE")
    assert facts.weight_bytes is not None
    assert (facts.unobserved, facts.moe_degraded_from) == ((), None)


ROW4 = pytest.mark.parametrize("version", ["1.4.0rc4"], indirect=True, scope="session")


@ROW4
def test_a_backend_that_was_not_honoured_and_the_tactic(load: Load) -> None:
    facts = load(options={"moe_backend": "DEEPGEMM", "moe_tactic": "fused"}).facts
    assert facts.moe_degraded_from == "DEEPGEMM: serves FP8 block scales only"
    assert (facts.moe_backend_requested, facts.moe_tactic) == ("DEEPGEMM", "fused")
    assert facts.arguments["moe_config"] == {"backend": "DEEPGEMM", "tactic": "fused"}


@ROW4
def test_a_label_that_cannot_be_read_ends_nothing(
    load: Load, oracle: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "no_labels")
    engine = load(options={"cuda_graph_batch_sizes": "1:2"})
    facts = engine.facts
    assert (facts.moe_backend_observed, facts.weight_bytes, facts.cuda_graph_batch_sizes) == (None, None, None)
    assert {line.partition(":")[0] for line in facts.unobserved} >= {
        "moe_backend_observed",
        "weight_bytes",
        "cuda_graph_batch_sizes",
    }
    some = [window(1, 30, 30)]
    check(oracle, some, engine.score(some))
    (completion,) = engine.generate([[5, 6, 7]], GenerationRequest(3, ignore_eos=True, timed=True))
    assert completion.times is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "[TRT-LLM] [W] TRTLLMGenFusedMoE only supports fp8_block_scales. Using CutlassFusedMoE instead.",
            "TRTLLMGenFusedMoE only supports fp8_block_scales. Using CutlassFusedMoE instead.",
        ),
        (
            "[TRT-LLM] [W] MoE backend DEEPGEMM cannot serve this layer (SM90), running CUTLASS instead",
            "MoE backend DEEPGEMM cannot serve this layer (SM90), running CUTLASS instead",
        ),
        ("[TRT-LLM] [I] Using CUDA graphs", None),
    ],
)
def test_why_a_spawned_worker_runs_another_backend_is_in_what_it_prints(line: str, reason: str | None) -> None:
    output = WorkerOutput()
    with output.captured():
        os.write(2, f"before\n{line}\nafter\n".encode())
    assert observe.moe_degraded_from(SimpleNamespace(), output) == reason
