"""One rank's layers, whose loaders cut unsharded tensors as vLLM's do, and the way back to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, HEADS, KV_HEADS, HEAD, EXPERTS, INNER, VOCABULARY = 24, 8, 2, 4, 8, 16, 50


@dataclass(frozen=True)
class Place:
    """A rank. With `experts` whole experts are spread, else parts of each."""

    rank: int = 0
    size: int = 1
    experts: bool = False


class _Layer(nn.Module):
    def __init__(self, place: Place, *shape: int, name: str = "weight") -> None:
        super().__init__()
        self.tp_rank, self.tp_size = place.rank, place.size
        self.add(name, *shape)

    def add(self, name: str, *shape: int) -> None:
        parameter = nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)
        parameter.weight_loader = self.weight_loader
        self.register_parameter(name, parameter)

    def cut(self, whole: Tensor, axis: int, size: int) -> Tensor:
        return whole.narrow(axis, self.tp_rank * size, size)


class Qkv(_Layer):
    """Queries are cut by heads; keys and values are doubled where there are more ranks than heads of them."""

    def __init__(self, place: Place) -> None:
        self.total_num_heads, self.total_num_kv_heads, self.head_size = HEADS, KV_HEADS, HEAD
        self.kv_heads = max(1, KV_HEADS // place.size)
        self.replicas = max(1, place.size // KV_HEADS)
        super().__init__(place, (HEADS // place.size + 2 * self.kv_heads) * HEAD, HIDDEN)
        self.input_size, self.output_size = HIDDEN, (HEADS + 2 * self.kv_heads * place.size) * HEAD
        self.output_sizes = [HEADS * HEAD, *[self.kv_heads * place.size * HEAD] * 2]

    def weight_loader(self, parameter: Any, whole: Tensor, loaded_shard_id: str | None = None) -> None:
        queries, others = HEADS // self.tp_size * HEAD, self.kv_heads * HEAD
        offset = {"q": 0, "k": queries, "v": queries + others}[str(loaded_shard_id)]
        size = queries if loaded_shard_id == "q" else others
        rank = self.tp_rank if loaded_shard_id == "q" else self.tp_rank // self.replicas
        parameter.data.narrow(0, offset, size).copy_(whole.narrow(0, rank * size, size))


class Merged(_Layer):
    """A gate and an up projection in one matrix, each cut by its rows."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, 2 * INNER // place.size, HIDDEN)
        self.input_size, self.output_size, self.output_sizes = HIDDEN, 2 * INNER, [INNER, INNER]

    def weight_loader(self, parameter: Any, whole: Tensor, loaded_shard_id: int | None = None) -> None:
        assert loaded_shard_id is not None
        size = INNER // self.tp_size
        parameter.data.narrow(0, loaded_shard_id * size, size).copy_(self.cut(whole, 0, size))


class Row(_Layer):
    """Cut by its columns, with a bias that every rank has."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, HIDDEN, HEADS * HEAD // place.size)
        self.input_size, self.output_size = HEADS * HEAD, HIDDEN

    def weight_loader(self, parameter: Any, whole: Tensor) -> None:
        parameter.data.copy_(self.cut(whole, 1, parameter.shape[1]))


class Replicated(_Layer):
    """A router."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, EXPERTS, HIDDEN)
        self.input_size, self.output_size = HIDDEN, EXPERTS

    def weight_loader(self, parameter: Any, whole: Tensor) -> None:
        parameter.data.copy_(whole)


class Vocabulary(_Layer):
    """Cut by its rows, with padding to a multiple of 8 for every rank."""

    def __init__(self, place: Place) -> None:
        self.org_vocab_size = VOCABULARY
        super().__init__(place, -(-VOCABULARY // (8 * place.size)) * 8, HIDDEN)

    def weight_loader(self, parameter: Any, whole: Tensor) -> None:
        assert len(whole) == VOCABULARY
        start = min(VOCABULARY, self.tp_rank * len(parameter))
        part = whole[start : start + len(parameter)]
        parameter.data[: len(part)].copy_(part)
        parameter.data[len(part) :].fill_(0)


class Experts(_Layer):
    """Whole experts in a row, or a part of every expert."""

    def __init__(self, place: Place) -> None:
        tensor, spread = (1, place.size) if place.experts else (place.size, 1)
        self.global_num_experts, self.local_num_experts = EXPERTS, EXPERTS // spread
        self.first = place.rank * self.local_num_experts if place.experts else 0
        self.inner = INNER // tensor
        super().__init__(place, self.local_num_experts, 2 * self.inner, HIDDEN, name="w13_weight")
        self.add("w2_weight", self.local_num_experts, HIDDEN, self.inner)
        self.tp_size, self.tp_rank = tensor, 0 if place.experts else place.rank
        self.moe_config = SimpleNamespace(is_act_and_mul=True)

    def weight_loader(self, parameter: Any, whole: Tensor, weight_name: str, shard_id: str, expert_id: int) -> None:
        assert "weight" in weight_name
        local = expert_id - self.first
        if not 0 <= local < self.local_num_experts:
            return
        target = parameter.data[local]
        if shard_id == "w2":
            target.copy_(self.cut(whole, 1, self.inner))
        else:
            target.narrow(0, self.inner * (shard_id == "w3"), self.inner).copy_(self.cut(whole, 0, self.inner))


def model(place: Place) -> nn.Module:
    """One rank's model."""
    root = nn.Module()
    root.embed_tokens, root.qkv_proj, root.o_proj = Vocabulary(place), Qkv(place), Row(place)
    root.gate_up_proj, root.gate, root.experts = Merged(place), Replicated(place), Experts(place)
    root.input_layernorm = nn.LayerNorm(HIDDEN)
    return root


def whole(ranks: list[nn.Module]) -> dict[str, Tensor]:
    """The unsharded tensors that the ranks' parts make up, by name."""
    weights = [dict(rank.named_parameters()) for rank in ranks]
    size, queries = len(ranks), HEADS // len(ranks) * HEAD
    kv_rows = max(1, KV_HEADS // size) * HEAD
    step = max(1, size // KV_HEADS)
    qkv = [rank["qkv_proj.weight"].split([queries, kv_rows, kv_rows]) for rank in weights]
    experts: Any = ranks[0].experts
    up = [rank["experts.w13_weight"].unflatten(1, (2, -1)) for rank in weights]
    axis = 0 if experts.local_num_experts < EXPERTS else 2
    return {
        "embed": torch.cat([rank["embed_tokens.weight"] for rank in weights])[:VOCABULARY],
        "q": torch.cat([part[0] for part in qkv]),
        "k": torch.cat([part[1] for part in qkv[::step]]),
        "v": torch.cat([part[2] for part in qkv[::step]]),
        "o": torch.cat([rank["o_proj.weight"] for rank in weights], 1),
        "gate_up": torch.cat([rank["gate_up_proj.weight"].unflatten(0, (2, -1)) for rank in weights], 1),
        "w13": torch.cat(up, axis),
        "w2": torch.cat([rank["experts.w2_weight"] for rank in weights], axis),
        "gate": weights[-1]["gate.weight"],
    }
