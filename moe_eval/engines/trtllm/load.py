"""Builds the TensorRT-LLM engine."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch

from moe_eval import exits
from moe_eval.checkpoint import contents
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag, number, seconds
from moe_eval.engines.requests import end_tokens, stated_ends
from moe_eval.engines.served import labels
from moe_eval.engines.served import plan as plans
from moe_eval.engines.served.arguments import Arguments
from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.served.package import describe_failure
from moe_eval.engines.served.plan import Plan
from moe_eval.engines.served.processes import Waiter, descendants
from moe_eval.engines.trtllm import advice, arguments, installed, observe, selftest, sizing
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.engines.trtllm.installed import TRTLLM
from moe_eval.engines.trtllm.readers import ContextLogits
from moe_eval.engines.trtllm.session import Session
from moe_eval.engines.trtllm.workers import Loading, Workers
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# requests in an iteration by default: enough to fill max_num_tokens with short prompts
_REQUESTS = 64
# Spawned workers need these variables, and MPI sessions do not forward them by themselves. Secrets stay here, and
# CUDA_VISIBLE_DEVICES is the launcher's to set.
_FORWARDED = re.compile(r"(HF|NCCL|(PY)?TORCH|CUDA|UCX|TRTLLM|TLLM)_(?!VISIBLE_DEVICES)")
_SECRET = re.compile(r"TOKEN|SECRET|KEY|PASSWORD", re.IGNORECASE)


def load(settings: EngineSettings, tokenizer: Any) -> TrtllmEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are the constructor's own arguments by name, those of arguments.NESTED, `worker`
            (in_process or spawned), `disable_fusion` and `stall_timeout`.
        tokenizer: of Transformers, for stop texts and for the text of the self-test.
    """
    options, launched = dict(settings.options), observe.launched()
    place = plans.take_placement(TRTLLM, options, launched=launched)
    disable_fusion = flag(options, "disable_fusion")
    stall_seconds = seconds(options, "stall_timeout")
    plan = plans.make(TRTLLM, settings, options, place, tokenizer, launched=launched)
    before, output = descendants(), None if place.in_process or launched else WorkerOutput()
    loading = Loading(before, output, stall_seconds)
    import_library = partial(installed.load, in_process=place.in_process, disable_fusion=bool(disable_fusion))
    library = _watched(loading, output, import_library)
    plans.check_version(plan, library.version)
    for sentence in advice.known_bad(library.version, plan.model, options, hardware.gpus()):
        log.warning("%s", sentence)
    limits = _limits(plan)
    constructor = _constructor(plan, library, limits)
    build = partial(library.module.LLM, **plan.constructor_arguments(tokenizer), **constructor)
    try:
        llm = _watched(loading, output, build)
    except Exception as error:
        printed = output.last_lines() if output is not None else ""
        raise describe_failure(
            TRTLLM, error, library.version, settings.checkpoint, "loading", printed=printed
        ) from error
    # in this process compilers come and go, and Ray ends idle workers by itself: their end is no failure
    watched = not place.in_process and options.get("orchestrator_type") in (None, "rpc")
    session = Session(
        installed=library,
        llm=llm,
        workers=Workers(
            descendants() - before if watched else (), observe.Observer().label("loop", observe.loop, llm), output
        ),
        checkpoint=settings.checkpoint,
        # one set running and the next one waiting
        max_requests=2 * int(constructor["max_batch_size"]),
        max_tokens=2 * int(constructor["max_num_tokens"]),
        stall_seconds=stall_seconds,
    )
    context = ContextLogits(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sequence = selftest.known_sequence(tokenizer, plan.vocabulary)[: limits.window]
    try:
        verdict = selftest.run(session.ask, sequence, context)
    except BaseException:
        session.close()
        raise
    _warn(plan, library, verdict)
    facts = _facts(plan, session, constructor, window=limits.window, scores_from=verdict.label)
    ends = end_tokens(tokenizer, stated_ends(plan.model.folder))
    return TrtllmEngine(facts, session, verdict.reader, context, ends, verdict.checks)


def check(settings: EngineSettings, gpus: Sequence[hardware.Gpu], *, reads_weights: bool = True) -> None:
    """Refuse what `load` would refuse on these GPUs, without TensorRT-LLM."""
    arguments.check(settings.options)
    options, launched = dict(settings.options), observe.launched()
    place = plans.take_placement(TRTLLM, options, launched=launched)
    flag(options, "disable_fusion")
    seconds(options, "stall_timeout")
    experts_over = number(options, "moe_expert_parallel_size") or 1
    plans.check(
        TRTLLM,
        settings,
        options,
        place,
        gpus,
        experts_over=experts_over,
        reads_weights=reads_weights,
        launched=launched,
    )


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


def _watched(loading: Loading, output: WorkerOutput | None, call: Callable[[], _Result]) -> _Result:
    """Import or build the library. If that fails, nothing of it is left, and the process will end in seconds."""
    waiter = Waiter(loading.check)
    try:
        with output.captured() if output is not None else nullcontext():
            result: _Result = waiter.wait(call)
            return result
    except BaseException as error:
        if isinstance(error, Exception) and "main thread" in str(error):  # a version that insists on it
            return call()
        loading.end()
        exits.end_in_seconds(lambda: None)
        raise
    finally:
        waiter.close()


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
    llm = session.llm
    backend = str(plan.options.get("moe_backend", "auto"))
    observer = observe.Observer()
    seen = partial(observer.label, llm=llm)
    plain = observer.label("arguments", lambda _: arguments.plain(constructor), llm) or {}
    observed = seen("moe_backend_observed", observe.moe_backend)
    facts = labels.requested(
        plan,
        session.installed.version,
        window,
        {"moe_backend": backend, "kv_cache_dtype": getattr(constructor["kv_cache_config"], "dtype", "auto")},
        {name: value for name, value in plain.items() if name != "env_overrides"}
        | {"disable_fusion": os.environ.get(installed.NO_FUSION, "0") == "1"},
    )
    facts = replace(
        facts,
        precision=observe.executed(plan.model.precision, backend, observed, hardware.gpus()[: plan.placement.world]),
        worker=seen("worker", lambda llm: observe.worker(llm, len(session.workers))),
        attention_backend=seen("attention_backend", observe.attention_backend),
        moe_backend_observed=observed,
        cuda_graph_batch_sizes=seen("cuda_graph_batch_sizes", observe.cuda_graph_batch_sizes),
        cuda_graph_padding=seen("cuda_graph_padding", observe.cuda_graph_padding),
        scores_from=scores_from,
        scores_ids=True,
        max_batch=int(constructor["max_batch_size"]),
        max_step_tokens=int(constructor["max_num_tokens"]),
        weight_bytes=seen("weight_bytes", observe.weight_bytes),
        kv_cache_tokens=seen("kv_cache_tokens", observe.kv_cache_tokens),
        moe_degraded_from=seen("moe_degraded_from", partial(observe.moe_degraded_from, output=session.workers.output)),
        moe_tactic=seen("moe_tactic", observe.moe_tactic),
    )
    return replace(facts, unobserved=tuple(observer.failures))
