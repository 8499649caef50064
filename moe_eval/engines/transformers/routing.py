"""Which experts a Transformers model sends every token to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moe_eval.engines.head import body
from moe_eval.errors import UsageError

# routers add these to the scores that they choose by, but not to those that they weigh with
_CORRECTIONS = ("e_score_correction_bias", "expert_bias")


@torch.inference_mode()
def experts(model: Any, tokens: list[int]) -> Tensor:
    """The experts of tokens that are read at once, int16, shape (tokens, layers with a router, top k).

    They are what the layers' experts are called with. Where a class does not pass them on, they are the largest of the
    router's logits.

    Raises:
        UsageError: the model has no experts, or does not tell which it chooses.
    """
    with _called(model) as calls:
        ids = torch.tensor([tokens], device=model.device)
        body(model)(input_ids=ids, use_cache=False)
    chosen = calls or _by_logits(model, ids)
    return torch.stack([layer.reshape(len(tokens), -1) for layer in chosen], dim=1).to(torch.int16).cpu()


@contextmanager
def _called(model: Any) -> Iterator[list[Tensor]]:
    """Collect the indices that experts are called with, layer by layer."""
    calls: list[Tensor] = []

    def keep(_module: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        values = (*args, *kwargs.values())
        indices = (value for value in values if isinstance(value, Tensor) and not value.is_floating_point())
        calls.extend(list(indices)[:1])

    modules = (module for name, module in model.named_modules() if name.endswith(".experts"))
    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _by_logits(model: Any, ids: Tensor) -> list[Tensor]:
    config, name = model.config, type(model).__name__
    top_k = getattr(config, "num_experts_per_tok", None)
    names = (name for name, _ in (*model.named_parameters(), *model.named_buffers()))
    # experts of groups, and experts chosen by a score that is not the logit itself
    is_grouped = getattr(config, "n_group", None) is not None
    if top_k is None or is_grouped or any(name.endswith(_CORRECTIONS) for name in names):
        raise UsageError(f"The router's logits of {name} do not determine its experts.")
    out = body(model)(input_ids=ids, use_cache=False, output_router_logits=True)
    # a layer without a router has no place, or its place is None
    logits = [layer for layer in getattr(out, "router_logits", None) or () if layer is not None]
    if not 0 < len(logits) <= config.num_hidden_layers:
        raise UsageError(f"{name} does not return the logits of a router in Transformers.")
    return [layer.topk(top_k, dim=-1).indices for layer in logits]
