"""The labels of a served engine before anything of it is observed: those of its plan, and what was requested."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.checkpoint import precision
from moe_eval.engines.served import plan as plans
from moe_eval.engines.served.plan import Plan
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts


def requested(
    plan: Plan, version: str, window: int, options: Mapping[str, object], arguments: Mapping[str, object]
) -> EngineFacts:
    """The labels of a server, and of a load in processes of its own. What is observed takes their place.

    Args:
        options: of which moe_backend and kv_cache_dtype count.
        arguments: that the library was given, as JSON.
    """
    model, world = plan.model, plan.placement.world
    gpus = hardware.gpus()[:world]
    backend, cache = (str(options.get(name, "auto")) for name in ("moe_backend", "kv_cache_dtype"))
    return EngineFacts(
        name=plan.traits.name,
        version=version,
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
        worker="spawned",
        attention_backend=None,
        moe_backend_requested=backend,
        moe_backend_observed=None,
        kv_cache_dtype=(model.carried.kv_cache or model.dtype) if cache == "auto" else cache,
        cuda_graph_batch_sizes=None,
        scores_from="a server, whose answers are not scored",
        quant_algo=plan.traits.online[model.precision] if model.online else model.carried.method,
        weights=plan.weights,
        gpus=world if gpus else 0,
        arguments=arguments,
    )
