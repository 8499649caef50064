"""What an arm needs of a machine's memory, against the weights themselves and hand-made sums."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from moe_eval.data.workload import Shape, shapes
from moe_eval.engines.base import EngineSettings
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.fit import Need
from tests.conftest import ROOT, SHIPPED
from tests.doubles.nvml import ONE as ONE_GPU
from tests.doubles.nvml import Card, Fake

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30, None)
PUBLISHED = ROOT / "tests" / "checkpoint" / "published_configs.json"
QWEN3 = {**json.loads(PUBLISHED.read_text())["Qwen3-30B-A3B"], "torch_dtype": "bfloat16"}
QWEN3_BYTES = 61_064_245_248  # total_size of its model.safetensors.index.json
ONE = shapes([8], 512, 256)


def folder(path: Path, config: dict[str, Any], total: int | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if total is not None:
        index = {"metadata": {"total_size": total}, "weight_map": {}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def shipped_parameters() -> int:
    with safe_open(SHIPPED / "model.safetensors", framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize(("runs", "size"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_the_shipped_model_takes_its_parameters_in_the_type_it_runs_in(runs: str, size: int) -> None:
    need = fit.need(SHIPPED, runs, ONE, {}, gpu=False)
    assert need.weights == pytest.approx(size * shipped_parameters(), rel=0.005)  # a file has a header
    # 8 sequences of 768 tokens and a block of 64; 5 layers, keys and values of 2 heads of 32 each
    assert need.cache == 8 * (768 + 64) * 5 * 2 * 2 * 32 * size
    assert need.total == (need.weights or 0) + (need.cache or 0) + need.beside


@pytest.mark.parametrize("indexed", [True, False])
def test_qwen3_30b_takes_61_gb_whether_or_not_its_weights_are_there(tmp_path: Path, indexed: bool) -> None:
    here = folder(tmp_path, QWEN3, QWEN3_BYTES if indexed else None)
    need = fit.need(here, "bf16", ONE, {}, gpu=True)
    assert need.weights == pytest.approx(QWEN3_BYTES, rel=1e-3)
    assert need.cache == 8 * (768 + 64) * 48 * 2 * 4 * 128 * 2 == 654_311_424
    assert fit.too_large(need, fit.memory((H100,))) is None
    assert fit.too_large(fit.need(here, "fp32", ONE, {}, gpu=True), fit.memory((H100,))) is not None


@pytest.mark.parametrize(
    ("runs", "bytes_each"), [("fp8", 1.0), ("fp8_block", 1.0), ("fp8-w8a16", 1.0), ("nvfp4", 9 / 16)]
)
def test_quantised_while_loading_it_keeps_embedding_head_and_routers(
    tmp_path: Path, runs: str, bytes_each: float
) -> None:
    need = fit.need(folder(tmp_path, QWEN3, QWEN3_BYTES), runs, ONE, {}, gpu=True).weights
    experts = 48 * 128 * 3 * 2048 * 768
    attention = 48 * 2048 * 128 * (32 + 4 + 4 + 32)
    plain = 2 * 151936 * 2048 + 48 * 128 * 2048
    assert need == pytest.approx(bytes_each * (experts + attention) + 2 * plain, rel=1e-9)
    if runs == "fp8":
        assert 31e9 < need < 32e9


def test_a_quantised_checkpoint_takes_what_is_stored(tmp_path: Path) -> None:
    config = {**QWEN3, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert fit.need(folder(tmp_path, config, 31_000_000_123), "fp8_block", ONE, {}, gpu=True).weights == 31_000_000_123


@pytest.mark.parametrize(
    ("options", "width", "gpus", "heads"),
    [
        ({}, 2, 1, 4),
        ({"kv_cache_dtype": "auto"}, 2, 1, 4),
        ({"kv_cache_dtype": "fp8"}, 1, 1, 4),
        ({"kv_cache_dtype": "of the future"}, 2, 1, 4),
        ({"tensor_parallel_size": "2"}, 2, 2, 2),
        ({"tensor_parallel_size": 8}, 2, 8, 1),
        ({"tensor_parallel_size": 2, "context_parallel_size": 2}, 2, 4, 2),
        ({"tensor_parallel_size": 2, "prefill_context_parallel_size": 2}, 2, 4, 2),
    ],
)
def test_each_gpu_holds_its_share_of_weights_and_heads(
    tmp_path: Path, options: dict[str, Any], width: int, gpus: int, heads: int
) -> None:
    assert fit.gpu_count(options) == gpus
    need = fit.need(folder(tmp_path, QWEN3, QWEN3_BYTES), "bf16", ONE, options, gpu=True)
    assert need.weights == QWEN3_BYTES // gpus
    assert need.cache == 8 * (768 + 64) * 48 * 2 * heads * 128 * width


def test_a_cache_whose_size_is_given_takes_that_size(tmp_path: Path) -> None:
    options = {"kv_cache_memory_bytes": 900_000_000_000}
    need = fit.need(folder(tmp_path, QWEN3, QWEN3_BYTES), "bf16", ONE, options, gpu=True)
    assert need.cache == 900_000_000_000
    assert str(fit.too_large(need, fit.memory((H100,)))).endswith("; give a smaller kv_cache_memory_bytes")


def test_a_cache_that_the_checkpoint_holds_in_fp8_is_half_as_large(tmp_path: Path) -> None:
    plain = fit.need(folder(tmp_path, QWEN3, QWEN3_BYTES), "bf16", ONE, {}, gpu=True)
    quantised = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    need = fit.need(folder(tmp_path, {**QWEN3, "quantization_config": quantised}, 31 << 30), "fp8", ONE, {}, gpu=True)
    assert plain.cache == 2 * (need.cache or 0)


@pytest.mark.parametrize(("stored", "runs", "held"), [(2, "bf16", 2), (4, "bf16", 2), (2, "fp32", 4)])
def test_a_type_that_is_not_stated_is_read_from_the_size_of_the_files(
    tmp_path: Path, stored: int, runs: str, held: int
) -> None:
    silent = {key: value for key, value in QWEN3.items() if key != "torch_dtype"}
    here = folder(tmp_path, silent, QWEN3_BYTES // 2 * stored)
    assert fit.need(here, runs, ONE, {}, gpu=True).weights == QWEN3_BYTES // 2 * held


def test_states_of_sequences_take_memory_beside_their_tokens(tmp_path: Path) -> None:
    config = json.loads(PUBLISHED.read_text())["Qwen3-Next-80B-A3B"]
    need = fit.need(folder(tmp_path, {**config, "torch_dtype": "bfloat16"}, 160 << 30), "bf16", ONE, {}, gpu=True)
    # 12 layers have keys and values of 2 heads of 256; 36 a matrix for each of 32 heads and a convolution's 3 inputs
    state = 36 * (32 * 128 * 128 + 3 * (2 * 16 * 128 + 32 * 128))
    assert need.cache == 8 * (768 + 64) * 12 * 2 * 2 * 256 * 2 + 8 * state * 4


def test_a_parallel_size_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="tensor_parallel_size=two is not a whole number from 1"):
        fit.gpu_count({"tensor_parallel_size": "two"})


def test_of_an_architecture_that_is_not_known_only_the_weights_count(tmp_path: Path) -> None:
    need = fit.need(
        folder(tmp_path, {"model_type": "unheard_of", "dtype": "bfloat16"}, 7 << 30), "bf16", ONE, {}, gpu=True
    )
    assert (need.weights, need.cache) == (7 << 30, None)
    assert need.total == (7 << 30) + need.beside


def test_where_nothing_is_known_nothing_is_refused_and_nothing_shares_the_machine(tmp_path: Path) -> None:
    need = fit.need(folder(tmp_path, {"model_type": "unheard_of"}), "bf16", ONE, {}, gpu=True)
    assert need.total is None
    assert fit.too_large(need, 0) is None


def test_the_cache_is_that_of_the_largest_shape() -> None:
    assert fit.cache_tokens((Shape(1, 100, 10), Shape(32, 100, 10), Shape(8, 100, 10))) == 32 * (110 + 64)


def test_lighter_weights_leave_room_for_more_of_the_cache(tmp_path: Path) -> None:
    settings = EngineSettings(str(folder(tmp_path, QWEN3, QWEN3_BYTES)))
    per_token = 48 * 2 * 4 * 128 * 2  # layers, keys and values, heads, head size, bytes
    for precision, weights in (("bf16", QWEN3_BYTES), ("fp8", None)):
        capacity = fit.capacity(Arm(precision, precision, settings, "trtllm"), (H100,))
        assert capacity.weights_bytes is not None
        assert weights is None or capacity.weights_bytes == pytest.approx(weights, rel=1e-3)
        room = 0.97 * H100.memory_bytes - capacity.weights_bytes - (8 << 30)
        assert capacity.kv_cache_tokens == pytest.approx(room / per_token, abs=1)
        assert fit.capacity(Arm(precision, precision, settings, "trtllm"), ()).kv_cache_tokens is None


def test_what_does_not_fit_is_said_with_both_sides() -> None:
    need = Need(60 << 30, 3 << 29, 8 << 30)
    assert fit.too_large(need, need.total or 0) is None
    reason = fit.too_large(need, (need.total or 0) - 1)
    assert reason is not None
    assert reason.startswith(
        "it needs 60.0 GiB of weights, 1.5 of key-value cache and about 8 beside them, and 69.5 GiB"
    )


def test_what_is_free_of_a_gpu_counts_and_a_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(ONE_GPU, used=0)
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    here = (replace(H100, uuid=ONE_GPU), H100)
    empty = fit.memory(here)
    assert 0.9 * H100.memory_bytes < empty < H100.memory_bytes
    card.used = 30 << 30
    assert fit.memory(here) == empty - (30 << 30)
    assert fit.memory((H100,)) == empty, "where NVML does not know it"
    assert fit.memory(()) > 1 << 20


@pytest.mark.parametrize("config", [{"max_position_embeddings": 64}, {"text_config": {"max_position_embeddings": 64}}])
def test_shapes_that_are_longer_than_the_window_are_refused_with_both_lengths(config: dict[str, Any]) -> None:
    fit.check_window("m", config, (Shape(1, 60, 4),))
    with pytest.raises(UsageError, match=r"make 65 tokens and m has 64 positions"):
        fit.check_window("m", config, (Shape(1, 8, 8), Shape(1, 61, 4)))


def test_a_window_that_is_not_stated_refuses_nothing() -> None:
    fit.check_window("m", {}, (Shape(1, 10**9, 1),))


def test_memory_that_others_use_is_named_before_a_load_with_a_fix() -> None:
    need = Need(40 << 30, 0, 8 << 30)
    free = int(0.97 * H100.memory_bytes)
    assert fit.too_large(need, free, (H100,)) is None
    reason = fit.too_large(need, free - (40 << 30), (H100,))
    assert reason is not None
    assert "37.6 GiB can be used here (40.0 GiB are in use by other programs)" in reason
    assert reason.endswith("choose another one with CUDA_VISIBLE_DEVICES")
    small = Need(1 << 30, 0, 1 << 30)
    assert fit.too_large(small, free - (40 << 30), (H100,), 0.5) is None, "0.5 of 80 GiB are free"
    reason = fit.too_large(small, free - (40 << 30), (H100,), 0.9)
    assert reason is not None
    assert reason.startswith("gpu_memory_utilization=0.9 asks for 72.0 GiB, and 40.0 GiB are free")
