"""What is known of layers whose weights are quantised as soon as they are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


@dataclass
class LayerReloadingInfo:
    restore_device: torch.device
    load_numel_total: int | None = None

    def reset(self) -> None:
        self.load_numel_total = None

    def can_load(self) -> bool:
        return self.load_numel_total is not None


_INFO: WeakKeyDictionary[nn.Module, LayerReloadingInfo] = WeakKeyDictionary()


def get_layerwise_info(layer: nn.Module) -> LayerReloadingInfo:
    if layer not in _INFO:
        _INFO[layer] = LayerReloadingInfo(torch.get_default_device())
    return _INFO[layer]


def _default_weight_loader(*_: Any) -> None:
    """The loader of a tensor that has none of its own."""


def initialize_online_processing(layer: nn.Module) -> None:
    get_layerwise_info(layer).load_numel_total = sum(each.numel() for each in layer.parameters(recurse=False))

    def online_process_loader(*_: Any) -> None:
        raise RuntimeError("the double loads layers whole")

    online_process_loader.__wrapped__ = _default_weight_loader  # type: ignore[attr-defined]
    for each in layer.parameters(recurse=False):
        each.weight_loader = online_process_loader  # type: ignore[attr-defined]


def _get_original_loader(tensor: Any) -> Callable[..., Any]:
    loader: Callable[..., Any] = getattr(tensor, "weight_loader", _default_weight_loader)
    return getattr(loader, "__wrapped__", loader)
