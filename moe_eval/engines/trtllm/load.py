"""Builds the TensorRT-LLM engine, or says in one sentence why it cannot be built here."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from moe_eval.checkpoint import contents, precision
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import end_tokens
from moe_eval.engines.trtllm import arguments, installed, observe, selftest, sizing
from moe_eval.engines.trtllm.checks import Model, check_machine, read_model, take_placement
from moe_eval.engines.trtllm.engine import Session, TrtllmEngine
from moe_eval.engines.trtllm.failures import explained
from moe_eval.engines.trtllm.readers import ContextLogits
from moe_eval.engines.trtllm.workers import Workers, descendants
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts

log = logging.getLogger(__name__)

# most requests in an iteration where the user does not say: enough to fill max_num_tokens with short prompts
_REQUESTS = 64
# variables that spawned workers need and that MPI sessions do not forward by themselves; what is named like a secret
# stays here, and CUDA_VISIBLE_DEVICES is the launcher's to set
_FORWARDED = re.compile(r"(HF|NCCL|TORCH|CUDA|UCX)_(?!VISIBLE_DEVICES)")
_SECRET = re.compile(r"TOKEN|SECRET|KEY|PASSWORD", re.IGNORECASE)
# in place of a checkpoint's fingerprint where its weights were not read
_DUMMY = "random weights (load_format=dummy)"


def load(settings: EngineSettings, tokenizer: Any) -> TrtllmEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are the constructor's own arguments by name, those of arguments.NESTED, `worker`
            (in_process or spawned) and `disable_fusion`; what the installed version lacks is refused.
        tokenizer: of Transformers; for stop texts and for the text of the self-test.

    Raises:
        UsageError: names what the checkpoint, the machine or the installed version lacks.
        EngineError: the self-test failed.
    """
    options = dict(settings.options)
    placement = take_placement(options)
    model = read_model(settings)
    check_machine(settings, options, model, placement.world)
    environment = {installed.IN_PROCESS: "1" if placement.in_process else None}
    if placement.disable_fusion:
        environment[installed.NO_FUSION] = "1"
    found = installed.load(environment)

    vocabulary = int(model.config.get("vocab_size") or len(tokenizer))
    limits = _limits(settings, options, model, vocabulary, placement.world)
    defaults: dict[str, Any] = {
        "max_batch_size": settings.batch_size or _REQUESTS,
        "max_num_tokens": limits.max_num_tokens,
        "kv_cache_free_gpu_memory_fraction": sizing.KV_FRACTION,
        # without it a request's arrival is the moment at which the engine's loop takes it up
        "return_perf_metrics": True,
    }
    if not placement.in_process:
        defaults["env_overrides"] = _forwarded(os.environ)
        if isinstance(options.get("env_overrides"), Mapping):
            options["env_overrides"] = {**defaults["env_overrides"], **options["env_overrides"]}
    if settings.kv_tokens is not None:
        defaults["kv_cache_max_tokens"] = settings.kv_tokens
    given = arguments.build(found, options | {"max_seq_len": limits.max_seq_len}, defaults)
    # in this process compilers come and go, and Ray ends idle workers of its own accord: their end is no death
    watched = not placement.in_process and options.get("orchestrator_type") in (None, "rpc")
    session = _session(found, settings, model, tokenizer, given, watched=watched)
    context = ContextLogits(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        verdict = selftest.run(session.ask, selftest.known_sequence(tokenizer, vocabulary)[: limits.window], context)
    except BaseException:
        session.close()
        raise
    dummy = str(options.get("load_format", "")).lower() == "dummy"
    if dummy:
        log.warning(
            "load_format=dummy: the weights are random, so no score of this run says anything of the checkpoint."
        )
    if verdict.fallback:
        log.warning(
            "TensorRT-LLM %s: scores are read from context logits, since its own prompt log-probabilities do not agree "
            "with them (%s).",
            *(found.version, verdict.fallback),
        )
    gpus = hardware.gpus()[: placement.world]
    backend = str(options.get("moe_backend", "auto"))
    count = f"{placement.world} x " if placement.world > 1 else ""
    cache = str(getattr(given["kv_cache_config"], "dtype", "auto"))
    facts = EngineFacts(
        name="trtllm",
        version=found.version,
        checkpoint=settings.checkpoint,
        fingerprint=_DUMMY if dummy else model.fingerprint,
        architecture=str(next(iter(model.config.get("architectures") or ["unknown"]))),
        vocabulary=vocabulary,
        precision=precision.executed(model.precision, backend),
        emulated=False,
        dtype=model.dtype,
        device="cuda" if gpus else "cpu",
        device_name=f"{count}{gpus[0].name}" if gpus else "cpu",
        max_length=limits.window,
        worker=observe.worker(session.llm, len(session.workers)),
        attention_backend=observe.attention_backend(session.llm),
        moe_backend_requested=backend,
        moe_backend_observed=observe.moe_backend(session.llm),
        kv_cache_dtype=(model.carried.kv_cache or model.dtype) if cache == "auto" else cache,
        cuda_graph_batch_sizes=observe.cuda_graph_batch_sizes(session.llm),
        cuda_graph_padding=observe.cuda_graph_padding(session.llm),
        scores_from=verdict.label,
        quant_algo=model.carried.method,
        weights="random" if dummy else "checkpoint",
        max_batch=int(given["max_batch_size"]),
        max_step_tokens=int(given["max_num_tokens"]),
        gpus=placement.world if gpus else 0,
        weight_bytes=observe.weight_bytes(session.llm),
        arguments={
            **{name: value for name, value in arguments.plain(given).items() if name != "env_overrides"},
            "disable_fusion": os.environ.get(installed.NO_FUSION, "0") == "1",
        },
    )
    return TrtllmEngine(facts, session, verdict.reader, context, end_tokens(model.folder, tokenizer), verdict.checks)


def _limits(
    settings: EngineSettings, options: Mapping[str, Any], model: Model, vocabulary: int, world: int
) -> sizing.Limits:
    """The window and token limits that the memory of the smallest GPU allows."""
    smallest = min((gpu.memory_bytes for gpu in hardware.gpus()[:world]), default=None)
    known = [each for each in (contents.weight_bytes(model.folder), settings.heaviest_bytes) if each is not None]
    free = sizing.free_bytes(smallest, max(known, default=None), world)
    positions = int(model.config.get("max_position_embeddings") or 2048)
    return sizing.limits(options, settings.max_length, positions, sizing.tokens_at_once(vocabulary, free))


def _forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if _FORWARDED.match(name) and not _SECRET.search(name)}


def _session(
    found: installed.Library,
    settings: EngineSettings,
    model: Model,
    tokenizer: Any,
    given: Mapping[str, Any],
    *,
    watched: bool,
) -> Session:
    common: dict[str, Any] = {
        "model": model.name,
        "dtype": model.dtype if model.carried.method == "none" else settings.dtype,
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    if str(tokenizer.name_or_path) != model.name:
        common["tokenizer"] = str(tokenizer.name_or_path)
    before = descendants()
    try:
        llm = found.module.LLM(**common, **given)
    except BaseException as error:
        Workers(descendants() - before).kill()
        if isinstance(error, Exception):
            raise explained(error, found.version, settings.checkpoint, "loading") from error
        raise
    return Session(
        installed=found,
        llm=llm,
        workers=Workers(descendants() - before if watched else (), observe.loop(llm)),
        checkpoint=settings.checkpoint,
        # one set running and the next one waiting
        most_requests=2 * int(given["max_batch_size"]),
        most_tokens=2 * int(given["max_num_tokens"]),
    )
