"""Reads a language model's sizes from config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_eval.checkpoint.contents import Json, text_config
from moe_eval.checkpoint.geometry.families import FAMILIES, Family
from moe_eval.checkpoint.geometry.mixers import Mixer
from moe_eval.checkpoint.geometry.pattern import mixer_kinds, routed_layers
from moe_eval.checkpoint.geometry.settings import size
from moe_eval.checkpoint.geometry.sizes import Geometry, Params


def read(config: Mapping[str, object]) -> Geometry | None:
    """Read the sizes of a model with a router, or those of the language model in a larger model.

    None if the model type is not known here, a size is missing, or a layer is of a kind that is not known. A wrong
    floor is worse than none.
    """
    merged = text_config(config)
    family = FAMILIES.get(str(merged.get("model_type")))
    if family is None:
        return None
    try:
        # the setting that ties them is outside the language model's own section
        tied = bool(config.get("tie_word_embeddings", merged.get("tie_word_embeddings", family.is_tied)))
        return _read(merged, family, tied)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration):
        return None


def routers(config: Mapping[str, object]) -> tuple[int, ...] | None:
    """The indices of layers with a router. None where `read` gives none."""
    merged = text_config(config)
    if read(config) is None:
        return None
    routed = routed_layers(merged, leads_dense=FAMILIES[str(merged.get("model_type"))].leads_dense)
    return tuple(layer for layer, has_router in enumerate(routed) if has_router)


def _read(config: Json, family: Family, tied: bool) -> Geometry:
    hidden, vocabulary = size(config, "hidden_size"), size(config, "vocab_size")
    experts = size(config, "num_experts", "num_local_experts", "n_routed_experts")
    routed = routed_layers(config, leads_dense=family.leads_dense)
    mixers = _mixers(config, family)
    sparse = sum(map(bool, routed))
    if not sparse or config.get("enable_moe_block") is False:
        raise ValueError("no layer has a router")
    # where experts work on a narrower stream, two projections lead to it and back
    width, latent = _width(config), config.get("moe_latent_size")
    expert_params = family.matrices * (int(latent) if latent else hidden) * width
    dense = sparse * (experts * hidden + _shared(config, family) + (2 * hidden * int(latent) if latent else 0))
    dense += _dense(config, family, routed) + _streams(config, len(routed))
    table = 0 if tied else vocabulary * hidden
    layer_width = int(config.get("hidden_size_per_layer_input") or 0) * len(routed)
    if layer_width:  # Gemma's further vectors of a token, one for every layer
        dense += 3 * hidden * layer_width
        table += size(config, "vocab_size_per_layer_input") * layer_width
    return Geometry(
        layers=len(routed),
        moe_layers=sparse,
        sums=len(mixers) + sum(has_router is not None for has_router in routed),
        experts=experts,
        top_k=size(config, "num_experts_per_tok", "top_k_experts"),
        hidden=hidden,
        vocabulary=vocabulary,
        tied=tied,
        expert_params=expert_params,
        params=Params(
            experts=sparse * experts * expert_params,
            attention=sum(mixer.params for mixer in mixers),
            dense=dense,
            head=vocabulary * hidden,
            embedding=table,
        ),
        mixers=_grouped(mixers),
    )


def _mixers(config: Json, family: Family) -> list[Mixer]:
    """Of every layer that mixes tokens, in order."""
    mixers = []
    for layer, kind in enumerate(mixer_kinds(config, family.pattern)):
        if kind is not None:
            reader = family.linear if kind == "linear_attention" else family.mixer
            if reader is None:
                raise ValueError(kind)
            mixers.append(reader(config, kind, layer))
    return mixers


def _grouped(mixers: Sequence[Mixer]) -> tuple[Mixer, ...]:
    """Alike layers together, in the order of the first."""
    return tuple(replace(mixer, layers=mixers.count(mixer)) for mixer in dict.fromkeys(mixers))


def _width(config: Json) -> int:
    """Of an expert."""
    return size(config, "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size")


def _shared(config: Json, family: Family) -> int:
    """Parameters of the shared experts of a layer with a router, which every token uses."""
    hidden = size(config, "hidden_size")
    count = int(config[family.shared] or 0) if isinstance(family.shared, str) else family.shared
    width = size(config, family.shared_width) if family.shared_width else _width(config)
    return count * family.matrices * hidden * width + (hidden if family.has_shared_gate else 0)


def _dense(config: Json, family: Family, routed: Sequence[bool | None]) -> int:
    """Parameters of all MLPs without a router."""
    count = len([has_router for has_router in routed if has_router is False or family.has_dense_beside])
    if not count:
        return 0
    width = size(config, "intermediate_size_mlp", "dense_intermediate_size", "intermediate_size")
    return count * family.matrices * size(config, "hidden_size") * width


def _streams(config: Json, layers: int) -> int:
    """Parameters of hyper-connections (arXiv:2409.19606), which mix several residual streams around every sublayer.

    From all streams come the weights that read, write and mix them, and at the end those that read them alone.
    """
    streams = int(config.get("hc_mult") or 0)
    return streams * size(config, "hidden_size") * streams * (2 * layers * (2 + streams) + 1)
