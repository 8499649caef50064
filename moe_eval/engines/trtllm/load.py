"""Builds the TensorRT-LLM engine."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from moe_eval.checkpoint import contents, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag
from moe_eval.engines.requests import end_tokens
from moe_eval.engines.served import plan as plans
from moe_eval.engines.served.arguments import Arguments
from moe_eval.engines.served.package import describe_failure
from moe_eval.engines.served.plan import Plan
from moe_eval.engines.trtllm import arguments, installed, observe, selftest, sizing
from moe_eval.engines.trtllm.engine import Session, TrtllmEngine
from moe_eval.engines.trtllm.installed import TRTLLM
from moe_eval.engines.trtllm.readers import ContextLogits
from moe_eval.engines.trtllm.workers import Workers, descendants
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

# requests in an iteration by default: enough to fill max_num_tokens with short prompts
_REQUESTS = 64
# Spawned workers need these variables, and MPI sessions do not forward them by themselves. Secrets stay here, and
# CUDA_VISIBLE_DEVICES is the launcher's to set.
_FORWARDED = re.compile(r"(HF|NCCL|TORCH|CUDA|UCX)_(?!VISIBLE_DEVICES)")
_SECRET = re.compile(r"TOKEN|SECRET|KEY|PASSWORD", re.IGNORECASE)


def load(settings: EngineSettings, tokenizer: Any) -> TrtllmEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are the constructor's own arguments by name, those of arguments.NESTED, `worker`
            (in_process or spawned) and `disable_fusion`.
        tokenizer: of Transformers, for stop texts and for the text of the self-test.
    """
    options, launched = dict(settings.options), observe.launched()
    place = plans.take_placement(TRTLLM, options, launched=launched)
    disable_fusion = flag(options, "disable_fusion")
    plan = plans.make(TRTLLM, settings, options, place, tokenizer, launched=launched)
    library = installed.load(in_process=place.in_process, disable_fusion=bool(disable_fusion))
    limits = _limits(plan)
    constructor = _constructor(plan, library, limits)
    session = _session(plan, library, constructor, tokenizer)
    context = ContextLogits(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sequence = selftest.known_sequence(tokenizer, plan.vocabulary)[: limits.window]
    try:
        verdict = selftest.run(session.ask, sequence, context)
    except BaseException:
        session.close()
        raise
    _warn(plan, library, verdict)
    facts = _facts(plan, session, constructor, window=limits.window, scores_from=verdict.label)
    ends = end_tokens(plan.model.folder, tokenizer)
    return TrtllmEngine(facts, session, verdict.reader, context, ends, verdict.checks)


def _limits(plan: Plan) -> sizing.Limits:
    """The window and token limits that the memory of the smallest GPU allows."""
    weights = (contents.weight_bytes(plan.model.folder), plan.settings.heaviest_bytes)
    heaviest = max((size for size in weights if size is not None), default=None)
    free = sizing.free_bytes(plan.gpu_bytes, heaviest, plan.placement.world)
    at_once = sizing.tokens_at_once(plan.vocabulary, free)
    return sizing.limits(plan.options, plan.settings.max_length, plan.model.positions, at_once)


def _constructor(plan: Plan, library: installed.Library, limits: sizing.Limits) -> Arguments:
    """The constructor's arguments but those that say what to load."""
    options = plan.options | {"max_seq_len": limits.max_seq_len}
    defaults: dict[str, object] = {
        "max_batch_size": plan.settings.batch_size or _REQUESTS,
        "max_num_tokens": limits.max_num_tokens,
        "kv_cache_free_gpu_memory_fraction": sizing.KV_FRACTION,
        # without it a request arrives when the engine's loop takes it up
        "return_perf_metrics": True,
    }
    if plan.settings.kv_tokens is not None:
        defaults["kv_cache_max_tokens"] = plan.settings.kv_tokens
    if not plan.placement.in_process:
        forwarded = {name: text for name, text in os.environ.items() if _FORWARDED.match(name)}
        forwarded = {name: text for name, text in forwarded.items() if not _SECRET.search(name)}
        defaults["env_overrides"] = forwarded
        overrides = options.get("env_overrides")
        if isinstance(overrides, Mapping):
            options["env_overrides"] = {**forwarded, **overrides}
    return arguments.build(library, options, defaults)


def _session(plan: Plan, library: installed.Library, constructor: Arguments, tokenizer: Any) -> Session:
    name = plan.settings.checkpoint
    before = descendants()
    try:
        llm = library.module.LLM(**plan.constructor_arguments(tokenizer), **constructor)
    except BaseException as error:
        Workers(descendants() - before).kill()
        if isinstance(error, Exception):
            raise describe_failure(TRTLLM, error, library.version, name, "loading") from error
        raise
    # in this process compilers come and go, and Ray ends idle workers by itself: their end is no failure
    watched = not plan.placement.in_process and plan.options.get("orchestrator_type") in (None, "rpc")
    return Session(
        installed=library,
        llm=llm,
        workers=Workers(descendants() - before if watched else (), observe.loop(llm)),
        checkpoint=name,
        # one set running and the next one waiting
        max_requests=2 * int(constructor["max_batch_size"]),
        max_tokens=2 * int(constructor["max_num_tokens"]),
    )


def _warn(plan: Plan, library: installed.Library, verdict: selftest.Verdict) -> None:
    if plan.dummy:
        log.warning("load_format=dummy: the weights are random. No score of this run describes the checkpoint.")
    if verdict.fallback:
        log.warning(
            "TensorRT-LLM %s: its prompt log-probabilities do not agree with its context logits (%s). Scores are read "
            "from context logits.",
            library.version,
            verdict.fallback,
        )


def _facts(plan: Plan, session: Session, constructor: Arguments, *, window: int, scores_from: str) -> EngineFacts:
    """The labels, observed on the built engine where it can be reached."""
    llm, model, world = session.llm, plan.model, plan.placement.world
    gpus = hardware.gpus()[:world]
    backend = str(plan.options.get("moe_backend", "auto"))
    cache = str(getattr(constructor["kv_cache_config"], "dtype", "auto"))
    labels = {name: value for name, value in arguments.plain(constructor).items() if name != "env_overrides"}
    return EngineFacts(
        name=TRTLLM.name,
        version=session.installed.version,
        checkpoint=plan.settings.checkpoint,
        fingerprint=plan.fingerprint,
        architecture=model.architecture,
        vocabulary=plan.vocabulary,
        precision=precision.executed(model.precision, backend),
        emulated=False,
        dtype=model.dtype,
        device="cuda" if gpus else "cpu",
        device_name=plans.device_name(world),
        max_length=window,
        worker=observe.worker(llm, len(session.workers)),
        attention_backend=observe.attention_backend(llm),
        moe_backend_requested=backend,
        moe_backend_observed=observe.moe_backend(llm),
        kv_cache_dtype=(model.carried.kv_cache or model.dtype) if cache == "auto" else cache,
        cuda_graph_batch_sizes=observe.cuda_graph_batch_sizes(llm),
        cuda_graph_padding=observe.cuda_graph_padding(llm),
        scores_from=scores_from,
        scores_ids=True,
        quant_algo=model.carried.method,
        weights=plan.weights,
        max_batch=int(constructor["max_batch_size"]),
        max_step_tokens=int(constructor["max_num_tokens"]),
        gpus=world if gpus else 0,
        weight_bytes=observe.weight_bytes(llm),
        kv_cache_tokens=observe.kv_cache_tokens(llm),
        arguments=labels | {"disable_fusion": os.environ.get(installed.NO_FUSION, "0") == "1"},
    )
