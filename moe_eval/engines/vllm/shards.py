"""The unsharded tensors that one parameter of vLLM is loaded from, and the call that takes a rank's part of each.

Sizes come from the layer's own attributes, and the layer's own weight loader cuts: so every parallel size has parts of
the same tensors. Attributes are those of vLLM 0.22 (vllm/model_executor/layers/linear.py, vocab_parallel_embedding.py
and fused_moe/layer.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from torch import Tensor

from moe_eval.frozen import frozen


@frozen
class Piece:
    """One unsharded tensor of a checkpoint.

    Attributes:
        key: names it within its parameter. Empty for the whole of it.
        arguments: of the weight loader, after the parameter and the tensor.
    """

    key: str
    shape: tuple[int, ...]
    arguments: Mapping[str, object] = field(default_factory=dict)


def pieces(module: Any, name: str, parameter: Tensor) -> Iterator[Piece] | None:
    """What a parameter is loaded from through its own weight loader, in order.

    Args:
        module: that holds the parameter.
        name: qualified, for the loader.

    Returns:
        None where the layer does not cut it, or in a way that is not known here.
    """
    if not _cuts(module, parameter):
        return None
    last = name.rpartition(".")[2]
    if hasattr(module, "local_num_experts"):
        return _experts(module, name, parameter) if last in ("w13_weight", "w2_weight") else None
    if last != "weight":
        return None
    rows = _rows(module)
    if rows is not None:
        rest = tuple(parameter.shape[1:])
        return (Piece(str(part), (size, *rest), {"loaded_shard_id": part}) for part, size in rows.items())
    shape = _whole(module, parameter)
    return None if shape is None else iter([Piece("", shape)])


def _rows(module: Any) -> Mapping[str | int, int] | None:
    """The rows of every matrix of a merged layer, by what its loader calls them."""
    if hasattr(module, "total_num_kv_heads"):
        head, kv_heads = int(module.head_size), int(module.total_num_kv_heads)
        values = int(getattr(module, "v_head_size", head))
        return {"q": int(module.total_num_heads) * head, "k": kv_heads * head, "v": kv_heads * values}
    return dict(enumerate(map(int, module.output_sizes))) if hasattr(module, "output_sizes") else None


def _whole(module: Any, parameter: Tensor) -> tuple[int, ...] | None:
    """The unsharded shape of an embedding or a linear layer."""
    if hasattr(module, "org_vocab_size"):
        return (int(module.org_vocab_size), *parameter.shape[1:])
    is_linear = hasattr(module, "output_size") and hasattr(module, "input_size") and parameter.ndim == 2
    return (int(module.output_size), int(module.input_size)) if is_linear else None


def is_cut(parameter: Tensor) -> bool:
    """Whether a loader of its own, rather than a plain copy, fills a parameter."""
    return getattr(getattr(parameter, "weight_loader", None), "__name__", "default_weight_loader") not in (
        "default_weight_loader",
        "_default_weight_loader",
    )


def _cuts(module: Any, parameter: Tensor) -> bool:
    """Whether the loader is the module's own. A model may have put one in its place, with cuts of its own."""
    loader = getattr(parameter, "weight_loader", None)
    return inspect.ismethod(loader) and loader.__self__ is module


def _experts(module: Any, name: str, parameter: Tensor) -> Iterator[Piece]:
    """The matrices of every expert, of all ranks: the loader leaves out those of others."""
    is_up = name.endswith("w13_weight")
    config = module.moe_config
    is_gated = bool(getattr(config, "is_act_and_mul", True))
    _, rows, columns = parameter.shape
    local = rows // (2 if is_gated else 1) if is_up else columns
    unpadded = getattr(config, "intermediate_size_per_partition_unpadded", None)
    inner = int(unpadded if isinstance(unpadded, int) else local) * int(module.tp_size)
    hidden = getattr(config, "hidden_dim_unpadded", None)
    outer = int(hidden if isinstance(hidden, int) else (columns if is_up else rows))
    parts = (("w1", "w3") if is_gated else ("w1",)) if is_up else ("w2",)
    for expert in range(int(module.global_num_experts)):
        for part in parts:
            arguments = {"weight_name": name, "shard_id": part, "expert_id": expert}
            yield Piece(f"{expert}/{part}", (inner, outer) if is_up else (outer, inner), arguments)
