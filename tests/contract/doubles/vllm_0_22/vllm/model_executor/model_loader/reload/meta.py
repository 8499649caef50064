"""Memory for tensors that have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def materialize_layer(layer: nn.Module, info: Any) -> None:
    for name, tensor in list(layer.named_parameters(recurse=False)):
        if tensor.is_meta:
            made = nn.Parameter(
                torch.empty(tensor.shape, dtype=tensor.dtype, device=info.restore_device), requires_grad=False
            )
            made.__dict__.update(tensor.__dict__)
            setattr(layer, name, made)
