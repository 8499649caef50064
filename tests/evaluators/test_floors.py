"""Floors against hand-computed closed forms, exhaustive draws and torch's own count of a real model's FLOPs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from moe_eval.checkpoint import geometry, precision
from moe_eval.checkpoint.geometry import Entries, Geometry, Mixer
from moe_eval.errors import UsageError
from moe_eval.evaluators import floors
from moe_eval.evaluators.floors import LoadedModel
from moe_eval.machine.rates import Rates
from tests.conftest import ROOT
from tests.evaluators.conftest import TOY

H100 = Rates(3.0e12, {"bfloat16": 770e12, "float8_e4m3fn": 1270e12}, "H100")
PUBLISHED = ROOT / "tests" / "checkpoint" / "published_configs.json"
QWEN3 = json.loads(PUBLISHED.read_text())["Qwen3-30B-A3B"]
TOY_BYTES = {"experts": 80, "embedding": 1600, "other": 1000}
UNIT = Rates(1.0, {"bfloat16": 1.0}, "one byte and one FLOP a second")


def qwen3() -> tuple[Geometry, dict[str, int]]:
    """Qwen3-30B-A3B and its bytes in BF16."""
    sizes = geometry.read(QWEN3)
    assert sizes is not None
    parts = sizes.params
    rest = parts.attention + parts.dense + parts.head
    return sizes, {"experts": 2 * parts.experts, "embedding": 2 * parts.embedding, "other": 2 * rest}


def model(of: Geometry, weight_bytes: Mapping[str, int], rates: Rates = H100, **changes: Any) -> LoadedModel:
    settings = {"dtype": "bfloat16", "cache_width": 2, **changes}
    return LoadedModel(of, weight_bytes, rates, **settings)


@pytest.mark.parametrize(("experts", "top_k", "batch"), [(4, 2, 3), (5, 1, 4), (4, 3, 2), (3, 3, 2), (6, 2, 1)])
def test_expected_distinct_experts_are_the_mean_over_all_draws(experts: int, top_k: int, batch: int) -> None:
    choices = list(combinations(range(experts), top_k))
    sizes = [len(set().union(*draw)) for draw in product(choices, repeat=batch)]
    assert floors.expected_distinct(experts, top_k, batch) == pytest.approx(sum(sizes) / len(sizes))


@pytest.mark.parametrize("batch", [1, 8, 32, 64])
def test_expected_distinct_experts_of_simulated_draws(batch: int) -> None:
    generator = np.random.default_rng(batch)
    trials = 400
    chosen = generator.random((trials, batch, 128)).argpartition(8, axis=2)[:, :, :8]
    sizes = [len(np.unique(each)) for each in chosen]
    error = np.std(sizes) / math.sqrt(trials)
    assert abs(floors.expected_distinct(128, 8, batch) - np.mean(sizes)) <= 4 * error + 1e-9


def test_a_decode_step_by_hand() -> None:
    floor = model(TOY, TOY_BYTES, UNIT, cache_width=0.25).decode_step(3, 10, 3)
    # all of other, 3 of 4 experts, 3 of 100 rows of the embedding; 10 entries of the cache read and 1 written, thrice
    assert floor.bytes == 1000 + 60 + 48 + 3 * 11 * 4
    # 2 x (attention 30, dense 7, 2 experts of 10, head 800), and in 2 layers 2 heads of 3 + 5 over 10 tokens and itself
    assert floor.flops == 3 * (2 * (30 + 7 + 20 + 800) + 2 * 2 * 2 * (3 + 5) * 11)
    assert (floor.distinct_experts, floor.distinct_source) == (3, "counted")


def test_a_prefill_by_hand() -> None:
    floor = model(TOY, TOY_BYTES, UNIT, cache_width=0.25).prefill(12, 4, 4)
    assert floor.bytes == 1000 + 80 + 192 + 12 * 4
    # the head for the last token of 3 prompts; 1 + 2 + 3 + 4 pairs in each
    assert floor.flops == 12 * 2 * (30 + 7 + 20) + 3 * 2 * 800 + 3 * 10 * 2 * 2 * 2 * (3 + 5)


def test_the_slower_of_memory_and_arithmetic_bounds() -> None:
    moved, flops = 1240, 7254
    slow, fast = (
        model(TOY, TOY_BYTES, Rates(rate, {"bfloat16": 100.0}, ""), cache_width=0.25).decode_step(3, 10, 3)
        for rate in (10.0, 1000.0)
    )
    assert (slow.bound, slow.seconds) == ("memory", moved / 10)
    assert (slow.memory_seconds, slow.flops_seconds) == (moved / 10, flops / 100)
    assert (fast.bound, fast.seconds) == ("compute", flops / 100)


@pytest.mark.parametrize("dtype", [None, "float4_e2m1fn_x2"])
def test_without_a_rate_for_the_type_arithmetic_is_left_out(dtype: str | None) -> None:
    floor = model(TOY, TOY_BYTES, Rates(1e9, {"bfloat16": 1.0}, ""), dtype=dtype).decode_step(3, 10)
    assert (floor.bound, floor.flops_seconds) == ("memory", None)
    assert floor.seconds == floor.memory_seconds == floor.bytes / 1e9


def test_qwen3_30b_a3b_at_batch_32_reads_what_was_predicted() -> None:
    floor = model(*qwen3()).decode_step(32, 0)
    # 53.7 GB and 17.9 ms were predicted with all of the embedding (0.62 GB), of which a step reads 32 rows
    assert floor.bytes / 1e9 == pytest.approx(53.7 - 0.62, abs=0.05)
    assert 1e3 * floor.seconds == pytest.approx(17.9 - 0.2, abs=0.05)
    assert (floor.bound, floor.distinct_source) == ("memory", "independent draws")
    assert floor.distinct_experts == pytest.approx(111.8, abs=0.05)


def test_qwen3_30b_a3b_at_batch_1_takes_about_two_milliseconds() -> None:
    floor = model(*qwen3()).decode_step(1, 544)
    # 2.2 ms is the 3.35 B active parameters with all of the embedding
    assert 1e3 * floor.seconds == pytest.approx(2.2, rel=0.1)
    assert floor.bytes == pytest.approx(2 * (3.3528e9 - 0.3112e9) + 545 * 98304, rel=1e-4)
    assert floor.distinct_experts == pytest.approx(8)


def test_quantised_experts_and_fewer_of_them_take_less() -> None:
    sizes, plain = qwen3()
    fp8 = {**plain, "experts": plain["experts"] // 2}
    whole, half = (model(sizes, weights).decode_step(8, 100) for weights in (plain, fp8))
    read = 2 * sizes.params.experts * (1 - (15 / 16) ** 8)
    assert whole.bytes - half.bytes == pytest.approx(read / 2)
    collapsed = model(sizes, fp8).decode_step(8, 100, 15.0)
    assert half.bytes - collapsed.bytes == pytest.approx(read / 2 - sizes.params.experts * 15 / 128)


def test_a_prefill_of_long_prompts_reads_every_expert_and_computes() -> None:
    floor = model(*qwen3()).prefill(32 * 512, 512)
    assert floor.distinct_experts == pytest.approx(128)
    assert floor.bound == "compute"
    # 2 FLOPs for each of about 2.7 B active parameters without vocabulary, and some attention
    assert floor.flops == pytest.approx(2 * 32 * 512 * 2.73e9, rel=0.08)
    assert model(*qwen3()).prefill(512, 512).bound == "memory"


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="0 sequences"):
        model(TOY, TOY_BYTES).decode_step(0, 3)
    with pytest.raises(UsageError, match="13 tokens are no whole number of prompts of 4"):
        model(TOY, TOY_BYTES).prefill(13, 4)


SHAPED = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "mlp_only_layers": [1],
    "experts_implementation": "eager",
    "attn_implementation": "eager",
}


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7)])
def test_flops_are_those_that_torch_counts_in_the_model(batch: int, length: int) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_moe", **SHAPED)
    network = AutoModelForCausalLM.from_config(config).eval()
    sizes = geometry.read(config.to_dict())
    assert sizes is not None
    loaded = model(sizes, {"experts": 1, "embedding": 1, "other": 1}, UNIT)
    ids = torch.randint(0, 96, (batch, length))

    def counted(**inputs: Any) -> tuple[int, Any]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            output = network(logits_to_keep=1, **inputs)
        parts = counter.get_flop_counts()
        rotary = sum(sum(ops.values()) for name, ops in parts.items() if name.endswith(".rotary_emb"))
        return counter.get_total_flops() - rotary, output

    prefilled, output = counted(input_ids=ids, use_cache=True)
    # eager attention computes the pairs above the diagonal as well
    above = batch * length * (length - 1) // 2 * 3 * 4 * (2 * 16 * 2)
    assert loaded.prefill(batch * length, length).flops == prefilled - above
    stepped, _ = counted(input_ids=ids[:, :1], past_key_values=output.past_key_values, use_cache=True)
    assert loaded.decode_step(batch, length).flops == stepped


SMALL = dict(json.loads((PUBLISHED.parent / "small_configs.json").read_text()))


@pytest.mark.parametrize(
    "kind",
    ["mixtral", "qwen2_moe", "glm4_moe", "deepseek_v3", "deepseek_v32", "gpt_oss", "minimax_m2", "gemma4_text"],
)
def test_flops_of_other_shapes_are_those_that_torch_counts(kind: str) -> None:
    """With prompts shorter than every window. Eager attention computes the pairs above the diagonal as well."""
    plain = {"experts_implementation": "eager", "attn_implementation": "eager"}
    config = AutoConfig.for_model(kind, **SMALL[kind], **plain)
    network = AutoModelForCausalLM.from_config(config).eval()
    sizes = geometry.read(json.loads(config.to_json_string()))
    assert sizes is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]]), logits_to_keep=1)
    parts = counter.get_flop_counts()
    rotary = sum(sum(ops.values()) for name, ops in parts.items() if name.endswith("rotary_emb"))
    of_a_pair = sum(mixer.layers * entries.flops for mixer in sizes.mixers for entries in mixer.entries)
    floor = model(sizes, {"experts": 1, "embedding": 1, "other": 1}, UNIT).prefill(6, 3)
    assert floor.flops == counter.get_total_flops() - rotary - 2 * 3 * of_a_pair


def test_windows_choices_compressed_entries_and_states_by_hand() -> None:
    """Ten tokens are in the cache of each of three sequences, and two steps follow."""
    mixers = (
        Mixer(layers=2, params=15, entries=(Entries(values=8, flops=32),)),
        Mixer(layers=1, params=0, entries=(Entries(values=6, flops=10, window=4),)),
        Mixer(layers=1, params=0, entries=(Entries(5, 7, chosen=3), Entries(2, 9, width=1.0))),
        Mixer(layers=1, params=0, entries=(Entries(4, 11, tokens=4),)),
        Mixer(layers=3, params=0, state_values=20, state_flops=60),
    )
    plain, mixed = (
        model(replace(TOY, mixers=kinds), TOY_BYTES, UNIT).decode_step(3, 10, 3, steps=2) for kinds in ((), mixers)
    )
    # the steps see 11 and 12 tokens, 4 of a window, 3 chosen after all are scored, and 2 and 3 compressed ones
    cache = 2 * 2 * 8 * 11.5 + 2 * 6 * 4 + 2 * 5 * 3 + 1 * 2 * 11.5 + 2 * 4 * 2.5
    assert mixed.bytes - plain.bytes == 3 * (cache + 2 * 3 * 20 * 2)
    assert mixed.flops - plain.flops == 3 * (2 * 32 * 11.5 + 10 * 4 + 7 * 3 + 9 * 11.5 + 11 * 2.5 + 3 * 60)
    plain, mixed = (model(replace(TOY, mixers=kinds), TOY_BYTES, UNIT).prefill(12, 6, 4) for kinds in ((), mixers))
    # a prompt of 6 leaves 4 tokens of a window, all others and one compressed entry
    cache = 2 * 2 * 8 * 6 + 2 * 6 * 4 + 2 * 5 * 6 + 1 * 2 * 6 + 2 * 4 * 1
    assert mixed.bytes - plain.bytes == 2 * (cache + 3 * 20 * 2)
    pairs = 1 + 2 + 3 + 4 + 5 + 6
    attended = 2 * 32 * pairs + 10 * (1 + 2 + 3 + 4 + 4 + 4) + 7 * (1 + 2 + 3 * 4) + 9 * pairs + 11 * (0 + 3 * 1)
    assert mixed.flops - plain.flops == 2 * attended + 12 * 3 * 60


def test_a_token_of_latent_attention_reads_the_latent_alone() -> None:
    """DeepSeek-V3 (arXiv:2412.19437): 61 layers of a latent of 512 and a rotary key of 64, in place of 128 heads."""
    sizes = geometry.read(json.loads(PUBLISHED.read_text())["DeepSeek-V3"])
    assert sizes is not None
    near, far = (model(sizes, TOY_BYTES).decode_step(4, context, 8.0) for context in (1000, 3000))
    assert far.bytes - near.bytes == 4 * 2000 * 61 * 576 * 2
    # vLLM's cache of DeepSeek in FP8 has 656 bytes for a token and layer
    width = precision.cache_bytes("fp8_ds_mla")
    near, far = (model(sizes, TOY_BYTES, cache_width=width).decode_step(1, tokens, 8.0) for tokens in (0, 1000))
    assert far.bytes - near.bytes == pytest.approx(1000 * 61 * 656)


def test_mxfp4_experts_are_read_in_four_and_a_quarter_bits() -> None:
    """gpt-oss-120b at batch 1, as loaded: packed experts with a scale of a byte for 32 weights."""
    sizes = geometry.read(json.loads(PUBLISHED.read_text())["gpt-oss-120b"])
    assert sizes is not None
    packed = {"experts": int(sizes.params.experts * 4.25 / 8), "embedding": 0, "other": 0}
    step = model(sizes, packed).decode_step(1, 0)
    assert step.bytes == pytest.approx(36 * 4 * sizes.expert_params * 4.25 / 8 + sizes.kv_bytes_per_token(2))
    windowed, whole = (model(sizes, packed).decode_step(1, context, 4.0).bytes for context in (127, 2127))
    assert whole - windowed == 18 * 2000 * 2 * 8 * 64 * 2, "the other 18 layers see 128 tokens"


def test_an_all_reduce_after_attention_and_after_the_experts_of_every_layer() -> None:
    sizes, weight_bytes = qwen3()
    link = floors.Link(2, "all-reduce", 2.0, 300e9)
    step = model(sizes, weight_bytes, link=link).decode_step(64, 512)
    # 96 collectives of 64 tokens of 2,048 values of 2 bytes, of which either GPU sends all
    assert step.link_bytes == 96 * 64 * 2048 * 2
    assert step.link_seconds == pytest.approx(step.link_bytes / 300e9)
    assert (step.bound, step.seconds) == ("memory", step.memory_seconds)
    assert floors.Link(4, "all-reduce", 2.0, None).bytes(sizes, 64) == pytest.approx(1.5 * step.link_bytes)
    slow = model(sizes, weight_bytes, link=floors.Link(2, "all-reduce", 2.0, 1e6)).decode_step(64, 512)
    assert (slow.bound, slow.seconds) == ("link", slow.link_seconds)


def test_an_unmeasured_link_and_one_gpu_leave_the_floor_as_it_was() -> None:
    sizes, weight_bytes = qwen3()
    alone = model(sizes, weight_bytes).decode_step(8, 512)
    assert (alone.link_bytes, alone.link_seconds) == (0, None)
    unknown = model(sizes, weight_bytes, link=floors.Link(2, "all-reduce", 2.0, None)).decode_step(8, 512)
    assert unknown.link_bytes > 0
    assert (unknown.link_seconds, unknown.seconds) == (None, alone.seconds)
    assert floors.Link(1, "all-reduce", 2.0, 1e9).bytes(sizes, 8) == 0


@pytest.mark.parametrize("gpus", [2, 4])
def test_an_all_to_all_sends_a_token_once_to_every_gpu_with_an_expert_of_it(gpus: int) -> None:
    experts, top_k = 8, 3
    sizes = replace(qwen3()[0], experts=experts, top_k=top_k, moe_layers=1, hidden=1)
    per_gpu = experts // gpus
    draws = list(combinations(range(experts), top_k))
    # a token of GPU 0, with every choice of experts
    targets = [len({expert // per_gpu for expert in draw} - {0}) for draw in draws]
    expected = 2 * sum(targets) / len(targets)
    assert floors.Link(gpus, "all-to-all", 1.0, None).bytes(sizes, gpus) == pytest.approx(expected)
