"""The least time that a step of a model can take: the bytes it has to move and the arithmetic it has to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from moe_eval.checkpoint.geometry import STATE_WIDTHS, Geometry
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.machine.links import ring_bytes
from moe_eval.machine.rates import Rates
from moe_eval.records.shape_latency import Floor

Exchange = Literal["all-reduce", "all-to-all"]
DistinctSource = Literal["counted", "independent draws"]


def expected_distinct(experts: int, top_k: int, batch: int) -> float:
    """How many experts `batch` tokens of one layer are expected to go through, all together.

    Every token draws top_k different experts, uniformly and independently of the others, so that each misses one with
    probability 1 - top_k / experts: experts * (1 - (1 - top_k / experts) ** batch). That holds for experts in groups as
    well, of which a token draws some first.
    """
    return experts * (1 - (1 - top_k / experts) ** batch)


@frozen
class Link:
    """How the GPUs of a model exchange activations in every layer.

    Attributes:
        gpus: that share a layer.
        exchange: all-reduce where every GPU has all tokens: after attention and after the MLP or its experts, whether
            these are cut or spread whole. all-to-all where attention has the tokens apart and whole experts are spread.
        bytes_per_value: of an activation.
        bytes_per_s: that a GPU sends, as measured. None where it is not known.
    """

    gpus: int
    exchange: Exchange
    bytes_per_value: float
    bytes_per_s: float | None

    def bytes(self, geometry: Geometry, rows: int) -> float:
        """Bytes that every GPU sends in a pass over `rows` tokens.

        All-reduce: one of rows * hidden values after every mixer and every MLP, 2 (n - 1) / n of their bytes each
        (machine.links).
        All-to-all: a GPU has rows / n tokens. In every layer with a router each goes once to every other GPU that
        holds one of its experts, and one sum comes back. A GPU holds none of a token's k experts with probability
        C(E - E/n, k) / C(E, k).
        """
        if self.gpus < 2:
            return 0.0
        values = rows * geometry.hidden * self.bytes_per_value
        if self.exchange == "all-reduce":
            return geometry.sums * ring_bytes(values, self.gpus)
        others = geometry.experts - geometry.experts // self.gpus
        missed = math.comb(others, geometry.top_k) / math.comb(geometry.experts, geometry.top_k)
        return 2 * geometry.moe_layers * values / self.gpus * (self.gpus - 1) * (1 - missed)


@frozen
class LoadedModel:
    """A model as it was loaded, on the device that it runs on.

    Attributes:
        weight_bytes: as in EngineFacts, as they were loaded, so that a quantisation is in it.
        rates: of the device; of several that share the model, their sums.
        cache_width: bytes of a number in the key-value cache.
        dtype: torch's name of the fastest type that matrices are multiplied in, so that floors stay floors.
        link: between its GPUs. None on one GPU.
    """

    geometry: Geometry
    weight_bytes: Mapping[str, int]
    rates: Rates
    cache_width: float
    dtype: str | None
    link: Link | None = None

    def decode_step(self, batch: int, context: int, distinct_experts: float | None = None, *, steps: int = 1) -> Floor:
        """The floor of one step that makes one token of every sequence, mean over steps that follow each other.

        Bytes: the weights that every step reads (`other`), the chosen experts' share of theirs (distinct / experts),
        one row of the embedding for every sequence, the entries of the cache that its token sees, of which one is new,
        and states that do not grow, read and written. FLOPs of every token: 2 for each parameter of attention, dense
        parts, chosen experts and head, those of every entry that it sees, and those of the states.

        Args:
            batch: sequences.
            context: tokens in a sequence's cache before the first step.
            distinct_experts: per layer and step as counted. None for those expected of independent draws.

        Raises:
            UsageError: fewer than one sequence.
        """
        if batch < 1 or context < 0:
            raise UsageError(
                f"A step of {batch} sequences with {context} tokens each does not exist. Give at least one."
            )
        tokens = np.arange(context + 1, context + steps + 1)
        cache = attended = 0.0
        for mixer in self.geometry.mixers:
            for entries in mixer.entries:
                seen = mixer.layers * float(entries.seen(tokens).mean())
                cache += seen * entries.bytes(self.cache_width)
                attended += seen * entries.flops
        states = 2 * self.geometry.state_bytes(STATE_WIDTHS[0])
        return self._floor(batch, batch, batch * attended, batch * (cache + states), distinct_experts)

    def prefill(self, tokens: int, input_len: int, distinct_experts: float | None = None) -> Floor:
        """The floor of reading whole prompts and making the first token of each.

        Bytes: as of decode_step, with every entry that stays in the cache and every state written once and none read
        back, as if attention kept the prompt on the chip. FLOPs: 2 for each parameter of attention, dense parts and
        chosen experts and every token, 2 for each of the head and every prompt (its last token alone), those of every
        entry for the tokens that see it, itself among them, and those of the states.

        Args:
            tokens: of all prompts together, batch * input_len.
            input_len: of one prompt.
            distinct_experts: per layer as counted. None for those expected of independent draws, nearly all.

        Raises:
            UsageError: the tokens are no whole number of prompts.
        """
        if input_len < 1 or tokens < 1 or tokens % input_len:
            raise UsageError(f"{tokens} tokens are no whole number of prompts of {input_len}. Give batch * input_len.")
        sequences = tokens // input_len
        positions = np.arange(1, input_len + 1)
        cache = self.geometry.sequence_bytes(input_len, self.cache_width)
        attended = sum(
            mixer.layers * entries.flops * float(entries.seen(positions).sum())
            for mixer in self.geometry.mixers
            for entries in mixer.entries
        )
        return self._floor(tokens, sequences, sequences * attended, sequences * cache, distinct_experts)

    def _floor(self, rows: int, sequences: int, attended: float, cache: float, counted: float | None) -> Floor:
        """The floor of one pass over `rows` tokens, with the FLOPs of attention and the bytes of caches and states."""
        sizes, weights = self.geometry, self.weight_bytes
        source: DistinctSource = "independent draws" if counted is None else "counted"
        distinct = expected_distinct(sizes.experts, sizes.top_k, rows) if counted is None else counted
        embedded = min(1.0, rows / sizes.vocabulary) * weights["embedding"]
        moved = weights["other"] + weights["experts"] * distinct / sizes.experts + embedded + cache
        stated = rows * sum(mixer.layers * mixer.state_flops for mixer in sizes.mixers)
        passed = sizes.active_params - sizes.params.head  # by every token
        flops = 2 * rows * passed + 2 * sequences * sizes.params.head + attended + stated
        rate = self.rates.matrix_flops_per_s.get(self.dtype) if self.dtype is not None else None
        memory = moved / self.rates.copy_bytes_per_s
        compute = None if rate is None else flops / rate
        sent = 0.0 if self.link is None else self.link.bytes(sizes, rows)
        link_rate = None if self.link is None else self.link.bytes_per_s
        on_link = None if link_rate is None else sent / link_rate
        roofs: dict[Literal["memory", "compute", "link"], float]
        roofs = {"memory": memory, "compute": compute or 0.0, "link": on_link or 0.0}
        bound = max(roofs, key=lambda roof: roofs[roof])
        return Floor(
            bytes=moved,
            flops=flops,
            memory_seconds=memory,
            flops_seconds=compute,
            seconds=roofs[bound],
            bound=bound,
            distinct_experts=distinct,
            distinct_source=source,
            link_bytes=sent,
            link_seconds=on_link,
        )
