"""The engines that can run a checkpoint. An engine's library is imported only when it is chosen."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_eval.errors import UsageError

if TYPE_CHECKING:
    from moe_eval.engines.base import Engine, EngineSettings


@dataclass(frozen=True)
class EngineKind:
    """How to name, find and install an engine.

    Attributes:
        title: as its makers write it.
        package: what is imported.
        install: how a user gets that package.
        options: the names of EngineSettings.options that it takes; None where its installed version decides.
        module: the module here whose `load(settings, tokenizer)` returns an Engine.
        cpu: whether it also runs without a GPU.
        claims: arguments of the harness that are options of this engine under the same name.
        quantises: precisions to which it can quantise a checkpoint in 16 bits while it loads it.
        routing: the options with which it is loaded to tell routed experts (Engine.routing), in a process of its own
            where there are any; None where it never tells.
        layer_ranges: the options that put an NVTX range around every layer; None where it cannot.
    """

    title: str
    package: str
    install: str
    options: tuple[str, ...] | None
    module: str
    cpu: bool = False
    claims: tuple[str, ...] = ()
    quantises: tuple[str, ...] = ()
    routing: Mapping[str, Any] | None = None
    layer_ranges: Mapping[str, Any] | None = None


ENGINES = {
    "trtllm": EngineKind(
        "TensorRT-LLM",
        "tensorrt_llm",
        "pip install 'moe-eval[trtllm]' on Linux with an NVIDIA GPU",
        None,
        "moe_eval.engines.trtllm.load",
        claims=("max_batch_size",),
        layer_ranges={"enable_layerwise_nvtx_marker": True, "cuda_graph_batch_sizes": "none"},
    ),
    "vllm": EngineKind(
        "vLLM",
        "vllm",
        "pip install 'moe-eval[vllm]' on Linux with a GPU",
        None,
        "moe_eval.engines.vllm.load",
        quantises=("fp8", "fp8_block"),
        routing={"enable_return_routed_experts": True, "enforce_eager": True},
        # ranges are those of modules that Python calls: neither compiled code nor a CUDA graph has any
        layer_ranges={"enable_layerwise_nvtx_tracing": True, "enforce_eager": True},
    ),
    "transformers": EngineKind(
        "Transformers",
        "transformers",
        "pip install transformers",
        (
            *("attn_implementation", "moe_backend", "max_tokens_per_batch"),
            *("emulate", "scope", "activations", "calibration_windows"),
        ),
        "moe_eval.engines.transformers.load",
        cpu=True,
        routing={},
    ),
}


def named(name: str) -> EngineKind:
    """Return the engine of this name, whether or not it can run here.

    Raises:
        UsageError: there is no such engine.
    """
    kind = ENGINES.get(name)
    if kind is None:
        raise UsageError(f"There is no engine {name!r}; choose {', '.join(ENGINES)}.")
    return kind


def check(name: str) -> EngineKind:
    """Return the engine of this name if it can run here.

    Raises:
        UsageError: there is no such engine, or its library is not installed.
    """
    kind = named(name)
    if importlib.util.find_spec(kind.package) is None:
        raise UsageError(
            f"The engine {name} needs {kind.title}, which is not installed: {kind.install}, "
            "or run this checkpoint on Transformers (engine=transformers among lm_eval's --model_args, --engine "
            "transformers of moe-eval)."
        )
    return kind


def check_options(name: str, options: Iterable[str]) -> None:
    """Refuse options that the engine of this name does not take.

    Raises:
        UsageError: with those it takes.
    """
    taken = named(name).options
    if taken is None:
        return
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise UsageError(
            f"The {name} engine knows no argument {', '.join(map(repr, unknown))}; besides the common ones it takes "
            f"{', '.join(taken)}."
        )


def load(name: str, settings: EngineSettings, tokenizer: Any) -> Engine:
    """Load a checkpoint on the engine of this name.

    Raises:
        UsageError: the engine or the checkpoint cannot do what was asked.
    """
    check_options(name, settings.options)
    engine: Engine = importlib.import_module(check(name).module).load(settings, tokenizer)
    return engine
