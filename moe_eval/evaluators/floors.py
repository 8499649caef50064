"""The least time that a step of a model can take: the bytes it has to move and the arithmetic it has to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from moe_eval.checkpoint.geometry import Geometry
from moe_eval.errors import UsageError
from moe_eval.machine.rates import Rates
from moe_eval.records.latency import Floor

DistinctSource = Literal["counted", "independent draws"]


def expected_distinct(experts: int, top_k: int, batch: int) -> float:
    """How many experts `batch` tokens of one layer are expected to go through, all together.

    Every token draws top_k different experts, uniformly and independently of the others, so that each misses one with
    probability 1 - top_k / experts: experts * (1 - (1 - top_k / experts) ** batch).
    """
    return experts * (1 - (1 - top_k / experts) ** batch)


def decode_step(
    geometry: Geometry,
    weight_bytes: Mapping[str, int],
    rates: Rates,
    *,
    batch: int,
    context: float,
    kv_bytes_per_token: float,
    dtype: str | None,
    distinct_experts: float | None = None,
) -> Floor:
    """The floor of one step that makes one token of every sequence.

    Bytes: the weights that every step reads (`other`), the chosen experts' share of theirs (distinct / experts), one
    row of the embedding and one new entry of the cache for every sequence, and the cache as far as it is filled.
    FLOPs of every token: 2 for each parameter of attention, dense parts, chosen experts and head, and
    2 * heads * (head_dim + value_dim) for each layer and token of context: scores, then their sum over values.

    Args:
        weight_bytes: as in EngineFacts, as they were loaded, so that a quantisation is in it.
        batch: sequences.
        context: tokens in a sequence's cache, mean over sequences and steps.
        kv_bytes_per_token: all layers together (Geometry.kv_bytes_per_token).
        rates: of the device; of several that share the model, their sums.
        dtype: torch's name of the fastest type that matrices are multiplied in, so that this stays a floor.
        distinct_experts: per layer and step as counted; None for those expected of independent draws.

    Raises:
        UsageError: fewer than one sequence.
    """
    if batch < 1 or context < 0:
        raise UsageError(f"A step of {batch} sequences with {context} tokens each does not exist; give at least one.")
    distinct = _distinct(geometry, batch, distinct_experts)
    moved = _weights(geometry, weight_bytes, distinct[0], batch) + batch * (context + 1) * kv_bytes_per_token
    attended = geometry.layers * 2 * geometry.heads * (geometry.head_dim + geometry.value_dim) * context
    flops = batch * (2 * (_passed(geometry) + geometry.params.head) + attended)
    return _floor(moved, flops, rates, dtype, distinct)


def prefill(
    geometry: Geometry,
    weight_bytes: Mapping[str, int],
    rates: Rates,
    *,
    tokens: int,
    input_len: int,
    kv_bytes_per_token: float,
    dtype: str | None,
    distinct_experts: float | None = None,
) -> Floor:
    """The floor of reading whole prompts and making the first token of each.

    Bytes: as of decode_step, with every entry of the cache written once and none read back, as if attention kept the
    prompt on the chip. FLOPs: 2 for each parameter of attention, dense parts and chosen experts and every token, 2 for
    each of the head and every prompt (its last token alone), and causal attention: of the n(n+1)/2 pairs of a prompt
    2 * heads * (head_dim + value_dim) each in every layer.

    Args:
        tokens: of all prompts together, batch * input_len.
        input_len: of one prompt.
        distinct_experts: per layer as counted; None for those expected of independent draws, which are nearly all.
        weight_bytes, kv_bytes_per_token, rates, dtype: as for decode_step.

    Raises:
        UsageError: the tokens are no whole number of prompts.
    """
    if input_len < 1 or tokens < 1 or tokens % input_len:
        raise UsageError(f"{tokens} tokens are no whole number of prompts of {input_len}; give batch * input_len.")
    distinct = _distinct(geometry, tokens, distinct_experts)
    moved = _weights(geometry, weight_bytes, distinct[0], tokens) + tokens * kv_bytes_per_token
    sequences = tokens // input_len
    pairs = sequences * input_len * (input_len + 1) / 2
    attended = geometry.layers * 2 * geometry.heads * (geometry.head_dim + geometry.value_dim) * pairs
    flops = 2 * tokens * _passed(geometry) + 2 * sequences * geometry.params.head + attended
    return _floor(moved, flops, rates, dtype, distinct)


def _weights(geometry: Geometry, weight_bytes: Mapping[str, int], distinct: float, rows: int) -> float:
    """Bytes of weights that one pass over `rows` tokens reads."""
    embedded = min(1.0, rows / geometry.vocabulary) * weight_bytes["embedding"]
    return weight_bytes["other"] + weight_bytes["experts"] * distinct / geometry.experts + embedded


def _passed(geometry: Geometry) -> int:
    """Parameters that every token is multiplied with, without the head."""
    chosen = geometry.moe_layers * geometry.top_k * geometry.expert_params
    return geometry.params.attention + geometry.params.dense + chosen


def _distinct(geometry: Geometry, rows: int, counted: float | None) -> tuple[float, DistinctSource]:
    if counted is not None:
        return counted, "counted"
    return expected_distinct(geometry.experts, geometry.top_k, rows), "independent draws"


def _floor(
    moved: float, flops: float, rates: Rates, dtype: str | None, distinct: tuple[float, DistinctSource]
) -> Floor:
    rate = rates.matrix_flops_per_s.get(dtype) if dtype is not None else None
    memory = moved / rates.copy_bytes_per_s
    compute = None if rate is None else flops / rate
    return Floor(
        bytes=moved,
        flops=flops,
        memory_seconds=memory,
        flops_seconds=compute,
        seconds=max(memory, compute or 0.0),
        bound="compute" if compute is not None and compute > memory else "memory",
        distinct_experts=distinct[0],
        distinct_source=distinct[1],
    )
