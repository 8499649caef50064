"""The difference of two traces from their records alone, without reading the traces again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from moe_eval.comparison import kernel_difference
from moe_eval.comparison.kernel_difference import PhaseDifference
from moe_eval.data.workload import Shape
from moe_eval.evaluators import kernels_record
from moe_eval.records.comparison import PhaseChange
from moe_eval.records.kernels import Ceiling as CeilingRecord
from moe_eval.records.kernels import KernelsRecord, PhaseTime
from moe_eval.traces.figures import Breakdown, Ceiling, Function, Phase, Share
from moe_eval.traces.precision_seen import Seen

_TIMES = ("busy_ms", "overlap_ms", "span_ms", "idle_ms", "wall_ms", "gap_ms")
_SHAPE = re.compile(r"b(?P<batch_size>\d+)_i(?P<input_len>\d+)_o(?P<output_len>\d+)")


def matching(name: str, among: Iterable[str]) -> str | None:
    """The traced shape that belongs to a timed one: its own, else one that differs in the tokens made alone.

    A trace of a few tokens has the same prefill and the same decode steps as a timed run that makes hundreds.
    """
    traced = list(among)
    if name in traced:
        return name
    timed = sizes(name)
    same = [shape for shape in traced if timed and _without_output(sizes(shape)) == _without_output(timed)]
    return same[0] if len(same) == 1 else None


def sizes(name: str) -> Shape | None:
    """The shape that is named; None where it is no such name."""
    match = _SHAPE.fullmatch(name)
    return Shape(*map(int, match.groups())) if match else None


def _without_output(shape: Shape | None) -> tuple[int, int] | None:
    return (shape.batch_size, shape.input_len) if shape else None


def changes(
    before: KernelsRecord, after: KernelsRecord, names: tuple[str, str], measured: Mapping[str, float | None]
) -> dict[str, PhaseChange]:
    """The difference of every phase that both records have, with a paragraph as `text`.

    Args:
        names: of the two arms.
        measured: by phase, how many times faster the second is without a profiler.
    """
    differences = kernel_difference.make(_breakdown(before), _breakdown(after))
    return {phase.name: _change(phase, names, measured.get(phase.name)) for phase in differences}


def _change(phase: PhaseDifference, names: tuple[str, str], measured: float | None) -> PhaseChange:
    content = kernels_record.difference(phase, measured)
    ceiling = content["ceiling_at_that_ratio"] or {"busy": None, "wall": None}
    # a phase in which nothing ran has no ratio to tell
    has_ratios = phase.step_ms is None or (phase.busy_ratio is not None and phase.step_ratio is not None)
    text = kernel_difference.explain(phase, names, measured) if has_ratios else ""
    content |= {"ceiling_busy": ceiling["busy"], "ceiling_wall": ceiling["wall"], "text": text}
    return msgspec.convert(content, PhaseChange)


def _breakdown(record: KernelsRecord) -> Breakdown:
    phases = tuple(_phase(name, phase) for name, phase in record.phases.items())
    # a difference asks for the phases alone
    return Breakdown(phases, "", "", 0, 0, 0, Seen(record.precision_seen, None, ""))


def _phase(name: str, record: PhaseTime) -> Phase:
    return Phase(
        name=name,
        steps=record.steps,
        aside=dict(record.set_aside),
        shares=tuple(Share(category, **vars(time)) for category, time in record.categories.items()),
        functions=tuple(Function(**vars(kernel)) for kernel in record.functions),
        kernel_ms=record.total_ms,
        **{time: getattr(record, time) for time in _TIMES},
        classified=record.classified,
        unclassified=(),
        busy_ceiling=_ceiling(record.ceiling),
        wall_ceiling=_ceiling(record.wall_ceiling) if record.wall_ceiling else None,
        moe_layers=record.moe_layers,
        layers={},
    )


def _ceiling(record: CeilingRecord) -> Ceiling:
    return Ceiling(record.expert_gemm_share, record.if_free, record.if_twice_as_fast)
