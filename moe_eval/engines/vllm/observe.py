"""Labels of what actually runs, read from the built engine rather than from the user's settings."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from moe_eval.engines import weights
from moe_eval.engines.served.package import reach

# the tensors of quantised weights
_QUANTISED = re.compile(r"weight(_scale\w*|_packed)?$")
# quantisations that vLLM makes while it loads, by the end of the method's class
_ONLINE = {
    "Fp8PerTensorOnlineMoEMethod": "FP8 per tensor",
    "Fp8OnlineMoEMethod": "FP8 per tensor",
    "Fp8PerBlockOnlineMoEMethod": "FP8 in blocks of 128x128",
}


def model(llm: Any) -> Any:
    """The model, or None if the engine runs in another process.

    Only in this process LLMEngine has a `model_executor`, and its `driver_worker` is the worker itself.
    """
    if reach(llm, "llm_engine.model_executor.driver_worker") is None or not hasattr(llm, "apply_model"):
        return None
    return llm.apply_model(_identity)[0]


def _identity(module: Any) -> Any:
    return module


def worker(model: Any) -> Literal["in_process", "spawned"]:
    """Where the model runs. It can be reached in this process only."""
    return "spawned" if model is None else "in_process"


def _experts(model: Any) -> Iterator[Any]:
    """The quantisation method of every layer of experts."""
    for module in model.modules() if model is not None else ():
        if hasattr(module, "moe_config") and hasattr(module, "local_num_experts"):
            method = getattr(module, "base_quant_method", None) or getattr(module, "quant_method", None)
            if method is not None:
                yield method


def moe_backend(model: Any) -> str | None:
    """The classes of the experts' methods and the kernels that they chose, such as `Fp8MoEMethod/TRITON`.

    Methods hold the choice as an enumeration in an attribute named `..._backend`. Some choose for every call, by its
    shape. Then the class of the experts names the choices, such as `TritonOrDeepGemmExperts`.
    """
    names: dict[str, None] = {}
    for method in _experts(model):
        backends = (value for name, value in vars(method).items() if name.endswith("_backend"))
        chosen = [backend.name for backend in backends if isinstance(backend, enum.Enum)]
        experts: Any = getattr(method, "experts_cls", None)
        if any(base.__name__ == "FallbackExperts" for base in getattr(experts, "__mro__", ())):
            chosen.append(experts.__name__)
        names["/".join([type(method).__name__, *chosen])] = None
    return "+".join(names) or None


def moe_methods(model: Any) -> tuple[str, ...]:
    """The names of the classes that quantise experts."""
    return tuple(sorted({type(method).__name__ for method in _experts(model)}))


def quant_algo(methods: Collection[str], config: Any, stated: str) -> str:
    """How weights and activations are quantised.

    Args:
        methods: as moe_methods names them, of any rank.
        config: vLLM's VllmConfig.
        stated: what the checkpoint says, `none` if it says nothing.
    """
    quantisation = getattr(config, "quant_config", None)
    if quantisation is None:
        return "none"
    online = " and ".join(_ONLINE[name] for name in sorted(set(methods) & set(_ONLINE)))
    if online:
        return f"{online}, quantised by vLLM while loading, dynamic activations"
    if stated != "none":
        return stated
    requested = reach(config, "model_config.quantization")
    return f"{requested or type(quantisation).__name__}, quantised by vLLM while loading"


def attention_backend(model: Any) -> str | None:
    """The attention implementation of the layers."""
    modules = model.modules() if model is not None else ()
    backends: Iterator[Any] = (getattr(module, "attn_backend", None) for module in modules)
    return "+".join(dict.fromkeys(str(each.get_name()) for each in backends if hasattr(each, "get_name"))) or None


def cuda_graph_batch_sizes(config: Any) -> tuple[int, ...] | None:
    """The sizes that run as CUDA graphs, as vLLM filled them in, or None if it does not say."""
    if reach(config, "compilation_config.cudagraph_mode.name") == "NONE" or reach(config, "model_config.enforce_eager"):
        return ()
    sizes = reach(config, "compilation_config.cudagraph_capture_sizes")
    return None if sizes is None else tuple(sorted(int(size) for size in sizes))


def kv_cache_dtype(config: Any) -> str | None:
    """The type of the key-value cache, where `auto` is the model's own."""
    name = reach(config, "cache_config.cache_dtype")
    return dtype(config) if name == "auto" else None if name is None else str(name)


def kv_cache_tokens(config: Any) -> int | None:
    """Tokens that the key-value cache holds, or None if vLLM does not say.

    Newer versions count them. In older ones the blocks have as many, unless kinds of layers share them (the docstring
    of CacheConfig.kv_cache_size_tokens in vllm/config/cache.py).
    """
    tokens = reach(config, "cache_config.kv_cache_size_tokens")
    kinds = {*(reach(config, "model_config.hf_text_config.layer_types") or ())}
    if tokens is None and len(kinds) < 2 and not reach(config, "model_config.is_hybrid"):
        blocks, size = reach(config, "cache_config.num_gpu_blocks"), reach(config, "cache_config.block_size")
        tokens = blocks * size if blocks and size else None
    return None if tokens is None else int(tokens)


def dtype(config: Any) -> str | None:
    """Torch's name of the type of weights and activations outside quantised layers."""
    kind = reach(config, "model_config.dtype")
    return None if kind is None else str(kind).removeprefix("torch.")


def weight_bytes(model: Any) -> Mapping[str, int] | None:
    """Bytes of the weights by part, or None if the model is in another process."""
    if model is None:
        return None
    # quantisation leaves buffers beside the parameters
    beside = ((name, buffer) for name, buffer in model.named_buffers() if _QUANTISED.search(name))
    return weights.by_part(model, beside)
