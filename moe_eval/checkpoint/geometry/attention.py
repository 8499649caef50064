"""Layers that attend to earlier tokens: sizes, parameters, and what they cache.

Parameters are those of Transformers' models of the same type. An indexer's keys count a byte a number: FP8 is what
their models define (DeepSeek-V3.2, arXiv:2512.02556, section 2.1), and an engine that holds more takes longer.
"""

from __future__ import annotations

from dataclasses import replace

from moe_eval.checkpoint.contents import Json
from moe_eval.checkpoint.geometry.mixers import Entries, Mixer
from moe_eval.checkpoint.geometry.settings import listed, size

_INDEX_WIDTH = 1.0
# DeepSeek-V4 multiplies and caches an indexer's queries and keys in FP4
_INDEX_WIDTH_V4 = 0.5
# the setting with the tokens that a layer of this kind sees
_WINDOWS = {"full_attention": "", "sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_LATENT_KINDS = ("full_attention", "indexed_attention", "deepseek_sparse_attention")


def _heads(config: Json) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, and the width of either."""
    heads = size(config, "num_attention_heads")
    # null is stated: as many as of queries
    kv_heads = heads if config["num_key_value_heads"] is None else size(config, "num_key_value_heads")
    width = config.get("head_dim") or config.get("attention_head_dim")
    return heads, kv_heads, int(width) if width else size(config, "hidden_size") // heads


def _grouped(config: Json, kind: str, heads: int, kv_heads: int, head_dim: int) -> Mixer:
    """Grouped-query attention over all earlier tokens, or over a window of them."""
    window = _WINDOWS[kind]
    entries = Entries(
        values=2 * kv_heads * head_dim,
        flops=4 * heads * head_dim,
        heads=kv_heads,
        window=size(config, window) if window else None,
        is_chunked=kind == "chunked_attention",
    )
    return Mixer(1, 2 * size(config, "hidden_size") * head_dim * (heads + kv_heads), (entries,))


def full(config: Json, kind: str, _layer: int) -> Mixer:
    """Projections to queries, keys and values, and of the output."""
    return _grouped(config, kind, *_heads(config))


def gated(config: Json, kind: str, layer: int) -> Mixer:
    """As `full`, with a gate of the output that is projected with the queries (Qwen3-Next)."""
    heads, _, head_dim = _heads(config)
    mixer = full(config, kind, layer)
    if config.get("attn_output_gate") is False:
        return mixer
    return replace(mixer, params=mixer.params + size(config, "hidden_size") * heads * head_dim)


def gemma(config: Json, kind: str, layer: int) -> Mixer:
    """As `full`, where layers that see all have heads of their own, and keys that may be the values too (Gemma 4)."""
    if config.get("num_kv_shared_layers"):
        raise ValueError("num_kv_shared_layers")
    if kind != "full_attention":
        return full(config, kind, layer)
    is_shared = bool(config.get("attention_k_eq_v"))
    stated = config.get("per_layer_config")  # Transformers writes it, and released files have settings for all layers
    if stated:
        changes = next(changes for index, changes in stated.items() if int(index) == layer)
    else:
        changes = {"head_dim": size(config, "global_head_dim")}
        if is_shared and config.get("num_global_key_value_heads"):
            changes["num_key_value_heads"] = size(config, "num_global_key_value_heads")
    heads, kv_heads, head_dim = _heads({**config, **changes})
    mixer = _grouped(config, kind, heads, kv_heads, head_dim)
    values = size(config, "hidden_size") * kv_heads * head_dim
    return replace(mixer, params=mixer.params - values * is_shared)


def latent(config: Json, kind: str, layer: int) -> Mixer:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1.3), with an indexer where there is one.

    The cache holds the latent and the rotary key, which all heads share. An engine that unpacks them caches more. An
    indexer scores every earlier token with a key of its own, and a query reads only the best (DeepSeek-V3.2,
    arXiv:2512.02556, section 2.1). Layers may reuse the choice of an earlier one, without an indexer (GLM-5).
    """
    if kind not in _LATENT_KINDS:
        raise ValueError(kind)
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    rank, rotary = size(config, "kv_lora_rank"), size(config, "qk_rope_head_dim")
    plain, value_dim = size(config, "qk_nope_head_dim"), size(config, "v_head_dim")
    compressed = int(config["q_lora_rank"] or 0)  # null: queries are not compressed
    queries = heads * (plain + rotary) * (compressed or hidden) + hidden * compressed
    keys = hidden * (rank + rotary) + rank * heads * (plain + value_dim)
    params = queries + keys + heads * value_dim * hidden
    chosen = size(config, "index_topk") if "index_topk" in config else None
    cached = Entries(rank + rotary, 2 * heads * (plain + rotary + value_dim), chosen=chosen)
    if chosen is None or not _has_indexer(config, layer):
        return Mixer(1, params, (cached,))
    index_heads, index_dim = size(config, "index_n_heads"), size(config, "index_head_dim")
    params += compressed * index_heads * index_dim + hidden * (index_dim + index_heads)
    return Mixer(1, params, (cached, _index(index_heads, index_dim)))


def _index(heads: int, dim: int, tokens: int = 1, width: float = _INDEX_WIDTH) -> Entries:
    """Keys of an indexer: a score of every head, then their weighted sum."""
    return Entries(dim, 2 * heads * (dim + 1), tokens=tokens, width=width)


def _has_indexer(config: Json, layer: int) -> bool:
    """Whether a layer chooses, rather than reuses an earlier layer's choice."""
    kinds = listed(config, "indexer_types") or listed(config, "index_topk_pattern")
    if kinds:
        return kinds[layer] in ("full", "F")
    every, offset = int(config.get("index_topk_freq", 1)), int(config.get("index_skip_topk_offset", 2))
    return max(layer - offset + 1, 0) % max(every, 1) == 0


def blocks(config: Json, kind: str, layer: int) -> Mixer:
    """Grouped-query attention to blocks of tokens that an indexer chooses (MiniMax-M3).

    The last block always is among them, and may hold a single token.
    """
    if kind != "minimax_m3_sparse":
        return full(config, kind, layer)
    mixer = full(config, "full_attention", layer)
    stated = {**config, **(config.get("sparse_attention_config") or {})}
    heads = size(stated, "sparse_num_index_heads", "index_n_heads")
    dim = size(stated, "sparse_index_dim", "index_head_dim")
    block = size(stated, "sparse_block_size", "index_block_size")
    chosen = (size(stated, "sparse_topk_blocks", "index_topk_blocks") - 1) * block + 1
    index = Entries(dim, 2 * heads * dim, width=_INDEX_WIDTH)
    params = mixer.params + size(config, "hidden_size") * (heads + 1) * dim
    return replace(mixer, params=params, entries=(replace(mixer.entries[0], chosen=chosen), index))


def compressed(config: Json, kind: str, _layer: int) -> Mixer:
    """DeepSeek-V4: one key that is the value too, for a window, and one for every few tokens before.

    Layers of one kind compress many tokens to an entry and read all. Those of the other kind compress few, from twice
    as many, and an indexer chooses. Parameters and caches are those of Transformers' deepseek_v4.
    """
    hidden, heads, head_dim = (size(config, name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    rank, groups = size(config, "q_lora_rank"), size(config, "o_groups")
    out_rank = size(config, "o_lora_rank")
    params = rank * (hidden + heads * head_dim) + hidden * head_dim
    params += heads * head_dim * out_rank + groups * out_rank * hidden
    near = Entries(head_dim, 4 * heads * head_dim, window=size(config, "sliding_window"))
    if kind == "sliding_attention":
        return Mixer(1, params, (near,))
    far = replace(near, window=None, tokens=_compression(config, kind))
    if kind == "heavily_compressed_attention":
        return Mixer(1, params + 2 * hidden * head_dim, (near, far))
    if kind != "compressed_sparse_attention":
        raise ValueError(kind)
    index_heads, dim = size(config, "index_n_heads"), size(config, "index_head_dim")
    params += 4 * hidden * (head_dim + dim) + rank * index_heads * dim + hidden * index_heads
    far = replace(far, chosen=size(config, "index_topk"))
    return Mixer(1, params, (near, far, _index(index_heads, dim, far.tokens, _INDEX_WIDTH_V4)))


def _compression(config: Json, kind: str) -> int:
    """Tokens of one entry, as Transformers writes it, or as the ratios of layers do."""
    rates = config.get("compress_rates") or {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    return int(rates[kind])
