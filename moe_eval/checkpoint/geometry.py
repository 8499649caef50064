"""A model's sizes from its config.json: the input of floors of time and of counts of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from moe_eval.checkpoint.contents import Json, text_config

# model types of Transformers whose layers were compared with the sizes computed here
_FULL_ATTENTION = frozenset(
    """
    dots1 flex_olmo glm4_moe granitemoe mixtral olmoe phimoe qwen2_moe qwen3_moe qwen3_vl_moe qwen3_vl_moe_text
    """.split()  # noqa: SIM905
)
_LATENT_ATTENTION = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2"}


@dataclass(frozen=True)
class Params:
    """Parameters of a language model by part, without norms and biases, which are below 0.1 % of any part.

    Attributes:
        experts: all experts that routers choose from.
        attention: projections to queries, keys and values, and of the output.
        dense: routers, shared experts with their gates, and the MLP of layers without a router.
        head: the matrix that makes logits, whether or not it is also the embedding.
        embedding: the table of token vectors. 0 if the head is the same matrix.
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


@dataclass(frozen=True)
class Geometry:
    """The sizes of a language model with a router.

    Attributes:
        layers, moe_layers: all layers, and those with a router.
        experts, top_k: experts of such a layer, and how many of them every token uses.
        hidden: width of the residual stream.
        heads, kv_heads: heads of queries, and of keys and values. Latent attention has as many of both.
        head_dim, value_dim: width of a query or key, and of a value, in a head.
        kv_values: numbers that the cache holds for a token in one layer. With latent attention these are the latent and
            the rotary key (DeepSeek-V2, arXiv:2405.04434, section 2.1.3). An engine that unpacks them caches more.
        vocabulary: rows of the head.
        tied: whether the head is the embedding.
        expert_params: parameters of one expert in one layer.
        params: parameters by part.
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

    def kv_bytes_per_token(self, dtype_bytes: float) -> float:
        """Bytes of one token in the key-value cache, all layers together."""
        return self.layers * self.kv_values * dtype_bytes

    def kv_bytes_per_gpu(self, dtype_bytes: float, tensor: int = 1, pipeline: int = 1) -> float:
        """Bytes of one token on each GPU, if `tensor` splits the heads and `pipeline` the layers.

        Every GPU holds at least one head. It holds the whole latent of latent attention, which has no heads to split.
        """
        latent = self.kv_values != 2 * self.kv_heads * self.head_dim
        values = self.kv_values if latent else 2 * max(1, self.kv_heads // tensor) * self.head_dim
        return math.ceil(self.layers / pipeline) * values * dtype_bytes


def read(config: Mapping[str, object]) -> Geometry | None:
    """Read the sizes of a model with a router, or those of the language model in a larger model.

    None if the architecture is not known here, a size is missing, or a layer's attention does not see the whole
    context. A wrong floor is worse than none.
    """
    merged = text_config(config)
    kind = str(merged.get("model_type"))
    if kind not in _FULL_ATTENTION | _LATENT_ATTENTION:
        return None
    try:
        # the setting that ties them is outside the language model's own section
        tied = bool(config.get("tie_word_embeddings", merged.get("tie_word_embeddings", False)))
        return None if _windowed(merged) else _read(merged, kind, tied)
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None


class _Attention(TypedDict):
    """Sizes of one layer's attention, as in Geometry."""

    kv_heads: int
    head_dim: int
    value_dim: int
    kv_values: int


def _latent_attention(config: Json, hidden: int, heads: int) -> tuple[_Attention, int]:
    """The sizes and the parameters."""
    latent, rotary = _size(config, "kv_lora_rank"), _size(config, "qk_rope_head_dim")
    plain, value_dim = _size(config, "qk_nope_head_dim"), _size(config, "v_head_dim")
    head_dim = plain + rotary
    compressed = int(config["q_lora_rank"] or 0)  # null: queries are not compressed
    queries = heads * head_dim * (compressed or hidden) + hidden * compressed
    keys = hidden * (latent + rotary) + latent * heads * (plain + value_dim)
    sizes = _Attention(kv_heads=heads, head_dim=head_dim, value_dim=value_dim, kv_values=latent + rotary)
    return sizes, queries + keys + heads * value_dim * hidden


def _full_attention(config: Json, hidden: int, heads: int) -> tuple[_Attention, int]:
    kv_heads = heads if config["num_key_value_heads"] is None else _size(config, "num_key_value_heads")
    head_dim = _size(config, "head_dim") if config.get("head_dim") else hidden // heads
    values = 2 * kv_heads * head_dim
    sizes = _Attention(kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim, kv_values=values)
    return sizes, 2 * hidden * head_dim * (heads + kv_heads)


def _read(config: Json, kind: str, tied: bool) -> Geometry:
    layers, hidden, vocabulary = (_size(config, name) for name in ("num_hidden_layers", "hidden_size", "vocab_size"))
    heads = _size(config, "num_attention_heads")
    experts = _size(config, "num_experts", "num_local_experts", "n_routed_experts")
    width = _size(config, "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size")
    sparse = sum(_routed(config, layer) for layer in range(layers))
    dense = sparse * (experts * hidden + _shared(config, kind, hidden, width))  # routers are in it
    if sparse < layers:
        dense += (layers - sparse) * _gated(hidden, _size(config, "intermediate_size"))
    read_attention = _latent_attention if kind in _LATENT_ATTENTION else _full_attention
    attention, attention_params = read_attention(config, hidden, heads)
    return Geometry(
        layers=layers,
        moe_layers=sparse,
        experts=experts,
        top_k=_size(config, "num_experts_per_tok"),
        hidden=hidden,
        heads=heads,
        **attention,
        vocabulary=vocabulary,
        tied=tied,
        expert_params=_gated(hidden, width),
        params=Params(
            experts=sparse * experts * _gated(hidden, width),
            attention=layers * attention_params,
            dense=dense,
            head=vocabulary * hidden,
            embedding=0 if tied else vocabulary * hidden,
        ),
    )


def _size(config: Json, *names: str) -> int:
    """The first of these settings that config.json has. KeyError for none, ValueError for what is no size."""
    name = next((name for name in names if config.get(name) is not None), names[0])
    number = int(config[name])
    if number < 1:
        raise ValueError(name)
    return number


def _gated(hidden: int, width: int) -> int:
    """Parameters of an MLP with gate, up and down projection."""
    return 3 * hidden * width


def _routed(config: Json, layer: int) -> bool:
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


def _shared(config: Json, kind: str, hidden: int, width: int) -> int:
    """Parameters of the shared experts of a routed layer, which every token uses."""
    if kind == "qwen2_moe":
        return _gated(hidden, _size(config, "shared_expert_intermediate_size")) + hidden  # the gate has one output
    return _gated(hidden, width * int(config["n_shared_experts"] or 0)) if "n_routed_experts" in config else 0


def _windowed(config: Json) -> bool:
    """Whether some layer sees only a part of the context."""
    listed = config.get("layer_types")
    if listed:
        return any(kind != "full_attention" for kind in listed)
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return False
    return bool(window < config.get("max_position_embeddings", 0))
