"""The difference of two traces from their records alone, without reading the traces again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from moe_eval.comparison import kernel_difference
from moe_eval.evaluators import kernels_record
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
    asked = sizes(name)
    same = [each for each in traced if asked and _without_output(sizes(each)) == _without_output(asked)]
    return same[0] if len(same) == 1 else None


def sizes(name: str) -> dict[str, int] | None:
    """batch_size, input_len and output_len of a shape's name; None where it is no such name."""
    found = _SHAPE.fullmatch(name)
    return {key: int(value) for key, value in found.groupdict().items()} if found else None


def _without_output(found: Mapping[str, int] | None) -> dict[str, int] | None:
    return {key: value for key, value in found.items() if key != "output_len"} if found else None


def changes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    names: tuple[str, str],
    measured: Mapping[str, float | None],
) -> dict[str, dict[str, Any]]:
    """kernels_record.difference of every phase that both records have, with a paragraph as `text`.

    Args:
        before, after: kernels_record.record of two traces. They hold the 50 functions that take the most, so of
            functions beyond these nothing is said to be new or to have vanished.
        names: of the two arms.
        measured: by phase, how many times faster the second is without a profiler.
    """
    found = {}
    for each in kernel_difference.make(_breakdown(before), _breakdown(after)):
        ratio = measured.get(each.name)
        # a phase in which nothing ran has no ratio to tell
        told = each.step_ms is None or (each.busy_ratio is not None and each.step_ratio is not None)
        text = kernel_difference.explain(each, names, ratio) if told else ""
        found[each.name] = {**kernels_record.difference(each, ratio), "text": text}
    return found


def _breakdown(record: Mapping[str, Any]) -> Breakdown:
    phases = tuple(_phase(name, each) for name, each in record["phases"].items())
    # a difference asks for the phases alone
    return Breakdown(phases, "", "", 0, 0, 0, Seen(record["precision_seen"], None, ""))


def _phase(name: str, record: Mapping[str, Any]) -> Phase:
    wall = record["wall_ceiling"]
    return Phase(
        name=name,
        steps=record["steps"],
        aside=dict(record["set_aside"]),
        shares=tuple(Share(category, **each) for category, each in record["categories"].items()),
        functions=tuple(_function(each) for each in record["functions"]),
        kernel_ms=record["total_ms"],
        **{each: record[each] for each in _TIMES},
        classified=record["classified"],
        unclassified=(),
        busy_ceiling=_ceiling(record["ceiling"]),
        wall_ceiling=_ceiling(wall) if wall else None,
        moe_layers=record["moe_layers"],
        layers={},
    )


def _function(record: Mapping[str, Any]) -> Function:
    fields = ("name", "category", "ms", "launches")
    return Function(**{each: record[each] for each in fields}, fused_with=tuple(record["fused_with"]))


def _ceiling(record: Mapping[str, Any]) -> Ceiling:
    return Ceiling(record["expert_gemm_share"], record["if_free"], record["if_twice_as_fast"])
