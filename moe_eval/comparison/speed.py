"""How much faster an arm is than another at a shape, and whether both did the same work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from moe_eval import stats
from moe_eval.comparison.comparable import engine
from moe_eval.data.workload import Shape
from moe_eval.errors import UsageError
from moe_eval.evaluators.speed import OF_CALLS, OF_TOKENS
from moe_eval.records.comparison import Clocks, Fairness, Ratio, SpeedRatios
from moe_eval.records.latency import LatencyRecord, Routing, Sample, ShapeLatency

_MOST_APART = 0.05  # of the greater number of experts: beyond it two arms have not done the same work
_Reader = Callable[[Sample, str], float]


def ratios(reference: ShapeLatency, candidate: ShapeLatency) -> SpeedRatios:
    """How much faster the candidate is by every time."""
    pairs = [pair for pair in zip(reference.blocks, candidate.blocks, strict=False) if all(pair)]
    steps = max(reference.output_len - 1, 1)
    return SpeedRatios(
        e2e_ms=_ratio(pairs, OF_CALLS, lambda sample, source: sample.last[source]),
        ttft_ms=_ratio(pairs, OF_TOKENS, lambda sample, source: sample.first[source]),
        tpot_ms=None
        if reference.output_len == 1
        else _ratio(pairs, OF_TOKENS, lambda sample, source: (sample.last[source] - sample.first[source]) / steps),
    )


def _ratio(
    pairs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]], order: Sequence[str], time: _Reader
) -> Ratio | None:
    """Reference over candidate, with the interval of stats.block_ratio.

    None where no block was measured on both sides, or one of the times is no positive number.

    Args:
        pairs: samples of both arms by block, none of them empty.
        order: of the clocks, the best one first. The first that timed all samples counts.
    """
    samples = [sample for pair in pairs for block in pair for sample in block]
    timed = [name for name in order if all(name in sample.first and name in sample.last for sample in samples)]
    if not samples or not timed:
        return None
    source = timed[0]
    above = [[time(sample, source) for sample in block] for block, _ in pairs]
    below = [[time(sample, source) for sample in block] for _, block in pairs]
    if min(map(min, [*above, *below])) <= 0:  # a difference of two calls that are too short to tell apart
        return None
    try:
        ratio = stats.block_ratio(above, below)
    except (UsageError, OverflowError):
        return Ratio(statistics.median(above[0]) / statistics.median(below[0]), None, None, len(pairs), source)
    return Ratio(ratio.value, ratio.low, ratio.high, len(pairs), source)


def fairness(reference: LatencyRecord, candidate: LatencyRecord, shape: Shape) -> Fairness:
    """Whether both read prompts over as many steps and tokens spread over alike numbers of experts."""
    reason = _steps_differ(reference, candidate, shape)
    if reason:
        return Fairness(False, reason)
    routings = []
    for record in (reference, candidate):
        routing = (record.routing or {}).get(shape.batch_size)
        if routing is None:
            return Fairness(None, f"{record.arm}: {record.no_routing or 'not counted at this batch size'}")
        routings.append(routing)
    reason = _experts_differ(routings[0], routings[1], (reference.arm, candidate.arm))
    return Fairness(reason is None, reason)


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
