"""The record of one arm's latency, made from its iterations and what is known of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from moe_eval.checkpoint.geometry import Geometry
from moe_eval.data.workload import Shape, Workload
from moe_eval.evaluators import shape_floors, speed
from moe_eval.evaluators.trend import trend
from moe_eval.evaluators.warm_up import UNSETTLED
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.rates import Rates
from moe_eval.records.labels import ArmLabels, EngineFacts, Origin, Status
from moe_eval.records.latency import Capacity, LatencyRecord, MemoryUse, WorkloadLabel
from moe_eval.records.run import CUT_SHORT, Schedule
from moe_eval.records.samples import Sample, Turn, WarmUp
from moe_eval.records.shape_latency import Routing, ShapeLatency


@frozen
class Context:
    """What all latency records of a run share.

    Attributes:
        workload: None where every arm is skipped.
        geometry: of the model. None where it is not understood, and then there are no floors.
        gpus: those of the arm. None for the machine's.
        rates: what the machine reaches, or why it is not known.
    """

    origin: Origin
    workload: Workload | None
    schedule: Schedule
    fusion_disabled: bool
    geometry: Geometry | None = None
    rates: Rates | str = "the machine's rates were not measured"
    gpus: tuple[Gpu, ...] | None = None


@dataclass
class Measured:
    """What has been measured of one arm so far.

    Attributes:
        warm_ups: by shape, of every load. `loads`: by shape, the samples of every load. An empty one was not measured.
            `turns`: by shape, what NVML saw. `nvml`: why it does not see everything.
        routing: by batch size. None where it was not counted, and `no_routing` says why.
    """

    arm: str
    precision: str
    status: Status
    error: str | None = None
    labels: ArmLabels = field(default_factory=ArmLabels)
    warm_ups: dict[str, list[WarmUp]] = field(default_factory=dict)
    loads: dict[str, list[list[Sample]]] = field(default_factory=dict)
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    nvml: str | None = None
    memory: tuple[MemoryUse, ...] = ()
    capacity: Capacity | None = None
    routing: Mapping[int, Routing] | None = None
    no_routing: str | None = None

    def samples(self, shape: Shape) -> list[Sample]:
        """All samples of a shape, in order."""
        return [sample for load in self.loads.get(shape.name, ()) for sample in load]

    @property
    def executed(self) -> str:
        """What the loaded kernels compute in: not what was planned where the engine chose weight-only ones."""
        engine = self.labels.engine
        return engine.precision if engine else self.precision


def record(measured: Measured, context: Context) -> LatencyRecord:
    """One arm's record. Figures of the first shape also stand at the top."""
    shapes = context.workload.shapes if context.workload else ()
    rows = tuple(_shape(measured, shape, context) for shape in shapes if measured.samples(shape))
    first = rows[0] if rows else None
    engine, machine = measured.labels.engine, context.origin.machine
    gpus = context.gpus or (machine.gpus if machine else ())
    return LatencyRecord(
        arm=measured.arm,
        precision=measured.executed,
        precision_planned=measured.precision,
        status=measured.status,
        error=measured.error,
        quant_algo=engine.quant_algo if engine else None,
        weights=engine.weights if engine else None,
        sm_version=gpus[0].capability if gpus else None,
        gpu_name=gpus[0].name if gpus else None,
        engine=engine.name if engine else None,
        moe_backend=engine.moe_backend_observed if engine else None,
        fusion_disabled=context.fusion_disabled,
        workload=WorkloadLabel(context.workload.digest, context.workload.source) if context.workload else None,
        schedule=context.schedule,
        batch_size=first.batch_size if first else None,
        input_len=first.input_len if first else None,
        output_len=first.output_len if first else None,
        num_iterations=first.num_iterations if first else None,
        warmup_iterations=first.warmup_iterations if first else None,
        mean_latency_ms=first.figures.mean_latency_ms if first else None,
        std_latency_ms=first.figures.std_latency_ms if first else None,
        output_tokens_per_sec=first.output_tokens_per_sec if first else None,
        prefill_tokens_per_sec=first.prefill_tokens_per_sec if first else None,
        shapes=rows,
        memory=measured.memory,
        capacity=measured.capacity,
        nvml=measured.nvml,
        routing=measured.routing,
        no_routing=measured.no_routing,
        rates=context.rates if isinstance(context.rates, Rates) else None,
        no_rates=context.rates if isinstance(context.rates, str) else None,
        labels=measured.labels,
        origin=context.origin,
    )


def _shape(measured: Measured, shape: Shape, context: Context) -> ShapeLatency:
    samples = measured.samples(shape)
    figures = speed.figures([load for load in measured.loads[shape.name] if load], shape)
    metrics = figures.metrics
    warm_ups = measured.warm_ups.get(shape.name, [])
    routing = measured.routing[shape.batch_size] if measured.routing else None
    return ShapeLatency(
        **asdict(shape),
        name=shape.name,
        num_iterations=len(samples),
        warmup_iterations=tuple(len(warm_up.seconds) for warm_up in warm_ups),
        figures=figures,
        output_tokens_per_sec=metrics.output_tok_s.median if metrics.output_tok_s else None,
        prefill_tokens_per_sec=metrics.prefill_tok_s.median if metrics.prefill_tok_s else None,
        notes=(*figures.notes, *_notes(measured, shape)),
        experts_per_layer_step=routing.distinct if routing else None,
        experts_of_independent_draws=routing.independent if routing else None,
        floors=shape_floors.read(
            measured.labels.engine,
            measured.executed,
            shape,
            metrics,
            geometry=context.geometry,
            rates=context.rates,
            distinct_experts=routing.distinct if routing else None,
        ),
        turns=tuple(measured.turns.get(shape.name, ())),
        warm_ups=tuple(warm_ups),
        loads=tuple(tuple(load) for load in measured.loads[shape.name]),
    )


def _notes(measured: Measured, shape: Shape) -> list[str]:
    """What a reader of a shape's figures has to know, beside what the figures themselves say."""
    notes = []
    flags = [flag for turn in measured.turns.get(shape.name, ()) for flag in turn.slow_samples]
    total = len(measured.samples(shape))
    if None in flags and measured.nvml is None:
        notes.append(
            f"whether the clock was low is not known of {flags.count(None)} of {total} iterations: shorter than NVML's "
            "sampling, or a GPU without a default clock"
        )
    if True in flags:
        notes.append(f"{flags.count(True)} of {total} iterations ran at under 75 % of the GPU's default clock")
    if measured.labels.engine is not None:
        notes += _step_notes(measured.labels.engine, shape)
    if measured.executed != measured.precision:
        notes.append(f"the engine chose kernels of {measured.executed} where {measured.precision} was planned")
    warm_ups = measured.warm_ups.get(shape.name, [])
    unsettled = sum(warm_up.ended == UNSETTLED for warm_up in warm_ups)
    if unsettled:
        notes.append(f"{unsettled} of {len(warm_ups)} warm-ups ended without having settled")
    if any(warm_up.ended == CUT_SHORT for warm_up in warm_ups):
        notes.append(f"warm-up: {CUT_SHORT}")
    return [*notes, *_trend_notes(measured, shape)]


def _trend_notes(measured: Measured, shape: Shape) -> list[str]:
    source = speed.timed_by(measured.samples(shape), speed.OF_CALLS)
    drift = trend([[sample.last[source] for sample in load] for load in measured.loads[shape.name]])
    if drift is None:
        return []
    moved = f"{'fell' if drift.change < 0 else 'rose'} by {100 * abs(drift.change):.2g} %"
    return [f"end-to-end times {moved} within a load: the warm-up was too short"]


def _step_notes(engine: EngineFacts, shape: Shape) -> list[str]:
    """Where the steps of a shape are not what its figures are taken for."""
    notes = []
    tokens, budget = shape.batch_size * shape.input_len, engine.max_step_tokens
    if budget and tokens > budget:
        notes.append(
            f"the engine reads {budget} tokens a step and the prompts have {tokens}, so they are read over "
            f"{math.ceil(tokens / budget)} steps or more. Other sequences decode meanwhile. TTFT is the time of the "
            "last sequence, and TPOT is not one step of the whole batch"
        )
    graphs = engine.cuda_graph_batch_sizes
    if engine.decodes_by_graph(shape.batch_size) is not False:
        return notes
    if not graphs:
        notes.append("decode ran without CUDA graphs")
    elif shape.batch_size > max(graphs):
        notes.append(f"decode ran without CUDA graphs, of which the largest is for {max(graphs)} sequences")
    else:
        notes.append(
            f"decode ran without CUDA graphs, of which none is for {shape.batch_size} sequences and none is padded to "
            "(give cuda_graph_batch_sizes, or turn padding on)"
        )
    return notes
