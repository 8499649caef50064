"""What every layer of a model is, from the settings that list it."""

from __future__ import annotations

from moe_eval.checkpoint.contents import Json
from moe_eval.checkpoint.geometry.settings import layer_count, listed

# Nemotron-H has a mixer or an MLP in a layer, and older files call them otherwise
_BLOCKS = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}
_BLOCKS |= {"mamba": "linear_attention", "attention": "full_attention"}
_MLPS = ("moe", "mlp")
# DeepSeek-V4's tokens for an entry, by layer
_RATIOS = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
_ROUTED = ("sparse", "moe", "hash_moe")


def _blocks(config: Json) -> list[str] | None:
    """Layers that are either a mixer or an MLP. None where every layer is both."""
    entries = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    return [_BLOCKS.get(str(entry), str(entry)) for entry in entries] if entries else None


def mixer_kinds(config: Json, pattern: tuple[str, ...]) -> list[str | None]:
    """How every layer mixes tokens. None for a layer that does not.

    Args:
        pattern: repeated where config.json lists no layers.
    """
    blocks = _blocks(config)
    if blocks is not None:
        return [None if block in _MLPS else block for block in blocks]
    stated = _stated(config)
    if stated is not None:
        return [str(kind) for kind in stated]
    layers = layer_count(config)
    pattern = pattern or (_everywhere(config),)
    return [pattern[layer % len(pattern)] for layer in range(layers)]


def _stated(config: Json) -> list[object] | None:
    """Kinds of layers as one of the settings lists them."""
    kinds = listed(config, "layer_types")
    if kinds is not None:
        return kinds
    ratios = listed(config, "compress_ratios")
    if ratios is not None:
        return [_RATIOS[int(str(ratio))] for ratio in ratios]
    sparse = listed({**config, **(config.get("sparse_attention_config") or {})}, "sparse_attention_freq")
    if sparse is not None:
        return ["minimax_m3_sparse" if is_sparse else "full_attention" for is_sparse in sparse]
    rotary = listed(config, "no_rope_layers")
    if rotary is not None:  # 1 where positions are rotary, and then attention is in chunks
        return ["chunked_attention" if is_rotary else "full_attention" for is_rotary in rotary]
    interval = config.get("full_attention_interval")
    if interval:
        layers = range(1, layer_count(config) + 1)
        return ["linear_attention" if layer % int(interval) else "full_attention" for layer in layers]
    return None


def _everywhere(config: Json) -> str:
    """The kind of all layers of a model that states one window, or none.

    Raises:
        ValueError: it has the window in some layers only, and does not list them.
    """
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return "full_attention"
    if config.get("max_window_layers") not in (None, 0):
        raise ValueError("max_window_layers")
    return "sliding_attention"


def routed_layers(config: Json, *, leads_dense: bool) -> list[bool | None]:
    """Whether every layer has a router: the rules of all families together. None for a layer without any MLP.

    Args:
        leads_dense: the first layers may have none, as config.json has to say.
    """
    blocks = _blocks(config)
    if blocks is not None:
        return [block == "moe" if block in _MLPS else None for block in blocks]
    layers = range(layer_count(config))
    kinds = listed(config, "mlp_layer_types")
    if kinds is not None:
        return [kind in _ROUTED for kind in kinds]
    if isinstance(config.get("moe_layers"), list):
        return [layer in config["moe_layers"] for layer in layers]
    if config.get("interleave_moe_layer_step"):
        return [(layer + 1) % int(config["interleave_moe_layer_step"]) == 0 for layer in layers]
    if leads_dense or isinstance(config.get("moe_layer_freq"), list):
        first = int(config["first_k_dense_replace"]) if leads_dense else 0
        stated = listed(config, "moe_layer_freq")
        every = 1 if stated else int(config.get("moe_layer_freq", 1))
        return [layer >= first and bool(stated[layer] if stated else layer % every == 0) for layer in layers]
    step = int(config.get("decoder_sparse_step", 1))
    dense = config.get("mlp_only_layers") or ()
    return [layer not in dense and (layer + 1) % step == 0 for layer in layers]
