"""Random weights on vLLM that spread tokens over the experts as a trained model does.

vLLM's own load_format=dummy draws every tensor from one seed within 0.001 of zero. All tokens then go through the same
experts, and a step reads a fraction of the weights that it reads in practice. Here every tensor's seed is derived from
its name, so that arms of different precisions start from the same values. What is drawn are the unsharded tensors of a
checkpoint, one at a time, and every rank takes its part by vLLM's own rule: all parallel sizes compute one function.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_eval.checkpoint import contents, geometry
from moe_eval.checkpoint.geometry.families import FAMILIES
from moe_eval.engines.vllm import shards
from moe_eval.errors import UsageError

Kind = Literal["ones", "zeros", "rate", "step", "normal"]

LOAD_FORMAT = "moe_eval_random"
_STD = 0.02
_NORM = re.compile(r"(^|[._])(\w*norm\w*|ln_\w+)\.weight$|(^|\.)(\w*norm)$")
_BIAS = re.compile(r"(^|[._])(bias|\w+_bias|sinks)$")
# Recurrent layers: all heads forget alike, so that every parallel size has parts of the same tensor. The rate A is -1,
# of which vLLM keeps the logarithm of its negative or itself, and the step is softplus(-4.6) = 0.01.
_STATES: tuple[tuple[str, Kind], ...] = (("A_log", "zeros"), ("A", "rate"), ("dt_bias", "step"), ("D", "ones"))
_SCALE = re.compile(r"(^|[._])(scale|scalar)$")
# vLLM's norms that multiply with 1 + weight
_FROM_ONE = ("GemmaRMSNorm",)
_VALUES: dict[Kind, float] = {"ones": 1.0, "zeros": 0.0, "rate": -1.0, "step": -4.6}
# model types with tensors in vLLM that are neither matrices nor any of these: tables of experts by token, among others
_STRANGE = ("deepseek_v4", "minimax_m3_vl", "minimax_m3_vl_text")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def take_weights(options: dict[str, object]) -> Literal["checkpoint", "random"]:
    """Take `weights` out of the options."""
    weights = options.pop("weights", None) or "checkpoint"
    if weights not in ("checkpoint", "random"):
        raise UsageError(f"weights={weights} does not exist. Give weights=checkpoint or weights=random.")
    if weights == "random" and "load_format" in options:
        raise UsageError("weights=random and load_format contradict each other. Give only one.")
    return "random" if weights == "random" else "checkpoint"


def check(config: Mapping[str, object], ranks: int) -> None:
    """Refuse a model that random weights do not suit, before it is loaded.

    Args:
        config: config.json.
        ranks: that share the model.

    Raises:
        UsageError: its tensors in vLLM, or how vLLM cuts them, are not known here.
    """
    merged, sizes = contents.text_config(config), geometry.read(config)
    kind = merged.get("model_type")
    if kind in _STRANGE or (kind not in FAMILIES and any(merged.get(name) for name in _EXPERTS)):
        raise UsageError(
            f"weights=random does not know the tensors that vLLM has for the model type {kind}. Give a checkpoint with "
            "weights."
        )
    if ranks > 1 and sizes is not None and any(mixer.state_values for mixer in sizes.mixers):
        raise UsageError(
            f"weights=random does not know how vLLM cuts the recurrent layers of the model type {kind}. Give one GPU, "
            "or a checkpoint with weights."
        )


def seed(name: str) -> int:
    """The seed of a tensor, from its qualified name. It is the same on every machine and in every arm."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def kind(name: str, module: nn.Module | None = None) -> Kind:
    """The content of a tensor of this name: numbers of `_VALUES`, or normal draws.

    It is 1 for the weights of norms and for scales, where the module does not add 1 itself, and 0 for biases.
    """
    last = name.rpartition(".")[2]
    for state, content in _STATES:
        if last == state:
            return content
    if _BIAS.search(name):
        return "zeros"
    if _NORM.search(name):
        return "zeros" if type(module).__name__ in _FROM_ONE else "ones"
    return "ones" if _SCALE.search(name) else "normal"


@torch.no_grad()
def fill(name: str, tensor: Tensor, module: nn.Module | None = None) -> bool:
    """Fill a tensor by its name, and return whether it could be: it is floating and has memory of its own.

    A quantised type is a UsageError, because random values mean nothing for it.
    """
    if tensor.is_meta or not tensor.is_floating_point():
        return False
    if torch.finfo(tensor.dtype).bits < 16:
        raise UsageError(f"weights=random cannot fill {name}, which is quantised already. Give a BF16 configuration.")
    content = kind(name, module)
    if content == "normal":
        tensor.data.normal_(0.0, _STD, generator=torch.Generator(tensor.device).manual_seed(seed(name)))
    else:
        tensor.data.fill_(_VALUES[content])
    return True


@torch.no_grad()
def fill_part(module: nn.Module, name: str, parameter: nn.Parameter, ranks: int) -> bool:
    """Fill a rank's part of a parameter, and return whether it could be.

    The memory beside the parameter is that of one unsharded tensor.

    Args:
        ranks: that share the model. One of several cannot fill what is cut in a way that is not known.
    """
    parts = shards.pieces(module, name, parameter) if kind(name) == "normal" and not parameter.is_meta else None
    if parts is None:
        is_local = ranks == 1 or kind(name) != "normal" or not shards.is_cut(parameter)
        return is_local and fill(name, parameter, module)
    loader: Any = parameter.weight_loader  # type: ignore[attr-defined]  # checked above
    if torch.finfo(parameter.dtype).bits >= 16:
        parameter.data.zero_()  # kernels may want padding, which no checkpoint fills
    for part in parts:
        whole = torch.empty(part.shape, dtype=parameter.dtype, device=parameter.device)
        fill(f"{name}/{part.key}" if part.key else name, whole)
        loader(parameter, whole, **part.arguments)
    return True


def fill_model(
    model: nn.Module, deferred: Callable[[nn.Module], bool], quantise: Callable[..., None], ranks: int = 1
) -> None:
    """Fill every parameter of a model, including those that vLLM creates and quantises while it loads.

    Buffers keep their values (rotary tables, scales of the cache), which come with the model's code.

    Args:
        deferred: whether a module's weights have no memory before they are loaded.
        quantise: `quantise(module, put)` gives such a module its memory, calls `put` and quantises the result.
        ranks: that share the model.
    """
    unfilled: set[str] = set()

    def put(module: nn.Module, prefix: str, visited: set[int]) -> None:
        for name, parameter in module.named_parameters(prefix, recurse=False):
            is_filled = id(parameter) in visited or fill_part(module, name, parameter, ranks)
            if not is_filled and parameter.is_floating_point():
                unfilled.add(name)
            visited.add(id(parameter))

    visited: set[int] = set()  # a head may be the embedding under a second name
    for prefix, module in model.named_modules():
        if deferred(module):
            # quantisation frees the parameters that it replaces, and their ids may come again
            quantise(module, partial(put, module, prefix, set()))
        else:
            put(module, prefix, visited)
    unfilled |= {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if unfilled:
        raise UsageError(
            f"weights=random left {len(unfilled)} tensors of this model unfilled ({min(unfilled)} is the first). Give "
            "a checkpoint with weights, or one GPU."
        )


def register() -> str:
    """Teach vLLM the load format, once a process, and return its name."""
    try:
        loaders = importlib.import_module("vllm.model_executor.model_loader")
        layerwise = importlib.import_module("vllm.model_executor.model_loader.reload.layerwise")
        meta = importlib.import_module("vllm.model_executor.model_loader.reload.meta")
        parts = (loaders.DummyModelLoader, layerwise.get_layerwise_info, layerwise._get_original_loader)
        return _register(loaders, *parts, meta.materialize_layer)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"This vLLM loads weights in a way that weights=random does not know ({error}). Use vLLM 0.22."
        ) from error


def _ranks() -> int:
    """How many ranks share this process's model."""
    state = importlib.import_module("vllm.distributed.parallel_state")
    return int(state.get_tensor_model_parallel_world_size()) * int(state.get_pp_group().world_size)


def _register(loaders: Any, base: Any, info_of: Any, original_loader: Any, materialize: Any) -> str:
    """Register a loader that differs from vLLM's dummy loader in the content of tensors, on both of its paths."""

    def deferred(module: nn.Module) -> bool:
        return bool(info_of(module).can_load())

    def quantise(module: Any, put: Callable[[], None]) -> None:
        info = info_of(module)
        materialize(module, info)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.weight_loader = original_loader(tensor)
        put()
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)
        info.reset()

    class RandomLoader(base):  # type: ignore[misc]  # a class of the installed version
        """Fills a model with random weights."""

        def load_weights(self, model: nn.Module, model_config: Any) -> None:
            fill_model(model, deferred, quantise, _ranks())

    if LOAD_FORMAT not in getattr(loaders, "_LOAD_FORMAT_TO_MODEL_LOADER", {}):
        loaders.register_model_loader(LOAD_FORMAT)(RandomLoader)
    return LOAD_FORMAT
