"""The floors of one shape beside its measured times, or why there are none."""

from __future__ import annotations

from dataclasses import replace

from moe_eval.checkpoint import precision
from moe_eval.checkpoint.geometry import Geometry
from moe_eval.data.workload import Shape
from moe_eval.evaluators import floors
from moe_eval.machine.rates import Rates
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import LatencyMetrics, Metric
from moe_eval.records.shape_latency import Floor, FloorReached, Floors

# what matrices are multiplied in, by precision: rates are measured by torch's name of the type
_MULTIPLIED_IN = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}


def read(
    engine: EngineFacts | None,
    executed: str,
    shape: Shape,
    metrics: LatencyMetrics,
    *,
    geometry: Geometry | None,
    rates: Rates | str,
    distinct_experts: float | None,
) -> Floors:
    """The least time of a prefill and of a decode step, and what share of the measured one it is.

    Args:
        executed: the precision that the loaded kernels compute in.
        rates: of one GPU, or why they are not known.
        distinct_experts: of a decode step, as counted. None where they were not.
    """
    if geometry is None:
        return Floors(no_floors=f"not computed: the sizes of {_named(engine)} are not known")
    if isinstance(rates, str):
        return Floors(no_floors=f"not computed: {rates}")
    if engine is None or engine.weight_bytes is None:
        return Floors(no_floors="not computed: the engine does not tell the bytes of the loaded weights")
    width = precision.cache_bytes(str(engine.kv_cache_dtype))
    if width is None:
        reason = f"the width of a key-value cache of {engine.kv_cache_dtype} is not known"
        return Floors(no_floors=f"not computed: {reason}")
    model = floors.LoadedModel(
        geometry,
        engine.weight_bytes,
        _of_gpus(rates, engine.gpus or 1),
        width,
        _MULTIPLIED_IN.get(executed.removesuffix("_block")),
        _link(engine, rates),
    )
    prefill = model.prefill(shape.batch_size * shape.input_len, shape.input_len)
    decode_step = None
    if shape.output_len > 1:
        # the cache grows by a token a step, and the prefill has made the first one
        steps = model.decode_step(shape.batch_size, shape.input_len, distinct_experts, steps=shape.output_len - 1)
        decode_step = _reached(steps, metrics.tpot_ms)
    return Floors(prefill=_reached(prefill, metrics.ttft_ms), decode_step=decode_step)


def _named(engine: EngineFacts | None) -> str:
    """The architecture that ran, where the engine tells it."""
    return "this architecture" if engine is None else engine.architecture


def _of_gpus(rates: Rates, gpus: int) -> Rates:
    """The rates of several alike GPUs that share a model."""
    flops = {name: rate * gpus for name, rate in rates.matrix_flops_per_s.items()}
    return replace(rates, copy_bytes_per_s=rates.copy_bytes_per_s * gpus, matrix_flops_per_s=flops)


def _link(engine: EngineFacts, rates: Rates) -> floors.Link | None:
    """How an arm's GPUs exchange activations. None where they do not, as in the stages of a pipeline."""
    stages = engine.arguments.get("pipeline_parallel_size") or 1
    gpus = engine.gpus // stages if isinstance(stages, int) else engine.gpus
    if gpus < 2:
        return None
    exchange: floors.Exchange = "all-to-all" if engine.arguments.get("enable_attention_dp") else "all-reduce"
    width = 4.0 if engine.dtype == "float32" else 2.0
    return floors.Link(gpus, exchange, width, rates.link_bytes_per_s.get(gpus))


def _reached(floor: Floor, measured: Metric | None) -> FloorReached:
    """A floor beside the measured time. A median of 0 is no time."""
    predicted, median = 1000 * floor.seconds, measured.median if measured else None
    return FloorReached(floor, predicted, median, predicted / median if median else None)
