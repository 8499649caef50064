"""Whether the kernels of two traces explain the ratio that was measured without a profiler."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.ratios import Ratio, SpeedRatios
from moe_eval.records.shape_comparison import PhaseChange

# a measured ratio may be off a prediction by this factor either way
EXPLAINED = 1.15
# waiting for the host can move a ratio by more than that factor where nothing runs for more of a step
_HOST_BOUND = 1 - 1 / EXPLAINED


def other_profiler(before: KernelsRecord, after: KernelsRecord, names: tuple[str, str]) -> str | None:
    """A sentence where two profilers traced the arms: each makes launches and gaps dearer by another amount."""
    profilers = [_profiler(record) for record in (before, after)]
    if None in profilers or profilers[0] == profilers[1]:
        return None
    return (
        f"The kernels are not compared: {names[0]} was traced by {profilers[0]} and {names[1]} by {profilers[1]}. "
        "Trace both with one --profiler."
    )


def _profiler(record: KernelsRecord) -> str | None:
    """Its name. None where the record does not tell."""
    if record.source is None:
        return None
    return "Nsight Systems" if record.source.format.startswith("nsys") else "torch's profiler"


def by_phase(speed: SpeedRatios) -> Mapping[str, Ratio | None]:
    """The ratio of the time that a phase is most of: the first token's of prefill, an output token's of decode."""
    return {"prefill": speed.ttft_ms, "decode": speed.tpot_ms}


def explains(change: PhaseChange) -> bool | None:
    """Whether the measured ratio lies between the two predictions, or within EXPLAINED of one of them.

    Kernels alone take launches for free, and steps under the profiler have them dearer than they are. So the truth lies
    between the two, or near one of them.

    Returns:
        None where nothing was measured or predicted, and where the kernels' prediction is away from what was measured
        and that of steps is not known.
    """
    predictions = [ratio for ratio in (change.predicted_ratio_busy, change.predicted_ratio_step) if ratio is not None]
    if change.measured_ratio is None or not predictions:
        return None
    is_near = min(predictions) / EXPLAINED <= change.measured_ratio <= max(predictions) * EXPLAINED
    return is_near or (None if len(predictions) < 2 else False)


def cause(change: PhaseChange, names: tuple[str, str]) -> str:
    """A sentence on why the kernels may not explain a ratio. Empty where they do, or where nobody can tell.

    Args:
        names: of the two arms, the reference first.
    """
    if explains(change) is not False or change.idle_share is None:
        return ""
    (share, name), (smaller, busier) = sorted(zip(change.idle_share, names, strict=True), reverse=True)
    if share > _HOST_BOUND:
        return (
            f"Nothing runs for {100 * share:.0f} % of the step of {name} ({busier}: {100 * smaller:.0f} %), so the "
            "host may be what is waited for."
        )
    return f"Kernels fill at least {100 * (1 - share):.0f} % of both steps, so the timed runs may not be as the traced."
