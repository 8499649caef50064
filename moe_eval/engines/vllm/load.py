"""Builds the vLLM engine, or says in one sentence why it cannot be built here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import end_tokens
from moe_eval.engines.vllm import arguments, installed, observe, random_weights, sizing
from moe_eval.engines.vllm.checks import ONLINE, Model, check_machine, read_model, take_placement, take_weights
from moe_eval.engines.vllm.engine import Session, VllmEngine, release
from moe_eval.engines.vllm.failures import explained
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

# most sequences at once where neither the user nor vLLM's hardware table has said: for the size of the cache alone
_SEQUENCES = 256
# a router is a linear layer for vLLM and would be quantised with the others; checkpoints leave it in 16 bits
_ROUTER = {"ignore": ["re:.*\\.gate$"]}
_DUMMY = "random weights (load_format=dummy)"


def load(settings: EngineSettings, tokenizer: Any) -> VllmEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are vLLM's EngineArgs by name, `worker` (in_process or spawned), `weights` (checkpoint or
            random) and `cuda_graph_batch_sizes`; what the installed version lacks is refused. With precision fp8 or
            fp8_block a 16-bit checkpoint is quantised while it loads.
        tokenizer: of Transformers; for stop texts and the end of texts.

    Raises:
        UsageError: names what the checkpoint, the machine or the installed version lacks.
    """
    options = dict(settings.options)
    weights = take_weights(options)
    placement = take_placement(options, weights)
    model = read_model(settings, weights)
    check_machine(settings, options, model, placement.world)
    found = installed.load(in_process=placement.in_process)

    vocabulary = int(model.config.get("vocab_size") or len(tokenizer))
    positions = int(model.config.get("max_position_embeddings") or 2048)
    limits = sizing.limits(options, settings.max_length, positions)
    given = arguments.build(
        found,
        options | {"max_model_len": limits.max_model_len},
        _defaults(settings, options, model, limits, vocabulary=vocabulary, world=placement.world),
    )
    given |= _weights(found, model)
    dummy = str(options.get("load_format", "")).lower() == "dummy"
    if dummy:
        log.warning(
            "load_format=dummy: all tokens go through the same experts, so neither scores nor times of this run say "
            "anything of the checkpoint; weights=random spreads them."
        )
    elif weights == "random":
        log.warning("weights=random: the weights are made up, so no score of this run says anything of the checkpoint.")
    session = _session(found, settings, model, tokenizer, given)
    try:
        facts = _facts(settings, model, session, given, window=limits.window, vocabulary=vocabulary)
    except BaseException:
        session.close()
        raise
    if dummy:
        facts = replace(facts, weights="random", fingerprint=_DUMMY)
    profiler = given.get("profiler_config")
    folder = profiler.get("torch_profiler_dir") if isinstance(profiler, Mapping) else None
    return VllmEngine(
        facts,
        session,
        end_tokens(model.folder, tokenizer),
        tells_experts=bool(given.get("enable_return_routed_experts")),
        profiles=Path(folder) if folder else None,
    )


def _defaults(
    settings: EngineSettings,
    options: Mapping[str, Any],
    model: Model,
    limits: sizing.Limits,
    *,
    vocabulary: int,
    world: int,
) -> dict[str, Any]:
    """What this engine sets where the user does not."""
    # without its statistics vLLM keeps no times of requests; of log-probabilities it returns 20 at most unless told
    defaults: dict[str, Any] = {"disable_log_stats": False, "max_logprobs": -1}
    if settings.batch_size is not None:
        defaults["max_num_seqs"] = settings.batch_size
    cache = None
    if settings.kv_tokens is not None and "kv_cache_memory_bytes" not in options:
        sequences = int(str(options.get("max_num_seqs") or settings.batch_size or _SEQUENCES))
        cache = sizing.cache_bytes(
            model.config, options, model.dtype, max(settings.kv_tokens, limits.max_model_len), sequences
        )
    if cache is not None:
        defaults["kv_cache_memory_bytes"] = cache
    if cache is not None or "kv_cache_memory_bytes" in options:
        return defaults | {"gpu_memory_utilization": sizing.LITTLE}
    smallest = min((gpu.memory_bytes for gpu in hardware.gpus()[:world]), default=None)
    return defaults | sizing.memory(smallest, vocabulary, limits.window)


def _weights(found: installed.Library, model: Model) -> dict[str, Any]:
    """The arguments that say where weights come from and how they are quantised."""
    given: dict[str, Any] = {}
    if model.weights == "random":
        given["load_format"] = random_weights.register()
    if model.online:
        method = ONLINE[model.precision]
        if method not in found.quantizations or "quantization_config" not in found.fields:
            raise UsageError(
                f"vLLM {found.version} does not quantise to {model.precision} while it loads; install 0.22, or give a "
                f"checkpoint that holds {model.precision}."
            )
        given |= {"quantization": method, "quantization_config": _ROUTER}
    return given


def _session(
    found: installed.Library, settings: EngineSettings, model: Model, tokenizer: Any, given: Mapping[str, Any]
) -> Session:
    common: dict[str, Any] = {
        "model": model.name,
        "dtype": model.dtype if model.carried.method == "none" else settings.dtype,
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    if str(tokenizer.name_or_path) != model.name:
        common["tokenizer"] = str(tokenizer.name_or_path)
    try:
        llm = found.module.LLM(**common, **given)
    except Exception as error:
        failure = explained(error, found.version, settings.checkpoint, "loading")
        error.__traceback__ = None  # its frames hold what was allocated
        release()
        raise failure from error
    engine = llm.llm_engine
    # log lines and counters for a server: some time in every step, and nobody reads them here
    if getattr(engine, "logger_manager", None) is not None:
        engine.logger_manager = None
    most = getattr(getattr(engine.vllm_config, "scheduler_config", None), "max_num_seqs", None) or _SEQUENCES
    # one set running and the next one waiting
    return Session(found, llm, settings.checkpoint, most_requests=2 * int(most))


def _facts(
    settings: EngineSettings,
    model: Model,
    session: Session,
    given: Mapping[str, Any],
    *,
    window: int,
    vocabulary: int,
) -> EngineFacts:
    """The labels, from what was built where it can be seen."""
    config, seen = session.llm.llm_engine.vllm_config, observe.model(session.llm)
    parallel = getattr(config, "parallel_config", None)
    world = int(getattr(parallel, "world_size", 1))
    gpus = hardware.gpus()[:world]
    asked, ran = str(given.get("moe_backend", "auto")), observe.moe_backend(seen)
    kernels = (ran or asked).upper().replace("+", "/").split("/")
    weight_only = "MARLIN" if "MARLIN" in kernels else None
    count = f"{world} x " if world > 1 else ""
    return EngineFacts(
        name="vllm",
        version=session.installed.version,
        checkpoint=settings.checkpoint,
        fingerprint=model.fingerprint,
        architecture=str(next(iter(model.config.get("architectures") or ["unknown"]))),
        vocabulary=vocabulary,
        precision=precision.executed(model.precision, weight_only),
        emulated="EMULATION" in kernels,
        dtype=observe.dtype(config) or model.dtype,
        device="cuda" if gpus else "cpu",
        device_name=f"{count}{gpus[0].name}" if gpus else "cpu",
        max_length=window,
        worker=observe.worker(seen),
        attention_backend=observe.attention_backend(seen),
        moe_backend_requested=asked,
        moe_backend_observed=ran,
        kv_cache_dtype=observe.kv_cache_dtype(config),
        cuda_graph_batch_sizes=observe.cuda_graph_batch_sizes(config),
        cuda_graph_padding=True,  # to the next size, always
        scores_from="vLLM's own prompt log-probabilities, the tokens they are about checked in every request",
        quant_algo=observe.quant_algo(seen, config, model.carried.method),
        weights=model.weights,
        max_batch=session.most_requests // 2,
        max_step_tokens=getattr(getattr(config, "scheduler_config", None), "max_num_batched_tokens", None),
        gpus=world if gpus else 0,
        weight_bytes=observe.weight_bytes(seen),
        arguments=arguments.plain(given),
    )
