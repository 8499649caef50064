"""A broken-down trace, and the difference of two, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_eval.comparison.kernel_difference import PhaseDifference
from moe_eval.traces.figures import Breakdown, Ceiling, Function, Phase
from moe_eval.traces.kernel_table import COPY, KERNEL, SET, Trace
from moe_eval.traces.precision_seen import contradiction

_LONGEST = 1000  # characters of a kernel's name
_FUNCTIONS = 50


def record(name: str, trace: Trace, found: Breakdown, label: str | None) -> dict[str, Any]:
    """What a trace says; `run_id` is for the run that made it to fill in.

    Args:
        name: of the file, without its folder.
        label: the precision that was asked for, None where nobody said.
    """
    kinds = trace.kernels.kind
    wrong = contradiction(label, found.seen) if label else None
    return {
        "run_id": None,
        "trace": name,
        "source": dict(trace.source),
        "notes": [*trace.notes, *_uneven(found)],
        "kernels": int((kinds == KERNEL).sum()),
        "copies": int((kinds == COPY).sum()),
        "sets": int((kinds == SET).sum()),
        "total_ns": found.total_ns,
        "devices": found.devices,
        "steps_found_by": found.found_by,
        "gates_told": found.gates,
        "precision": label,
        "precision_seen": found.seen.precision,
        "moe_backend_seen": found.seen.backend,
        "evidence": found.seen.evidence,
        "contradiction": wrong,
        "verified": False if wrong else None if label is None or found.seen.precision is None else True,
        "phases": {phase.name: _phase(phase) for phase in found.phases},
    }


def _uneven(found: Breakdown) -> list[str]:
    """A sentence where phases run another number of MoE blocks: then a step is cut off, or several are one."""
    blocks = {phase.name: phase.moe_layers for phase in found.phases if phase.moe_layers}
    if len(set(blocks.values())) < 2:
        return []
    listed = ", ".join(f"{count} in {name}" for name, count in blocks.items())
    return [
        f"Steps run through different numbers of MoE blocks ({listed}): one is cut off by the recording's edge, or "
        "holds several forward passes (chunks of a prompt, drafts). Times of such a phase are not those of a step."
    ]


def _phase(found: Phase) -> dict[str, Any]:
    times = ("busy_ms", "overlap_ms", "span_ms", "idle_ms", "wall_ms", "gap_ms")
    return {
        "steps": found.steps,
        "set_aside": found.aside,
        "moe_layers": found.moe_layers,
        "categories": {
            each.category: {
                "ms": each.ms,
                "share": each.share,
                "launches": each.launches,
                "launches_per_layer": each.launches_per_layer,
            }
            for each in found.shares
        },
        "total_ms": found.kernel_ms,
        "total_launches": sum(each.launches for each in found.shares),
        **{name: getattr(found, name) for name in times},
        "ceiling": _ceiling(found.busy_ceiling),
        "wall_ceiling": None if found.wall_ceiling is None else _ceiling(found.wall_ceiling),
        "classified": found.classified,
        "unclassified": [_function(each) for each in found.unclassified],
        "functions": [_function(each) for each in found.functions[:_FUNCTIONS]],
        "layers_ms": {str(layer): ms for layer, ms in found.layers.items()},
    }


def _ceiling(found: Ceiling) -> dict[str, Any]:
    return {"expert_gemm_share": found.share, "if_free": found.free, "if_twice_as_fast": found.twice}


def _function(found: Function) -> dict[str, Any]:
    return {
        "name": found.name if len(found.name) <= _LONGEST else f"{found.name[:_LONGEST]}...",
        "category": found.category,
        "fused_with": list(found.fused_with),
        "ms": found.ms,
        "launches": found.launches,
    }


def difference(found: PhaseDifference, measured: float | None) -> dict[str, Any]:
    """The difference of one phase; `measured` is the speed-up without a profiler, where that is known."""
    return {
        "categories": {
            each.category: {
                "before_ms": each.before_ms,
                "after_ms": each.after_ms,
                "change_ms": each.change_ms,
                "before_launches": each.before_launches,
                "after_launches": each.after_launches,
            }
            for each in found.changes
        },
        "kernel_change_ms": found.kernel_ms,
        "step_is": "wall" if found.wall else "span",
        "step_ms": found.step_ms,
        "busy_ms": found.busy_ms,
        "overlap_change_ms": found.overlap_ms,
        "waiting_change_ms": found.waiting_ms,
        "residual_ms": found.residual_ms,
        "expert_gemm_ratio": found.gemm_ratio,
        "ceiling_at_that_ratio": None
        if found.ceiling is None
        else dict(zip(("busy", "wall"), found.ceiling, strict=True)),
        "predicted_ratio_busy": found.busy_ratio,
        "predicted_ratio_step": found.step_ratio,
        "measured_ratio": measured,
        "new": [_function(each) for each in found.new],
        "vanished": [_function(each) for each in found.vanished],
    }


def metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """A record as metrics of the common schema: kernels/PHASE/NAME."""
    found: dict[str, float] = {}
    for name, phase in content["phases"].items():
        for category, values in phase["categories"].items():
            found[f"kernels/{name}/{category}_ms"] = values["ms"]
            found[f"kernels/{name}/{category}_share"] = values["share"]
        if phase["ceiling"]["if_free"] is not None:
            found[f"kernels/{name}/ceiling"] = phase["ceiling"]["if_free"]
        for each in ("busy_ms", "wall_ms", "idle_ms"):
            if phase[each] is not None:
                found[f"kernels/{name}/{each}"] = phase[each]
    return found
