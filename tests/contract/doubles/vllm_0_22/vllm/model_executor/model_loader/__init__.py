"""Loaders by load format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...double.layers import dummy_fill, requantise
from .reload.layerwise import get_layerwise_info
from .reload.meta import materialize_layer


class BaseModelLoader(ABC):
    """What loaders have in common."""

    def __init__(self, load_config: Any) -> None:
        self.load_config = load_config

    @abstractmethod
    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Give the model its weights."""

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        from ...double.model import build

        model = build(vllm_config)
        self.load_weights(model, model_config)
        for module in model.modules():
            method = getattr(module, "quant_method", None)
            if getattr(method, "uses_meta_device", False) and get_layerwise_info(module).can_load():
                raise RuntimeError(f"{type(module).__name__} was never loaded")
        return model.eval()


class DummyModelLoader(BaseModelLoader):
    """The same draw for every tensor."""

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        for layer in model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                materialize_layer(layer, info)
                for tensor in layer.parameters(recurse=False):
                    dummy_fill(tensor)
                requantise(layer)
                info.reset()
            else:
                for tensor in layer.state_dict().values():
                    dummy_fill(tensor)


class DefaultModelLoader(BaseModelLoader):
    """A checkpoint, as Transformers reads it."""

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        weights = model.checkpoint()
        with torch.no_grad():
            for prefix, layer in model.named_modules():
                info = get_layerwise_info(layer)
                if info.can_load():
                    materialize_layer(layer, info)
                for name, parameter in layer.named_parameters(prefix, recurse=False):
                    parameter.copy_(weights[name])
                if info.can_load():
                    requantise(layer)
                    info.reset()


_LOAD_FORMAT_TO_MODEL_LOADER: dict[str, type[BaseModelLoader]] = {
    "auto": DefaultModelLoader,
    "safetensors": DefaultModelLoader,
    "dummy": DummyModelLoader,
}


def register_model_loader(load_format: str) -> Callable[[type[BaseModelLoader]], type[BaseModelLoader]]:
    def wrapper(loader: type[BaseModelLoader]) -> type[BaseModelLoader]:
        if not issubclass(loader, BaseModelLoader):
            raise ValueError("a model loader is a subclass of BaseModelLoader")
        _LOAD_FORMAT_TO_MODEL_LOADER[load_format] = loader
        return loader

    return wrapper


def get_model_loader(load_config: SimpleNamespace) -> BaseModelLoader:
    if load_config.load_format not in _LOAD_FORMAT_TO_MODEL_LOADER:
        raise ValueError(f"Load format `{load_config.load_format}` is not supported")
    return _LOAD_FORMAT_TO_MODEL_LOADER[load_config.load_format](load_config)
