"""The sizes of a language model with a router."""

from __future__ import annotations

import math

import numpy as np

from moe_eval.checkpoint.geometry.mixers import Mixer
from moe_eval.frozen import frozen

# of a number in a state that does not grow: engines keep it in 16 or 32 bits
STATE_WIDTHS = (2.0, 4.0)


@frozen
class Params:
    """Parameters of a language model by part, without norms and biases, which are below 0.1 % of any part.

    Attributes:
        experts: all experts that routers choose from.
        attention: what mixes tokens: projections of attention with their indexers, and of linear attention.
        dense: routers, shared experts with their gates, the MLP of layers without a router, and what else every token
            passes.
        head: the matrix that makes logits, whether or not it is also the embedding.
        embedding: the tables of token vectors. 0 if the head is the same matrix and there is no other.
    """

    experts: int
    attention: int
    dense: int
    head: int
    embedding: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.experts + self.attention + self.dense + self.head + self.embedding


@frozen
class Geometry:
    """The sizes of a language model with a router. Layers of multi-token prediction are not in it.

    Attributes:
        layers, moe_layers: all layers, and those with a router.
        sums: mixers and MLPs, after each of which GPUs that share a layer sum their parts.
        experts, top_k: experts of such a layer, and how many of them every token uses.
        hidden: width of the residual stream.
        vocabulary: rows of the head.
        tied: whether the head is the embedding.
        expert_params: parameters of one expert in one layer.
        params: parameters by part.
        mixers: the layers that mix tokens, alike ones together.
    """

    layers: int
    moe_layers: int
    sums: int
    experts: int
    top_k: int
    hidden: int
    vocabulary: int
    tied: bool
    expert_params: int
    params: Params
    mixers: tuple[Mixer, ...]

    @property
    def active_params(self) -> int:
        """Parameters that one token is multiplied with: all but the other experts and the tables of token vectors."""
        chosen = self.moe_layers * self.top_k * self.expert_params
        return self.params.total - self.params.experts - self.params.embedding + chosen

    @property
    def is_plain(self) -> bool:
        """Whether all layers cache the same for every token, and nothing else."""
        return len(self.mixers) == 1 and self.mixers[0].layers == self.layers and len(self.mixers[0].entries) == 1

    def kv_bytes_per_token(self, dtype_bytes: float) -> float:
        """Bytes that one token adds to the cache of all layers, as long as no window is full."""
        return self.kv_bytes_per_gpu(dtype_bytes)

    def kv_bytes_per_gpu(self, dtype_bytes: float, tensor: int = 1, pipeline: int = 1) -> float:
        """Bytes that one token adds on each GPU, if `tensor` splits the heads and `pipeline` the layers.

        Every GPU holds at least one head. It holds the whole latent of latent attention, which has no heads to split.
        """
        return sum(
            math.ceil(mixer.layers / pipeline)
            * entries.bytes(dtype_bytes)
            / entries.tokens
            / entries.heads
            * max(1, entries.heads // tensor)
            for mixer in self.mixers
            for entries in mixer.entries
        )

    def state_bytes(self, number_bytes: float) -> float:
        """Bytes of a sequence's states that do not grow, all layers together."""
        return number_bytes * sum(mixer.layers * mixer.state_values for mixer in self.mixers)

    def sequence_bytes(self, tokens: int, dtype_bytes: float) -> float:
        """The least bytes that a sequence of so many tokens keeps: entries of the cache, and states in 16 bits."""
        count = np.array(tokens)
        entries = ((mixer.layers, entries) for mixer in self.mixers for entries in mixer.entries)
        kept = sum(layers * float(part.kept(count)) * part.bytes(dtype_bytes) for layers, part in entries)
        return kept + self.state_bytes(STATE_WIDTHS[0])
