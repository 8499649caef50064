"""A model's sizes, read from its config.json: what a floor of time and a count of parameters are computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# model types of Transformers whose layers were compared with what is computed here
_FULL_ATTENTION = {
    "dots1", "flex_olmo", "glm4_moe", "granitemoe", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
    "qwen3_vl_moe", "qwen3_vl_moe_text",
}  # fmt: skip
_LATENT_ATTENTION = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2"}


@dataclass(frozen=True)
class Params:
    """Parameters of a language model by part; norms and biases, below 0.1 % of any of them, are left out.

    Attributes:
        experts: all that routers choose from.
        attention: projections to queries, keys and values, and of the output.
        dense: routers, shared experts with their gates, and the MLP of layers without a router.
        head: the matrix that every sampled token is multiplied with, whether or not it is the embedding.
        embedding: the table of which rows are read; 0 where the head is the same matrix.
    """

    experts: int
    attention: int
    dense: int
    head: int
    embedding: int

    @property
    def total(self) -> int:
        """Parameters held."""
        return self.experts + self.attention + self.dense + self.head + self.embedding


@dataclass(frozen=True)
class Geometry:
    """The sizes of a language model with a router.

    Attributes:
        layers, moe_layers: in all, and those with a router.
        experts, top_k: of such a layer, to choose from and chosen for every token.
        hidden: width of the residual stream.
        heads: of queries. `kv_heads` those of keys and values; with latent attention as many as heads.
        head_dim, value_dim: width of a query or key, and of a value, in a head.
        kv_values: numbers that the cache holds for a token in one layer. With latent attention the latent and the
            rotary key (DeepSeek-V2, arXiv:2405.04434, section 2.1.3); an engine that unpacks them caches more.
        vocabulary: rows of the head.
        tied: the head is the embedding.
        expert_params: of one expert in one layer.
        params: by part.
    """

    layers: int
    moe_layers: int
    experts: int
    top_k: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    kv_values: int
    vocabulary: int
    tied: bool
    expert_params: int
    params: Params

    @property
    def active_params(self) -> int:
        """Parameters of one token's path as models are named by (the A3B of Qwen3-30B-A3B): with the embedding."""
        return self.params.total - self.params.experts + self.moe_layers * self.top_k * self.expert_params

    def kv_bytes_per_token(self, dtype_bytes: float) -> float:
        """Bytes that one token takes in the key-value cache, all layers together."""
        return self.layers * self.kv_values * dtype_bytes

    def kv_bytes_per_gpu(self, dtype_bytes: float, tensor: int = 1, pipeline: int = 1) -> float:
        """Bytes that one token takes on each GPU: heads are split by `tensor` and layers by `pipeline`.

        Every GPU holds one head at least, and the whole latent of latent attention, which has no heads to split.
        """
        latent = self.kv_values != 2 * self.kv_heads * self.head_dim
        values = self.kv_values if latent else 2 * max(1, self.kv_heads // tensor) * self.head_dim
        return math.ceil(self.layers / pipeline) * values * dtype_bytes


def read(config: Mapping[str, Any]) -> Geometry | None:
    """Read the sizes of a model with a router; of one that also sees or hears, those of its language model.

    Returns:
        None where the architecture is not one of those known here, a size is missing, or attention does not see the
        whole context in every layer: a wrong floor is worse than none.
    """
    text = config.get("text_config")
    merged = {**config, **text} if isinstance(text, Mapping) else dict(config)
    kind = str(merged.get("model_type"))
    if kind not in _FULL_ATTENTION | _LATENT_ATTENTION:
        return None
    try:
        # what ties the two lies outside the language model's own section
        tied = bool(config.get("tie_word_embeddings", merged.get("tie_word_embeddings", False)))
        return None if _windowed(merged) else _read(merged, kind, tied)
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None


def _read(config: Mapping[str, Any], kind: str, tied: bool) -> Geometry:
    layers, hidden, vocabulary = (_size(config, name) for name in ("num_hidden_layers", "hidden_size", "vocab_size"))
    heads = _size(config, "num_attention_heads")
    experts = _size(config, "num_experts", "num_local_experts", "n_routed_experts")
    width = _size(config, "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size")
    sparse = sum(_routed(config, layer) for layer in range(layers))
    dense = sparse * (experts * hidden + _shared(config, kind, hidden, width))  # routers are in it
    if sparse < layers:
        dense += (layers - sparse) * _gated(hidden, _size(config, "intermediate_size"))
    if kind in _LATENT_ATTENTION:
        latent, rotary = _size(config, "kv_lora_rank"), _size(config, "qk_rope_head_dim")
        plain, value_dim = _size(config, "qk_nope_head_dim"), _size(config, "v_head_dim")
        kv_heads, head_dim, kv_values = heads, plain + rotary, latent + rotary
        compressed = config["q_lora_rank"]  # null: queries are not compressed
        queries = heads * head_dim * (int(compressed) if compressed else hidden) + hidden * int(compressed or 0)
        keys = hidden * (latent + rotary) + latent * heads * (plain + value_dim)
        attention = queries + keys + heads * value_dim * hidden
    else:
        kv_heads = heads if config["num_key_value_heads"] is None else _size(config, "num_key_value_heads")
        head_dim = value_dim = _size(config, "head_dim") if config.get("head_dim") else hidden // heads
        kv_values = 2 * kv_heads * head_dim
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    return Geometry(
        layers=layers,
        moe_layers=sparse,
        experts=experts,
        top_k=_size(config, "num_experts_per_tok"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        kv_values=kv_values,
        vocabulary=vocabulary,
        tied=tied,
        expert_params=_gated(hidden, width),
        params=Params(
            experts=sparse * experts * _gated(hidden, width),
            attention=layers * attention,
            dense=dense,
            head=vocabulary * hidden,
            embedding=0 if tied else vocabulary * hidden,
        ),
    )


def _size(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that is there.

    Raises:
        KeyError: none is.
        ValueError: it is no size.
    """
    name = next((each for each in names if config.get(each) is not None), names[0])
    number = int(config[name])
    if number < 1:
        raise ValueError(name)
    return number


def _gated(hidden: int, width: int) -> int:
    """Parameters of an MLP with gate, up and down projection."""
    return 3 * hidden * width


def _routed(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has a router: the rules of Qwen, DeepSeek and their descendants together."""
    listed = config.get("mlp_layer_types")
    if listed:
        return bool(listed[layer] == "sparse")
    if "n_routed_experts" in config:
        frequency = config.get("moe_layer_freq", 1)
        chosen = frequency[layer] if isinstance(frequency, list) else layer % int(frequency) == 0
        return layer >= int(config["first_k_dense_replace"]) and bool(chosen)
    step = int(config.get("decoder_sparse_step", 1))
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def _shared(config: Mapping[str, Any], kind: str, hidden: int, width: int) -> int:
    """Parameters of what every token of a routed layer goes through beside its experts."""
    if kind == "qwen2_moe":
        return _gated(hidden, _size(config, "shared_expert_intermediate_size")) + hidden  # the gate has one output
    return _gated(hidden, width * int(config["n_shared_experts"] or 0)) if "n_routed_experts" in config else 0


def _windowed(config: Mapping[str, Any]) -> bool:
    """Whether some layer sees a part of the context only."""
    listed = config.get("layer_types")
    if listed:
        return any(each != "full_attention" for each in listed)
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return False
    return bool(window < config.get("max_position_embeddings", 0))
