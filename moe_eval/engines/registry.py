"""The engines that can run a checkpoint. An engine's library is imported only if the engine is chosen."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen

if TYPE_CHECKING:
    from moe_eval.engines.base import Engine, EngineSettings
    from moe_eval.engines.serving import Served, ServeSettings
    from moe_eval.machine.hardware import Gpu


@frozen
class EngineKind:
    """The name, installation and abilities of an engine.

    Attributes:
        package: what is imported, and `install` the command that installs it.
        options: the names of EngineSettings.options that it takes, or None if its installed version decides.
        module: the module here whose `load(settings, tokenizer)` returns an Engine, and whose `check(settings, gpus,
            reads_weights)` refuses what it could not load.
        claims: arguments of the harness that are options of this engine under the same name.
        quantises: precisions to which it can quantise a 16-bit checkpoint while it loads.
        routing: the options that make it report routed experts (Engine.routing). If there are any, it is loaded with
            them in a separate process. None if it never reports them.
        captures: the options that make its workers open the captures of Nsight Systems (Engine.capture).
        layer_ranges: the options that put an NVTX range around every layer, or None if it has none.
        expert_parallel: the option that splits experts over GPUs. `is_expert_switch`: it is a switch, not a size.
        traits: the module and name of a served engine's traits, MODULE:NAME.
        imports_ahead: its loads take long to import, and `import_ahead()` of the module of its traits may do so while
            another load holds the GPU.
        traces_server: its server records kernels (Served.profiled).
        server: the module here whose `serve(settings, tokenizer, serving)` returns an engines.serving.Served.
        is_endpoint: it is a server that somebody else started, of which tasks alone are evaluated.
    """

    title: str
    package: str
    install: str
    options: tuple[str, ...] | None
    module: str
    cpu: bool = False
    claims: tuple[str, ...] = ()
    quantises: tuple[str, ...] = ()
    routing: Mapping[str, object] | None = None
    captures: Mapping[str, object] = field(default_factory=dict)
    layer_ranges: Mapping[str, object] | None = None
    expert_parallel: str | None = None
    is_expert_switch: bool = False
    traits: str | None = None
    imports_ahead: bool = False
    is_endpoint: bool = False
    server: str = ""
    traces_server: bool = False

    @property
    def version(self) -> str | None:
        """The version of its library that is installed. None where none is, or where it does not say."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.package)
        return None

    def why_unreadable(self, method: str) -> str | None:
        """Why it does not read a form of checkpoint, as Traits.why_unreadable. The installed version decides."""
        if self.traits is None:
            return None
        module, _, name = self.traits.partition(":")
        reason: str | None = getattr(importlib.import_module(module), name).why_unreadable(method, self.version)
        return reason


_SYNONYMS = {"hf": "transformers", "tensorrt": "trtllm", "tensorrt-llm": "trtllm"}
# model arguments that every engine takes, as fields of EngineSettings or beside them
SHARED = ("tokenizer", "dtype", "device", "revision", "trust_remote_code")
# options of emulation
EMULATION = ("emulate", "scope", "activations", "calibration_windows")
ENGINES = {
    "trtllm": EngineKind(
        "TensorRT-LLM",
        "tensorrt_llm",
        "pip install 'moe-eval[trtllm]' on Linux with an NVIDIA GPU",
        None,
        "moe_eval.engines.trtllm.load",
        server="moe_eval.engines.trtllm.server",
        traits="moe_eval.engines.trtllm.installed:TRTLLM",
        claims=("max_batch_size",),
        layer_ranges={"enable_layerwise_nvtx_marker": True, "cuda_graph_batch_sizes": "none"},
        expert_parallel="moe_expert_parallel_size",
    ),
    "vllm": EngineKind(
        "vLLM",
        "vllm",
        "pip install 'moe-eval[vllm]' on Linux with a GPU",
        None,
        "moe_eval.engines.vllm.load",
        server="moe_eval.engines.vllm.server",
        traces_server=True,
        traits="moe_eval.engines.vllm.installed:VLLM",
        imports_ahead=True,
        quantises=("fp8", "fp8_block"),
        routing={"enable_return_routed_experts": True, "enforce_eager": True},
        captures={"profiler_config": {"profiler": "cuda"}},
        # neither compiled code nor a CUDA graph has ranges, which belong to modules that Python calls
        layer_ranges={"enable_layerwise_nvtx_tracing": True, "enforce_eager": True},
        expert_parallel="enable_expert_parallel",
        is_expert_switch=True,
    ),
    "transformers": EngineKind(
        "Transformers",
        "transformers",
        "pip install transformers",
        ("attn_implementation", "moe_backend", "max_tokens_per_batch", *EMULATION),
        "moe_eval.engines.transformers.load",
        server="moe_eval.engines.transformers.server",
        traces_server=True,
        cpu=True,
        routing={},
    ),
}
# no engines, but arms all the same
ENDPOINTS = {
    "openai": EngineKind(
        "lm-eval's models of OpenAI's interface",
        "tenacity",
        "pip install 'moe-eval[openai]'",
        ("base_url", "chat", "max_length", "num_concurrent", "tokenizer"),
        "moe_eval.engines.endpoint.load",
        is_endpoint=True,
        server="moe_eval.engines.endpoint.serving",
    ),
}


def named(name: str) -> EngineKind:
    """Return the engine of this name, whether or not it can run here."""
    kind = ENGINES.get(name) or ENDPOINTS.get(name)
    if kind is None:
        fix = mended(_SYNONYMS.get(name.lower(), name), ENGINES, f"Choose {', '.join(ENGINES)}.")
        raise UsageError(f"There is no engine {name!r}. {fix}")
    return kind


def check(name: str) -> EngineKind:
    """Return the engine of this name if its library is installed here."""
    kind = named(name)
    if importlib.util.find_spec(kind.package) is None:
        raise UsageError(
            f"The engine {name} needs {kind.title}, which is not installed. Install it ({kind.install}), or choose "
            "Transformers (moe-eval: --engine transformers, lm_eval: --model_args engine=transformers)."
        )
    return kind


def check_options(name: str, options: Mapping[str, object], common: Collection[str] = SHARED) -> None:
    """Refuse options that the engine of this name does not take. `common`: what may be set beside them.

    Raises:
        UsageError: also for a number that is out of its bounds.
    """
    from moe_eval.engines import tables

    tables.check_bounds(options)
    accepted = named(name).options
    if accepted is None:
        return
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        fix = f"Besides the common arguments it takes {', '.join(accepted)}."
        raise UsageError(
            f"The {name} engine knows no argument {', '.join(map(repr, unknown))}. "
            f"{mended(unknown[0], (*accepted, *common), fix)}"
        )


def settings_of(name: str) -> frozenset[str]:
    """The names of EngineSettings.options that this engine takes, as far as they are known before it is imported."""
    from moe_eval.engines import tables

    kind = named(name)
    return tables.settings(name, kind.package) if kind.options is None else frozenset(kind.options)


def check_arm(name: str, settings: EngineSettings, gpus: Sequence[Gpu], *, reads_weights: bool = True) -> None:
    """Refuse an arm that this engine could not load on these GPUs, without its library.

    Args:
        gpus: all that a plan may use.
        reads_weights: whether the weights have to be there.

    Raises:
        UsageError: why it could not.
    """
    check_options(name, settings.options)
    importlib.import_module(named(name).module).check(settings, gpus, reads_weights=reads_weights)


def load(name: str, settings: EngineSettings, tokenizer: Any) -> Engine:
    """Load a checkpoint on the engine of this name."""
    check_options(name, settings.options)
    kind = check(name)
    from moe_eval.machine import guard

    with guard.started_meanwhile() if kind.traits else contextlib.nullcontext():  # served ones start workers
        engine: Engine = importlib.import_module(kind.module).load(settings, tokenizer)
    return engine


def import_ahead(name: str) -> None:
    """Import what a load of this engine needs and no GPU. Errors are those of the library."""
    kind = named(name)
    importlib.import_module(kind.module)
    if kind.traits and kind.imports_ahead:
        importlib.import_module(kind.traits.partition(":")[0]).import_ahead()


def serve(name: str, settings: EngineSettings, tokenizer: Any, serving: ServeSettings) -> Served:
    """Start the server of the engine of this name, and wait until it answers.

    Raises:
        UsageError: the arm cannot be served so, or the port is in use.
        EngineError: the server ended, or did not get ready.
    """
    check_options(name, settings.options)
    kind = check(name)
    served: Served = importlib.import_module(kind.server).serve(settings, tokenizer, serving)
    return served
