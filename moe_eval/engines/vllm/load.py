"""Builds the vLLM engine."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents, geometry, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag, number, seconds
from moe_eval.engines.requests import end_tokens, stated_ends
from moe_eval.engines.served import labels
from moe_eval.engines.served import plan as plans
from moe_eval.engines.served.arguments import Arguments
from moe_eval.engines.served.checkpoint import Model
from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.served.package import describe_failure, reach
from moe_eval.engines.served.plan import Plan
from moe_eval.engines.vllm import arguments, installed, observe, random_weights, rank, sizing
from moe_eval.engines.vllm.engine import Session, VllmEngine, release
from moe_eval.engines.vllm.installed import CAUSE, VLLM
from moe_eval.engines.vllm.rank_processes import Ranks
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

# sequences at once by default: only for the size of the cache, vLLM's hardware table decides what runs
_SEQUENCES = 256
# vLLM captures graphs for 512 tokens at most, and for twice max_num_seqs if that is less (_set_cudagraph_sizes of
# vllm/config/vllm.py, 0.22). A server of its defaults has 512. A batch of one would have 2, and read its prompt without
_GRAPH_TOKENS = 512
_GRAPHS = {"compilation_config", "cuda_graph_batch_sizes", "enforce_eager", "max_cudagraph_capture_size"}
# vLLM would quantise a router like every linear layer, and checkpoints leave it in 16 bits
_ROUTER = {"ignore": ["re:.*\\.gate$"]}


def load(settings: EngineSettings, tokenizer: Any) -> VllmEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are vLLM's EngineArgs by name, `worker` (in_process or spawned), `weights` (checkpoint or
            random), `cuda_graph_batch_sizes` and `stall_timeout`. With precision fp8 or fp8_block a 16-bit
            checkpoint is quantised while it loads.
        tokenizer: of Transformers, for stop texts and the end of texts.
    """
    options = dict(settings.options)
    weights = random_weights.take_weights(options)
    stall_seconds = seconds(options, "stall_timeout")
    if stall_seconds is not None:
        os.environ[installed.STEP_LIMIT] = str(math.ceil(stall_seconds))
    place = plans.take_placement(VLLM, options)
    plan = plans.make(VLLM, settings, options, place, tokenizer, weights=weights)
    if weights == "random":
        random_weights.check(plan.model.config, place.world)
    library = installed.load(in_process=place.in_process)
    limits = sizing.limits(options, settings.max_length, plan.model.positions)
    library_options = options | {"max_model_len": limits.max_model_len}
    constructor = arguments.build(library, library_options, _defaults(plan, limits))
    constructor = {**constructor, **weight_arguments(library, plan.model)}
    profiler = constructor.get("profiler_config")
    profiler = profiler if isinstance(profiler, Mapping) else {}
    trace_folder = profiler.get("torch_profiler_dir")
    _warn(plan)
    session = _session(plan, library, constructor, tokenizer, None if place.in_process else WorkerOutput())
    try:
        facts = _facts(plan, session, constructor, limits.window)
    except BaseException:
        session.close()
        raise
    return VllmEngine(
        facts,
        session,
        end_tokens(tokenizer, stated_ends(plan.model.folder)),
        reports_experts=bool(constructor.get("enable_return_routed_experts")),
        trace_folder=Path(trace_folder) if trace_folder else None,
        opens_captures=profiler.get("profiler") == "cuda",
        routers=geometry.routers(plan.model.config),
    )


def check(settings: EngineSettings, gpus: Sequence[hardware.Gpu], *, reads_weights: bool = True) -> None:
    """Refuse what `load` would refuse on these GPUs, without vLLM."""
    arguments.check(settings.options)
    options = dict(settings.options)
    weights = random_weights.take_weights(options)
    seconds(options, "stall_timeout")
    place = plans.take_placement(VLLM, options)
    sizes = (number(options, name) or 1 for name in ("tensor_parallel_size", "data_parallel_size"))
    experts_over = math.prod(sizes) if flag(dict(options), "enable_expert_parallel") else 1
    plans.check(
        VLLM,
        settings,
        options,
        place,
        gpus,
        experts_over=experts_over,
        weights=weights,
        reads_weights=reads_weights,
    )
    if weights == "random":
        folder = contents.settings_folder(settings.checkpoint, settings.revision)
        random_weights.check(contents.read_config(folder), place.world)


def _defaults(plan: Plan, limits: sizing.Limits) -> dict[str, object]:
    """The constructor's arguments that this engine sets if the user does not."""
    settings, options, model = plan.settings, plan.options, plan.model
    # vLLM keeps no times of requests without statistics, and returns at most 20 log-probabilities by default
    defaults: dict[str, object] = {"disable_log_stats": False, "max_logprobs": -1}
    if settings.batch_size is not None:
        defaults["max_num_seqs"] = settings.batch_size
        if not _GRAPHS & {*options}:
            defaults["max_cudagraph_capture_size"] = _GRAPH_TOKENS
    cache = None
    if settings.kv_tokens is not None and "kv_cache_memory_bytes" not in options:
        sequences = int(str(options.get("max_num_seqs") or settings.batch_size or _SEQUENCES))
        tokens = max(settings.kv_tokens, limits.max_model_len)
        cache = sizing.cache_bytes(model.config, options, model.dtype, tokens, sequences)
    if cache is not None:
        defaults["kv_cache_memory_bytes"] = cache
    if cache is not None or "kv_cache_memory_bytes" in options:
        return defaults | {"gpu_memory_utilization": sizing.MIN_UTILIZATION}
    return defaults | sizing.memory(plan.gpu_bytes, plan.vocabulary, limits.window, plan.used_share)


def weight_arguments(library: installed.Library, model: Model) -> dict[str, object]:
    """The arguments that say where weights come from and how they are quantised."""
    constructor: dict[str, object] = {}
    if "worker_extension_cls" in library.fields:
        constructor["worker_extension_cls"] = rank.RANDOM_EXTENSION if model.weights == "random" else rank.EXTENSION
    if model.weights == "random":
        constructor["load_format"] = random_weights.register()
    if model.online:
        method = VLLM.online[model.precision]
        if method not in library.quantizations or "quantization_config" not in library.fields:
            raise UsageError(
                f"vLLM {library.version} does not quantise to {model.precision} while it loads. Install 0.22, or give "
                f"a checkpoint in {model.precision}."
            )
        constructor |= {"quantization": method, "quantization_config": _ROUTER}
    return constructor


def _warn(plan: Plan) -> None:
    if plan.dummy:
        log.warning(
            "load_format=dummy: all tokens go through the same experts. Neither scores nor times of this run describe "
            "the checkpoint. Give weights=random, which spreads the tokens."
        )
    elif plan.model.weights == "random":
        log.warning("weights=random: the weights are random. No score of this run describes the checkpoint.")


def _session(
    plan: Plan, library: installed.Library, constructor: Arguments, tokenizer: Any, output: WorkerOutput | None
) -> Session:
    if output is not None:
        installed.spawn_where_forks_fail()
    try:
        with output.captured() if output is not None else nullcontext():
            llm = library.module.LLM(**plan.constructor_arguments(tokenizer), **constructor)
    except Exception as error:
        printed = output.last(CAUSE) if output is not None else None
        failure = describe_failure(
            VLLM, error, library.version, plan.settings.checkpoint, "loading", printed=printed or ""
        )
        error.__traceback__ = None  # its frames hold what was allocated
        release()
        raise failure from error
    engine = llm.llm_engine
    # log lines and counters for a server take time in every step, and nobody reads them here
    if getattr(engine, "logger_manager", None) is not None:
        engine.logger_manager = None
    sequences = reach(engine, "vllm_config.scheduler_config.max_num_seqs") or _SEQUENCES
    # one set running and the next one waiting
    return Session(library, llm, plan.settings.checkpoint, max_requests=2 * int(sequences), output=output)


def labels_of(
    plan: Plan, version: str, window: int, constructor: Arguments, ranks: Sequence[rank.Observed]
) -> EngineFacts:
    """The labels as ranks tell them, the others as they were requested."""
    own_arguments = {name: constructor[name] for name in constructor if name != "worker_extension_cls"}
    facts = labels.requested(plan, version, window, constructor, arguments.plain(own_arguments))
    union = rank.together(ranks)
    kernels = (union.moe_backend or str(facts.moe_backend_requested)).upper().replace("+", "/").split("/")
    return replace(
        facts,
        precision=precision.executed(plan.model.precision, "MARLIN" if "MARLIN" in kernels else None),
        emulated="EMULATION" in kernels,
        attention_backend=union.attention_backend,
        moe_backend_observed=union.moe_backend,
        cuda_graph_batch_sizes=union.graphs,
        cuda_graph_padding=True,  # to the next size, always
        weight_bytes=union.weight_bytes,
        expert_ranks=rank.expert_ranks(ranks),
    )


def _facts(plan: Plan, session: Session, constructor: Arguments, window: int) -> EngineFacts:
    """The labels, observed on the built engine where it can be reached."""
    config, module = session.llm.llm_engine.vllm_config, observe.model(session.llm)
    is_extended = "worker_extension_cls" in constructor
    ranks = rank.ranks(session.llm) if is_extended else ()
    reader = "moe_eval's kernel" if is_extended and rank.hasten_scores(session.llm) else "its sampler"
    session.ranks = Ranks([entry.pid for entry in ranks])
    observed = ranks or [rank.of_model(module)] * (module is not None)
    facts = labels_of(plan, session.installed.version, window, constructor, observed)
    graphs = facts.cuda_graph_batch_sizes
    return replace(
        facts,
        dtype=observe.dtype(config) or facts.dtype,
        worker=observe.worker(module),
        kv_cache_dtype=observe.kv_cache_dtype(config),
        cuda_graph_batch_sizes=observe.cuda_graph_batch_sizes(config) if graphs is None else graphs,
        scores_from=f"prompt log-probabilities of vLLM by {reader}, the tokens they are about checked in every request",
        quant_algo=observe.quant_algo(rank.together(observed).methods, config, plan.model.carried.method),
        max_batch=session.max_requests // 2,
        max_step_tokens=reach(config, "scheduler_config.max_num_batched_tokens"),
        kv_cache_tokens=observe.kv_cache_tokens(config),
    )
