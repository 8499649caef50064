"""How much faster an arm is than another at a shape, and whether both did the same work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from moe_eval import stats
from moe_eval.comparison.comparable import engine
from moe_eval.data.workload import Shape
from moe_eval.evaluators.speed import OF_CALLS, OF_TOKENS
from moe_eval.records.comparison import PairSchedule
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.ratios import Ratio, SpeedRatios
from moe_eval.records.run import CUT_SHORT
from moe_eval.records.samples import Sample
from moe_eval.records.shape_comparison import Clocks, Fairness
from moe_eval.records.shape_latency import Routing, ShapeLatency

_MOST_APART = 0.05  # of the greater number of experts: beyond it two arms have not done the same work
# How far two runs are taken to be apart beside what their loads show: a load of Qwen3-MoE in BF16 on one H100 and one
# on another machine's differed by up to 4.3 % (batch 1)
BETWEEN_RUNS = 1.05
_Loads = Sequence[Sequence[Sample]]
_Reader = Callable[[Sample, str], float | None]


def ratios(
    reference: ShapeLatency, candidate: ShapeLatency, schedule: PairSchedule, decode_widened: float = 1.0
) -> SpeedRatios:
    """How much faster the candidate is by every time, and how many times less energy it takes.

    Args:
        decode_widened: the factor by which intervals of times with decode steps are wider, see Fairness.
    """
    speed_ratios = _ratios(reference, candidate, (reference.loads, candidate.loads), schedule, decode_widened)
    return _without_intervals(speed_ratios) if _is_quick(reference) or _is_quick(candidate) else speed_ratios


def _is_quick(shape: ShapeLatency) -> bool:
    """Whether a warm-up was cut short on request, so that times drift by an unknown amount."""
    return any(warm_up.ended == CUT_SHORT for warm_up in shape.warm_ups)


def _without_intervals(speed_ratios: SpeedRatios) -> SpeedRatios:
    bare = {"low": None, "high": None, "error": None, "df": None}
    figures = {field.name: getattr(speed_ratios, field.name) for field in fields(speed_ratios)}
    return SpeedRatios(**{name: ratio and replace(ratio, **bare) for name, ratio in figures.items()})


def unthrottled(
    reference: ShapeLatency, candidate: ShapeLatency, schedule: PairSchedule, decode_widened: float = 1.0
) -> SpeedRatios:
    """The same ratios without the iterations that ran at a low clock."""
    speed_ratios = _ratios(reference, candidate, (_fast(reference), _fast(candidate)), schedule, decode_widened)
    return _without_intervals(speed_ratios) if _is_quick(reference) or _is_quick(candidate) else speed_ratios


def _fast(shape: ShapeLatency) -> _Loads:
    """The iterations of every load that did not run at a low clock."""
    loads = []
    for index, load in enumerate(shape.loads):
        flags = [flag for turn in shape.turns if turn.load == index for flag in turn.slow_samples]
        loads.append([sample for sample, is_slow in zip(load, flags, strict=False) if not is_slow])
    return loads


def _ratios(
    reference: ShapeLatency,
    candidate: ShapeLatency,
    loads: tuple[_Loads, _Loads],
    schedule: PairSchedule,
    decode_widened: float,
) -> SpeedRatios:
    steps = reference.output_len - 1

    def tpot(sample: Sample, source: str) -> float | None:
        first, last = sample.first.get(source), sample.last.get(source)
        if sample.per_token is not None:
            return None if first is None and last is None else sample.per_token
        return None if first is None or last is None else (last - first) / steps

    def joules(sample: Sample, source: str) -> float | None:
        return sample.energy_j if source in sample.last else None

    return SpeedRatios(
        e2e_ms=_ratio(loads, OF_CALLS, lambda sample, source: sample.last.get(source), schedule, decode_widened),
        ttft_ms=_ratio(loads, OF_TOKENS, lambda sample, source: sample.first.get(source), schedule),
        tpot_ms=_ratio(loads, OF_TOKENS, tpot, schedule, decode_widened) if steps else None,
        j_per_tok=_ratio(loads, OF_CALLS, joules, schedule, decode_widened),
    )


def _ratio(
    sides: tuple[_Loads, _Loads], order: Sequence[str], value_of: _Reader, schedule: PairSchedule, widened: float = 1.0
) -> Ratio | None:
    """Reference over candidate. None where a side has no load, or one of the values is no positive number.

    The interval is by load: of one run Student's over pairs of loads, of two runs Welch's over both runs' loads.

    Args:
        order: of the clocks, the best one first. The first by which all samples have a value counts.
    """
    if schedule.one_run:
        pairs = [pair for pair in zip(*sides, strict=False) if all(pair)]
        sides = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    above, below = ([load for load in loads if load] for loads in sides)
    samples = [sample for load in (*above, *below) for sample in load]
    timed = [name for name in order if all(value_of(sample, name) is not None for sample in samples)]
    if not above or not below or not timed:
        return None
    logs = _log_medians(above, value_of, timed[0]), _log_medians(below, value_of, timed[0])
    if logs[0] is None or logs[1] is None:
        return None
    return ratio_of_loads(logs[0], logs[1], timed[0], schedule, widened)


def _log_medians(loads: _Loads, value_of: _Reader, source: str) -> list[float] | None:
    """ln(median) of every load. None where a value is not there, or is no positive number."""
    medians = []
    for load in loads:
        values = [value for sample in load if (value := value_of(sample, source)) is not None and value > 0]
        if len(values) < len(load):
            return None
        medians.append(math.log(statistics.median(values)))
    return medians


def ratio_of_loads(
    above: Sequence[float], below: Sequence[float], source: str, schedule: PairSchedule, widened: float = 1.0
) -> Ratio:
    """The ratio of two sides, by the logarithms of their loads' medians.

    Args:
        above, below: of as many loads where one run measured both.
        source: the clock.
        widened: the factor by which the interval is wider either way than loads show.
    """
    loads, level = min(len(above), len(below)), stats.ERROR_RATE
    if loads < 2:
        return Ratio(math.exp(statistics.fmean(above) - statistics.fmean(below)), None, None, loads, source)
    if schedule.looks > 1:
        first_look = stats.LEAST_LOADS
        level = stats.look_level(first_look + schedule.look - 1, first_look + schedule.looks - 1, first_look, level)
    confidence = 1 - 2 * level
    if schedule.one_run:
        estimate = stats.mean_interval([a - b for a, b in zip(above, below, strict=True)], confidence)
    else:
        estimate, widened = stats.difference_interval(above, below, confidence), widened * BETWEEN_RUNS
    return Ratio(
        value=math.exp(estimate.value),
        low=math.exp(estimate.low) / widened,
        high=math.exp(estimate.high) * widened,
        loads=loads,
        source=source,
        error=estimate.error,
        df=estimate.df,
        widened=widened,
        confidence=confidence,
    )


def fairness(reference: LatencyRecord, candidate: LatencyRecord, shape: Shape) -> Fairness:
    """Whether both ran alike steps and tokens spread over alike numbers of experts."""
    reason = _steps_differ(reference, candidate, shape) or _graphs_differ(reference, candidate, shape)
    if reason:
        return Fairness(False, reason)
    routings = []
    for record in (reference, candidate):
        routing = (record.routing or {}).get(shape.batch_size)
        if routing is None:
            return Fairness(None, f"{record.arm}: {record.no_routing or 'not counted at this batch size'}")
        routings.append(routing)
    reason = _experts_differ(routings[0], routings[1], (reference.arm, candidate.arm))
    distinct = [routing.distinct for routing in routings if routing.distinct]
    return Fairness(reason is None, reason, max(distinct) / min(distinct) if len(distinct) == 2 else 1.0)


def _steps_differ(reference: LatencyRecord, candidate: LatencyRecord, shape: Shape) -> str | None:
    """Why engines that read the prompts over different numbers of steps cannot be compared."""
    tokens = shape.batch_size * shape.input_len
    limits = [facts.max_step_tokens if facts else None for facts in (engine(reference), engine(candidate))]
    steps = [math.ceil(tokens / limit) if limit else 1 for limit in limits]
    if steps[0] == steps[1]:
        return None
    per_step = [limit or "any number of" for limit in limits]
    return (
        f"{reference.arm} reads {tokens} prompt tokens over {steps[0]} steps and {candidate.arm} over {steps[1]}. "
        f"Their engines read {per_step[0]} and {per_step[1]} tokens a step. Give both the same limit."
    )


def _graphs_differ(reference: LatencyRecord, candidate: LatencyRecord, shape: Shape) -> str | None:
    """Why a decode step that is a CUDA graph in one arm alone cannot be compared."""
    by_graph = [
        facts.decodes_by_graph(shape.batch_size) if facts else None for facts in (engine(reference), engine(candidate))
    ]
    if None in by_graph or by_graph[0] == by_graph[1] or shape.output_len == 1:
        return None
    graph, plain = (reference.arm, candidate.arm) if by_graph[0] else (candidate.arm, reference.arm)
    return f"{graph} decodes with CUDA graphs and {plain} without. Give both the same cuda_graph_batch_sizes."


def _experts_differ(reference: Routing, candidate: Routing, arms: tuple[str, str]) -> str | None:
    """Why tokens that spread over too different numbers of experts forbid a verdict on speed.

    Both the experts that a decode step reads and the effective number of the whole load count: at batch 1 every step
    reads top_k experts, also where a router has collapsed and the prefill's matrices have other shapes.
    """
    if (reference.distinct is None) != (candidate.distinct is None):
        return f"Only one of {arms[0]} and {arms[1]} has decode steps."
    for before, after, unit in (
        (reference.distinct, candidate.distinct, "experts per layer and step"),
        (reference.effective, candidate.effective, "equally loaded experts per layer, prompts and all"),
    ):
        if before is not None and after is not None and abs(before - after) > _MOST_APART * max(before, after):
            return (
                f"{arms[0]} reads {before:.1f} {unit}. {arms[1]} reads {after:.1f}, "
                f"which is more than {100 * _MOST_APART:g} % apart."
            )
    return None


def clocks(reference: ShapeLatency, candidate: ShapeLatency) -> Clocks:
    """The SM clocks of both arms at a shape."""
    (before_mhz, before_slow), (after_mhz, after_slow) = _clock(reference), _clock(candidate)
    return Clocks((before_mhz, after_mhz), (before_slow, after_slow))


def _clock(shape: ShapeLatency) -> tuple[float | None, int | None]:
    """The median clock in MHz, and how many iterations ran at a low one."""
    mhz = [gpu.sm_mhz_median for turn in shape.turns for gpu in turn.gpus if gpu.sm_mhz_median is not None]
    flags = [flag for turn in shape.turns for flag in turn.slow_samples if flag is not None]
    return statistics.median(mhz) if mhz else None, sum(flags) if flags else None
