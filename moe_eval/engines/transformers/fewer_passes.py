"""Layers of a model on a GPU in fewer passes over its memory.

- RMS norms: torch has one kernel. Transformers' classes are six operations, which each read and write all states.
- Experts: their outputs are weighted, brought back into the order of tokens and added by one operation, the sum of an
  embedding bag. Transformers writes them three times, and rounds every weighted output.

A layer is changed if the change gives the same on a trial, up to the rounding of its dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_TRIED = 16  # tokens
_ROUNDINGS = 8  # of the largest output, that a trial's outputs may differ by
_grouped_mm: Any = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


@torch.inference_mode()
def shorten(model: nn.Module) -> None:
    """Change the layers of a model that this file knows, in place."""
    module: Any
    for module in model.modules():
        if _is_norm(module):
            _change(module, _norm, _states(module.weight, module.weight.shape[0]))
        elif _is_experts(module):
            weight = module.down_proj
            shape = (_TRIED, 2)
            chosen = torch.arange(2 * _TRIED, device=weight.device).view(shape) * 7 % weight.shape[0]
            shares = torch.linspace(0.1, 0.9, 2 * _TRIED, device=weight.device, dtype=weight.dtype).view(shape)
            width = weight.shape[2 if module.is_transposed else 1]
            _change(module, _experts, _states(weight, width), chosen, shares)


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and isinstance(weight, nn.Parameter) and weight.ndim == 1


def _is_experts(module: Any) -> bool:
    """Whether a module is a class of experts of Transformers 5, whose products are those of grouped_mm."""
    parts = (getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None))
    are_stacked = all(isinstance(part, nn.Parameter) and part.ndim == 3 for part in parts)
    others = ("has_bias", "has_post_expert_norm", "_is_expert_parallel")
    is_plain = getattr(module, "has_gate", False) and not any(getattr(module, name, False) for name in others)
    backend = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return are_stacked and is_plain and backend == "grouped_mm" and _grouped_mm is not None


def _change(module: Any, forward: Callable[..., Tensor], *trial: Tensor) -> None:
    try:
        expected, computed = module(*trial), forward(module, *trial)
    except (AttributeError, RuntimeError, TypeError):  # a class of other arguments or fields, or another GPU
        return
    allowed = _ROUNDINGS * torch.finfo(expected.dtype).eps * expected.abs().max()
    if computed.dtype == expected.dtype and bool((computed - expected).abs().max() <= allowed):
        module.forward = MethodType(forward, module)  # a copy of the module gets one of its own


def _states(weight: Tensor, width: int) -> Tensor:
    values = torch.arange(_TRIED * width, device=weight.device) * 37 % 101
    return (values / 50 - 1).to(weight.dtype).view(_TRIED, width)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    normed: Tensor = module.weight * functional.rms_norm(hidden_states, module.weight.shape, eps=eps)
    return normed


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The sum of every token's experts, shape (tokens, width).

    Args:
        hidden_states: shape (tokens, width).
        top_k_index, top_k_weights: the experts of every token and their weights, shape (tokens, experts of a token).
    """
    stacked = (module.gate_up_proj, module.down_proj)
    gate_up, down = stacked if module.is_transposed else (weight.transpose(1, 2) for weight in stacked)
    numbers, order = top_k_index.flatten().sort()
    experts = torch.arange(len(down), device=numbers.device)
    ends = torch.searchsorted(numbers, experts, right=True, out_int32=True)
    rows = hidden_states.index_select(0, order // top_k_index.shape[1])
    outputs: Tensor = _grouped_mm(module._apply_gate(_grouped_mm(rows, gate_up, offs=ends)), down, offs=ends)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    shares = top_k_weights.to(outputs.dtype)
    return functional.embedding_bag(places.view_as(top_k_index), outputs, per_sample_weights=shares, mode="sum")
