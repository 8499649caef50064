"""The record of a trace that is broken down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moe_eval.records.kernels import KernelsRecord, KernelTime, PhaseTime, TracedTime
from moe_eval.traces import breakdown, health, observed_cache
from moe_eval.traces.breakdown import Breakdown
from moe_eval.traces.kernel_table import COPY, KERNEL, SET, Trace
from moe_eval.traces.observed_precision import contradiction
from moe_eval.traces.phases import ceiling

_NAME_LENGTH = 1000  # characters of a kernel's name
_FUNCTIONS = 50


def make(
    name: str,
    trace: Trace,
    label: str | None,
    *,
    unprofiled_ms: Sequence[float] = (),
    profiled_ms: float | None = None,
) -> KernelsRecord:
    """The record of a trace, with all kernels of every phase. `shortened` is for a file.

    Args:
        name: of the file, without its folder.
        label: the precision that the arm is meant to run, None where nobody named one.
        unprofiled_ms: times of the same run without a profiler. `profiled_ms`: its time with it.
    """
    kinds = np.bincount(trace.kernels.kind, trace.kernels.count, 1 + max(KERNEL, COPY, SET))
    parts = breakdown.make(trace)
    wrong = contradiction(label, parts.observed) if label else None
    phases, warnings = health.check(trace, parts, unprofiled_ms, profiled_ms)
    total = TracedTime(
        sum(part.time for part in parts.whole.values()), 1.0, sum(part.count for part in parts.whole.values())
    )
    works = total.time - (parts.whole["collective_wait"].time if "collective_wait" in parts.whole else 0.0)
    experts = parts.whole["expert_gemm"].time if "expert_gemm" in parts.whole else 0.0
    record = KernelsRecord(
        trace=name,
        source=trace.source,
        notes=(*trace.notes, *_uneven(phases), *_unsplit(parts)),
        warnings=warnings,
        kernels=int(kinds[KERNEL]),
        copies=int(kinds[COPY]),
        sets=int(kinds[SET]),
        devices=parts.devices,
        steps_found_by=parts.steps_source,
        gates_told=parts.gates_source,
        precision=label,
        precision_seen=parts.observed.precision,
        moe_backend_seen=parts.observed.backend,
        evidence=parts.observed.evidence,
        contradiction=wrong,
        verified=False if wrong else None if label is None or parts.observed.precision is None else True,
        kv_cache_seen=observed_cache.observe(trace.kernels.names),
        categories=parts.whole,
        transfer_ms=parts.transfer_ms,
        total=total,
        ceiling=ceiling(experts / works if works else 0.0).if_free,
        phases=phases,
    )
    return with_times(record, unprofiled_ms, profiled_ms)


def with_times(record: KernelsRecord, unprofiled_ms: Sequence[float], profiled_ms: float | None) -> KernelsRecord:
    """The record with the times of its run without a profiler, the time with it, and the profiler's overhead."""
    plain = float(np.median(unprofiled_ms)) if unprofiled_ms else None
    return replace(
        record,
        unprofiled_ms=plain,
        unprofiled_samples_ms=tuple(unprofiled_ms),
        profiled_ms=profiled_ms,
        profiler_overhead=profiled_ms / plain - 1 if profiled_ms and plain else None,
    )


def shortened(record: KernelsRecord) -> KernelsRecord:
    """The record with the 50 longest kernels of every phase, and at most 1,000 characters of their names."""
    phases = {
        name: replace(
            phase,
            functions=tuple(map(short_name, phase.functions[:_FUNCTIONS])),
            unclassified=tuple(map(short_name, phase.unclassified)),
        )
        for name, phase in record.phases.items()
    }
    return replace(record, phases=phases)


def short_name(kernel: KernelTime) -> KernelTime:
    """The kernel with at most 1,000 characters of its name."""
    short = len(kernel.name) <= _NAME_LENGTH
    return kernel if short else replace(kernel, name=f"{kernel.name[:_NAME_LENGTH]}...")


def figures(record: KernelsRecord) -> dict[str, float]:
    """The figures of a record for trackers and tables, by PHASE/NAME."""
    values: dict[str, float] = {}
    for name, phase in record.phases.items():
        for category, time in phase.categories.items():
            values[f"{name}/{category}_ms"] = time.ms
            values[f"{name}/{category}_share"] = time.share
        optional = {
            "ceiling": phase.ceiling.if_free if phase.ceiling else None,
            "busy_ms": phase.busy_ms,
            "wall_ms": phase.wall_ms,
            "idle_ms": phase.idle_ms,
            "expert_imbalance": phase.expert_imbalance,
        }
        values |= {f"{name}/{key}": value for key, value in optional.items() if value is not None}
    return values


def _unsplit(parts: Breakdown) -> list[str]:
    """A note on collectives whose waiting is not known."""
    if "allreduce" in parts.whole and not any(phase.ranks for phase in parts.phases.values()):
        return ["The trace has collectives of one rank alone. Waiting cannot be told from transfer in allreduce."]
    unmatched = sum(phase.collectives.unmatched for phase in parts.phases.values() if phase.collectives)
    if not unmatched:
        return []
    return [f"{unmatched:,} collectives have no partner on another rank. Their time is neither transfer nor wait."]


def _uneven(phases: Mapping[str, PhaseTime]) -> list[str]:
    """A note where phases run another number of MoE blocks: then a step is cut off, or several are one."""
    blocks = {name: phase.moe_layers for name, phase in phases.items() if phase.moe_layers}
    if len(set(blocks.values())) < 2:
        return []
    counts = ", ".join(f"{count} in {name}" for name, count in blocks.items())
    return [
        f"Steps run through different numbers of MoE blocks ({counts}). A step is cut off by the recording's edge, "
        "or it holds several forward passes (chunks of a prompt, drafts). The times of such a phase are not those of a "
        "step."
    ]
