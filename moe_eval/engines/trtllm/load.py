"""Builds the TensorRT-LLM engine."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moe_eval.checkpoint import contents, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag
from moe_eval.engines.requests import end_tokens
from moe_eval.engines.served import checkpoint, failures, placement
from moe_eval.engines.served.arguments import Arguments
from moe_eval.engines.served.checkpoint import Model
from moe_eval.engines.trtllm import arguments, installed, observe, selftest, sizing
from moe_eval.engines.trtllm.engine import Session, TrtllmEngine
from moe_eval.engines.trtllm.readers import ContextLogits
from moe_eval.engines.trtllm.traits import TRTLLM
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


@dataclass(frozen=True)
class _Plan:
    """What is settled before the library builds the engine.

    Attributes:
        options: the user's, without those that are settings of this engine itself.
        arguments: of the constructor, without those that say what to load.
    """

    settings: EngineSettings
    options: Mapping[str, object]
    model: Model
    world: int
    in_process: bool
    library: installed.Library
    vocabulary: int
    limits: sizing.Limits
    arguments: Arguments

    @property
    def dummy(self) -> bool:
        return checkpoint.loads_dummy(self.options)

    @property
    def watched(self) -> bool:
        """Whether the end of a child process is the death of a worker.

        In this process compilers come and go, and Ray ends idle workers by itself.
        """
        return not self.in_process and self.options.get("orchestrator_type") in (None, "rpc")


def load(settings: EngineSettings, tokenizer: Any) -> TrtllmEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are the constructor's own arguments by name, those of arguments.NESTED, `worker`
            (in_process or spawned) and `disable_fusion`.
        tokenizer: of Transformers, for stop texts and for the text of the self-test.

    Raises:
        UsageError: the checkpoint, the machine or the installed version lacks something.
        EngineError: the self-test failed.
    """
    plan = _plan(settings, tokenizer)
    session = _session(plan, tokenizer)
    context = ContextLogits(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    sequence = selftest.known_sequence(tokenizer, plan.vocabulary)[: plan.limits.window]
    try:
        verdict = selftest.run(session.ask, sequence, context)
    except BaseException:
        session.close()
        raise
    _warn(plan, verdict)
    ends = end_tokens(plan.model.folder, tokenizer)
    facts = _facts(plan, session, scores_from=verdict.label)
    return TrtllmEngine(facts, session, verdict.reader, context, ends, verdict.checks)


def _plan(settings: EngineSettings, tokenizer: Any) -> _Plan:
    options = dict(settings.options)
    launched = observe.launched()
    place = placement.take_placement(TRTLLM, options, launched=launched)
    disable_fusion = flag(options, "disable_fusion")
    model = checkpoint.read_model(TRTLLM, settings)
    placement.check_machine(TRTLLM, settings, options, model, place.world, launched=launched)
    environment = {installed.IN_PROCESS: "1" if place.in_process else None}
    if disable_fusion:
        environment[installed.NO_FUSION] = "1"
    library = installed.load(environment)
    vocabulary = model.vocabulary(tokenizer)
    limits = _limits(settings, options, model, vocabulary, place.world)
    defaults = _defaults(settings, limits)
    if not place.in_process:
        defaults["env_overrides"] = forwarded = _forwarded(os.environ)
        overrides = options.get("env_overrides")
        if isinstance(overrides, Mapping):
            options["env_overrides"] = {**forwarded, **overrides}
    return _Plan(
        settings=settings,
        options=options,
        model=model,
        world=place.world,
        in_process=place.in_process,
        library=library,
        vocabulary=vocabulary,
        limits=limits,
        arguments=arguments.build(library, options | {"max_seq_len": limits.max_seq_len}, defaults),
    )


def _limits(
    settings: EngineSettings, options: Mapping[str, object], model: Model, vocabulary: int, world: int
) -> sizing.Limits:
    """The window and token limits that the memory of the smallest GPU allows."""
    smallest = min((gpu.memory_bytes for gpu in hardware.gpus()[:world]), default=None)
    sizes = [size for size in (contents.weight_bytes(model.folder), settings.heaviest_bytes) if size is not None]
    free = sizing.free_bytes(smallest, max(sizes, default=None), world)
    return sizing.limits(options, settings.max_length, model.positions, sizing.tokens_at_once(vocabulary, free))


def _defaults(settings: EngineSettings, limits: sizing.Limits) -> dict[str, object]:
    """The constructor's arguments that this engine sets if the user does not."""
    defaults: dict[str, object] = {
        "max_batch_size": settings.batch_size or _REQUESTS,
        "max_num_tokens": limits.max_num_tokens,
        "kv_cache_free_gpu_memory_fraction": sizing.KV_FRACTION,
        # without it a request arrives when the engine's loop takes it up
        "return_perf_metrics": True,
    }
    if settings.kv_tokens is not None:
        defaults["kv_cache_max_tokens"] = settings.kv_tokens
    return defaults


def _forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _FORWARDED.match(name) and not _SECRET.search(name)}


def _session(plan: _Plan, tokenizer: Any) -> Session:
    before = descendants()
    try:
        llm = plan.library.module.LLM(
            **checkpoint.constructor_arguments(plan.settings, plan.model, tokenizer), **plan.arguments
        )
    except BaseException as error:
        Workers(descendants() - before).kill()
        if isinstance(error, Exception):
            name = plan.settings.checkpoint
            raise failures.describe(TRTLLM, error, plan.library.version, name, "loading") from error
        raise
    return Session(
        installed=plan.library,
        llm=llm,
        workers=Workers(descendants() - before if plan.watched else (), observe.loop(llm)),
        checkpoint=plan.settings.checkpoint,
        # one set running and the next one waiting
        max_requests=2 * int(plan.arguments["max_batch_size"]),
        max_tokens=2 * int(plan.arguments["max_num_tokens"]),
    )


def _warn(plan: _Plan, verdict: selftest.Verdict) -> None:
    if plan.dummy:
        log.warning("load_format=dummy: the weights are random. No score of this run describes the checkpoint.")
    if verdict.fallback:
        log.warning(
            "TensorRT-LLM %s: its prompt log-probabilities do not agree with its context logits (%s). Scores are read "
            "from context logits.",
            plan.library.version,
            verdict.fallback,
        )


def _facts(plan: _Plan, session: Session, scores_from: str) -> EngineFacts:
    """The labels, observed on the built engine where it can be reached."""
    llm, model, constructor = session.llm, plan.model, plan.arguments
    gpus = hardware.gpus()[: plan.world]
    backend = str(plan.options.get("moe_backend", "auto"))
    cache = str(getattr(constructor["kv_cache_config"], "dtype", "auto"))
    labels = {name: value for name, value in arguments.plain(constructor).items() if name != "env_overrides"}
    return EngineFacts(
        name=TRTLLM.name,
        version=plan.library.version,
        checkpoint=plan.settings.checkpoint,
        fingerprint=checkpoint.DUMMY_FINGERPRINT if plan.dummy else model.fingerprint,
        architecture=model.architecture,
        vocabulary=plan.vocabulary,
        precision=precision.executed(model.precision, backend),
        emulated=False,
        dtype=model.dtype,
        device="cuda" if gpus else "cpu",
        device_name=placement.device_name(gpus, plan.world),
        max_length=plan.limits.window,
        worker=observe.worker(llm, len(session.workers)),
        attention_backend=observe.attention_backend(llm),
        moe_backend_requested=backend,
        moe_backend_observed=observe.moe_backend(llm),
        kv_cache_dtype=(model.carried.kv_cache or model.dtype) if cache == "auto" else cache,
        cuda_graph_batch_sizes=observe.cuda_graph_batch_sizes(llm),
        cuda_graph_padding=observe.cuda_graph_padding(llm),
        scores_from=scores_from,
        quant_algo=model.carried.method,
        weights="random" if plan.dummy else "checkpoint",
        max_batch=int(constructor["max_batch_size"]),
        max_step_tokens=int(constructor["max_num_tokens"]),
        gpus=plan.world if gpus else 0,
        weight_bytes=observe.weight_bytes(llm),
        arguments=labels | {"disable_fusion": os.environ.get(installed.NO_FUSION, "0") == "1"},
    )
