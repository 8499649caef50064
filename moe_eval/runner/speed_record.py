"""What is written down of an arm's speed: one JSON record with every label, and its comparison with a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moe_eval.checkpoint import precision
from moe_eval.checkpoint.geometry import Geometry
from moe_eval.data.workload import Shape, Workload
from moe_eval.evaluators import floors, routing, speed
from moe_eval.evaluators.latency import UNSETTLED
from moe_eval.machine.rates import Rates
from moe_eval.records import disk
from moe_eval.runner.interleave import ArmRun, Schedule

SCHEMA = 1
# what matrices are multiplied in, by precision: rates are measured by torch's name of the type
_MULTIPLIED_IN = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}


_PLAIN = (
    *("batch_size", "input_len", "output_len", "num_iterations", "warmup_iterations", "mean_latency_ms"),
    *("std_latency_ms", "output_tokens_per_sec", "prefill_tokens_per_sec"),
)


@dataclass(frozen=True)
class Context:
    """What all records of a run share.

    Attributes:
        run_id: one for every run of a command, so that arms measured side by side can be told from others.
        machine, versions, git: as hardware gives them.
        asked: the command's options.
        geometry: of the model; None where it is not understood, and then there are no floors.
        workload: None where every arm is skipped.
        rates: what the machine can do at most, or why that was not measured.
    """

    run_id: str
    workload: Workload | None
    schedule: Schedule
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    git: str | None
    asked: Mapping[str, Any]
    fusion_disabled: bool
    geometry: Geometry | None = None
    rates: Rates | str = "not measured"


def skipped(precision: str, reason: str, context: Context) -> dict[str, Any]:
    """The record of a precision that was left out."""
    return {**_labels(precision, {}, context), "arm": precision, "status": "skipped", "error": reason}


def record(run: ArmRun, context: Context, reference: ArmRun | None = None) -> dict[str, Any]:
    """One arm's record; figures of the first shape also stand at the top, as the plain form of one shape has them.

    Args:
        reference: the arm to compare with; None for the reference itself.
    """
    shapes = context.workload.shapes if context.workload else ()
    rows = [_row(run, shape, context, reference) for shape in shapes if run.samples(shape)]
    first = rows[0] if rows else {}
    return {
        **_labels(run.precision, run.labels, context),
        "arm": run.name,
        "status": run.status,
        "error": run.error,
        **{name: first.get(name) for name in _PLAIN},
        "reference": reference.name if reference else None,
        "shapes": rows,
        "memory": run.memory,
        "nvml": run.blind,
        "routing": run.routing,
        "routing_pass": "the largest batch alone, outside the timing; smaller batches are its first prompts",
        "rates": asdict(context.rates) if isinstance(context.rates, Rates) else context.rates,
        "labels": disk.redact(run.labels),
    }


def _labels(precision: str, labels: Mapping[str, Any], context: Context) -> dict[str, Any]:
    engine = labels.get("engine", {})
    gpus, work = context.machine["gpus"], context.workload
    return {
        "schema": SCHEMA,
        "run_id": context.run_id,
        # what the loaded kernels compute in, which is not what was planned where the engine chose weight-only ones
        "precision": engine.get("precision") or precision,
        "precision_planned": precision,
        "quant_algo": engine.get("quant_algo"),
        "weights": engine.get("weights"),
        "sm_version": gpus[0]["capability"] if gpus else None,
        "gpu_name": gpus[0]["name"] if gpus else None,
        "engine": engine.get("name"),
        "moe_backend": engine.get("moe_backend_observed"),
        "fusion_disabled": context.fusion_disabled,
        "workload": {"digest": work.digest, "source": work.source} if work else None,
        "schedule": asdict(context.schedule),
        "asked": dict(context.asked),
        "machine": context.machine,
        "versions": context.versions,
        "git": context.git,
    }


def _row(run: ArmRun, shape: Shape, context: Context, reference: ArmRun | None) -> dict[str, Any]:
    """One shape of one arm."""
    samples = run.samples(shape)
    figures = speed.figures(samples, shape)
    metrics = figures["metrics"]
    warm_ups = run.warm_ups.get(shape.name, [])
    seen = run.gpu.get(shape.name, [])
    distinct = _routing(run, shape)
    notes = list(figures["notes"])
    slow = sum(flag is True for block in seen for flag in block["slow_samples"])
    unseen = sum(flag is None for block in seen for flag in block["slow_samples"])
    if unseen and run.blind is None:
        notes.append(
            f"whether the clock was low is not known of {unseen} of {len(samples)} iterations: shorter than NVML's "
            "sampling, or a GPU that tells no default clock"
        )
    if slow:
        notes.append(f"{slow} of {len(samples)} iterations ran at under 75 % of the GPU's default clock")
    notes += _steps(run.labels.get("engine", {}), shape)
    ran = run.labels.get("engine", {}).get("precision") or run.precision
    if ran != run.precision:
        notes.append(f"the engine chose kernels of {ran} where {run.precision} was planned")
    unsettled = sum(each["ended"] == UNSETTLED for each in warm_ups)
    if unsettled:
        notes.append(f"{unsettled} of {len(warm_ups)} warm-ups ended without having settled")
    return {
        **asdict(shape),
        "name": shape.name,
        "num_iterations": len(samples),
        "warmup_iterations": [len(each["seconds"]) for each in warm_ups],
        **figures,
        "output_tokens_per_sec": metrics["output_tok_s"]["median"],
        "prefill_tokens_per_sec": metrics["prefill_tok_s"]["median"],
        "notes": notes,
        "experts_per_layer_step": distinct.distinct if distinct else None,
        "experts_of_independent_draws": distinct.independent if distinct else None,
        "floors": _floors(run, shape, context, metrics, distinct.distinct if distinct else None),
        "versus_reference": _versus(run, reference, shape) if reference else None,
        "gpu": seen,
        "warm_ups": warm_ups,
        "blocks": [[asdict(each) for each in block] for block in run.blocks[shape.name]],
    }


def _steps(engine: Mapping[str, Any], shape: Shape) -> list[str]:
    """Where the steps of a shape are not what its figures are taken for."""
    notes = []
    tokens, budget = shape.batch_size * shape.input_len, engine.get("max_step_tokens")
    graphs = engine.get("cuda_graph_batch_sizes")
    if budget and tokens > budget:
        notes.append(
            f"the engine reads {budget} tokens a step and the prompts have {tokens}, so they are read over "
            f"{math.ceil(tokens / budget)} steps or more, in which other sequences decode already: TTFT is that of the "
            "last sequence and TPOT is no step of the whole batch's"
        )
    if graphs is None or not str(engine.get("device")).startswith("cuda"):
        return notes
    if not graphs:
        notes.append("decode ran without CUDA graphs")
    elif shape.batch_size > max(graphs):
        notes.append(f"decode ran without CUDA graphs, of which the largest is for {max(graphs)} sequences")
    elif shape.batch_size not in graphs and engine.get("cuda_graph_padding") is False:
        notes.append(
            f"decode ran without CUDA graphs, of which none is for {shape.batch_size} sequences and none is padded to "
            "(give cuda_graph_batch_sizes, or turn padding on)"
        )
    return notes


def _routing(run: ArmRun, shape: Shape) -> routing.Routing | None:
    if isinstance(run.routing, str):
        return None
    return routing.from_json(run.routing[str(shape.batch_size)])


def _versus(run: ArmRun, reference: ArmRun, shape: Shape) -> dict[str, Any]:
    """The comparison of one shape, and whether it is fair; `fair` is None where nobody could look."""
    found = speed.compare(reference.blocks.get(shape.name, []), run.blocks.get(shape.name, []), shape)
    names = reference.name, run.name
    apart = speed.steps_apart([each.labels.get("engine", {}) for each in (reference, run)], shape, names)
    if apart:
        return {**found, "fair": False, "unfair_because": apart, "unchecked_because": None}
    own, other = _routing(run, shape), _routing(reference, shape)
    if own is None or other is None:
        missing = reference if other is None else run
        return {
            **found,
            "fair": None,
            "unfair_because": None,
            "unchecked_because": f"{missing.name}: {missing.routing}",
        }
    reason = routing.fair(other, own, names=names)
    return {**found, "fair": reason is None, "unfair_because": reason, "unchecked_because": None}


def _floors(
    run: ArmRun, shape: Shape, context: Context, metrics: Mapping[str, Any], distinct: float | None
) -> dict[str, Any] | str:
    """The least time of a prefill and of a decode step, and what share of the measured one it is; or why not."""
    engine = run.labels.get("engine", {})
    weights = engine.get("weight_bytes")
    if context.geometry is None:
        return "not computed: the sizes of this architecture are not known"
    if not isinstance(context.rates, Rates):
        return f"not computed: {context.rates}"
    if weights is None:
        return "not computed: the engine does not tell the bytes of the loaded weights"
    cached = precision.cache_bytes(str(engine.get("kv_cache_dtype")))
    if cached is None:
        return f"not computed: the width of a key-value cache of {engine.get('kv_cache_dtype')} is not known"
    shared: dict[str, Any] = {
        "kv_bytes_per_token": context.geometry.kv_bytes_per_token(cached),
        "dtype": _MULTIPLIED_IN.get(str(engine.get("precision") or run.precision).removesuffix("_block")),
    }
    machine = (context.geometry, weights, _together(context.rates, int(engine.get("gpus") or 1)))
    tokens = shape.batch_size * shape.input_len
    prefill = floors.prefill(*machine, tokens=tokens, input_len=shape.input_len, **shared)
    found = {"prefill": _against(prefill, metrics["ttft_ms"])}
    if shape.output_len > 1:
        # the cache grows by a token a step: the first of them finds input_len, the last input_len + output_len - 2
        mean = shape.input_len + shape.output_len / 2 - 1
        step = floors.decode_step(*machine, batch=shape.batch_size, context=mean, distinct_experts=distinct, **shared)
        found["decode_step"] = _against(step, metrics["tpot_ms"])
    return found


def _together(rates: Rates, gpus: int) -> Rates:
    """The rates of several alike GPUs that share a model."""
    return Rates(
        rates.copy_bytes_per_s * gpus,
        {name: rate * gpus for name, rate in rates.matrix_flops_per_s.items()},
        rates.device,
    )


def _against(floor: floors.Floor, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """A floor beside what was measured, None where that is no time."""
    predicted, median = 1000 * floor.seconds, measured["median"] if measured else None
    return {
        **asdict(floor),
        "predicted_ms": predicted,
        "measured_ms": median,
        "fraction_of_floor": predicted / median if median else None,
    }
