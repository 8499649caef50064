"""Recorded arms compared with the first of them, from their records alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.comparison import (
    comparable,
    compared_arm,
    contrast,
    explained,
    headlines,
    label_differences,
    quality,
    serving,
    serving_verdict,
    speed,
    task_quality,
    task_rows,
    traced,
    verdict,
)
from moe_eval.comparison.comparable import measured
from moe_eval.comparison.compared_arm import categories, interval, timed
from moe_eval.data.workload import Shape
from moe_eval.machine import collector
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord, Pair, PairSchedule
from moe_eval.records.kernels import KernelsRecord, PhaseTime
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.ratios import Interval, Sides
from moe_eval.records.run import RunRecord, Skipped
from moe_eval.records.shape_comparison import CeilingOfPhase, ShapeComparison
from moe_eval.records.shape_latency import ShapeLatency
from moe_eval.records.task_comparison import TaskComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import LEAST_LOADS

if TYPE_CHECKING:
    from moe_eval.evaluators.quality import Scores

_METRICS = ("e2e_ms", "ttft_ms", "tpot_ms", "j_per_tok")


@collector.paused()
def compare(
    arms: Sequence[ArmRecords],
    *,
    runs: Sequence[RunRecord] = (),
    across: Collection[str] = (),
    rules: Rules | None = None,
) -> ComparisonRecord:
    """Compare every arm with the first one.

    Args:
        arms: at least one.
        runs: that measured the arms, in the order in which they were given.
        across: what may differ nevertheless, see comparable.ACROSS.
        rules: of the verdicts. None for the default ones.

    Raises:
        UsageError: the arrays of a quality record are damaged, or documents or prompts of a task differ.
    """
    rules = rules or Rules()
    compared = tuple(compared_arm.of_records(arm, rules.price_per_gpu_hour) for arm in arms)
    by_name = {arm.name: arm for arm in compared}
    tasks = task_quality.judged([_tasks(arms[0], candidate) for candidate in arms[1:]], rules.max_drop)
    load = lru_cache(maxsize=2)(quality.load_scores)  # the reference's, and those of one arm
    undecided = [
        replace(_pair(arms[0], candidate, across, load), tasks=entries)
        for candidate, entries in zip(arms[1:], tasks, strict=True)
    ]
    pairs = verdict.decide(serving_verdict.decide(undecided, rules), by_name, rules)
    return ComparisonRecord(
        reference=arms[0].name,
        arms=compared,
        pairs=tuple(headlines.with_headlines(pairs, by_name, rules)),
        skipped=left_out(runs, by_name),
        rules=rules,
        header=headlines.header(compared, runs),
    )


def _tasks(reference: ArmRecords, candidate: ArmRecords) -> list[TaskComparison]:
    if reference.tasks is None or candidate.tasks is None:
        return []
    return list(task_rows.rows(reference.tasks, candidate.tasks))


def left_out(runs: Sequence[RunRecord], recorded: Collection[str]) -> tuple[Skipped, ...]:
    """What runs were asked for and did not begin. `recorded` are names of the arms that have records."""
    skipped = [
        entry for run in runs for entry in run.skipped if entry.evaluator is not None or entry.arm not in recorded
    ]
    absent = [name for run in runs for name in run.evaluators if name not in recorded]
    return (*skipped, *(Skipped(name, None, "it was not measured") for name in absent))


def _pair(
    reference: ArmRecords, candidate: ArmRecords, across: Collection[str], load: Callable[[Path], Scores]
) -> Pair:
    """A pair whose verdict is still open. `load`: reads scores."""
    schedule = _schedule(reference.latency, candidate.latency)
    differs, remedy = comparable.differences(reference, candidate, across), None
    if differs:
        remedy = comparable.remedy(reference, candidate, across)
    return Pair(
        reference=reference.name,
        other=candidate.name,
        verdict=Verdict.OPEN,
        sentence="",
        because="",
        settled_by=remedy,
        differs=tuple(differs),
        labels=label_differences.labels(reference, candidate),
        is_repeat=label_differences.is_repeat(reference, candidate),
        schedule=schedule,
        shapes=tuple(_shapes(reference, candidate, schedule)),
        quality=quality.compare(reference, candidate, load),
        contrast=contrast.contrast(reference, candidate),
        serving=serving.compare(reference, candidate),
    )


def _schedule(reference: LatencyRecord | None, candidate: LatencyRecord | None) -> PairSchedule | None:
    if reference is None or candidate is None or not (measured(reference) and measured(candidate)):
        return None
    planned, is_imported = candidate.schedule, any(record.tool for record in (reference, candidate))
    if planned is None and not is_imported:
        return None
    loads = min(len([load for load in shape.loads if load]) for shape in (*reference.shapes, *candidate.shapes))
    if planned is None or is_imported:
        return PairSchedule(None, loads, None, one_run=False)
    schedule = PairSchedule(planned.mode, loads, planned.per_load, comparable.is_one_run(reference, candidate))
    if not planned.until_decided or planned.loads <= LEAST_LOADS:
        return schedule
    looks = planned.loads - LEAST_LOADS + 1
    return replace(schedule, look=max(1, loads - LEAST_LOADS + 1), looks=looks)


def _shapes(reference: ArmRecords, candidate: ArmRecords, schedule: PairSchedule | None) -> Iterator[ShapeComparison]:
    """Timed shapes of either arm by size, then traced ones that belong to none of them."""
    sizes_of = {name: shape.shape for name, shape in {**timed(reference), **timed(candidate)}.items()}
    used: set[str] = set()
    for name, shape in sorted(sizes_of.items(), key=lambda item: tuple(vars(item[1]).values())):
        traces = [traced.matching(name, arm.kernels) for arm in (reference, candidate)]
        used |= {trace for trace in traces if trace is not None}
        yield _shape(name, shape, (reference, candidate), traces, schedule)
    for name in sorted({*reference.kernels, *candidate.kernels} - used):
        yield _shape(name, traced.sizes(name), (reference, candidate), [name, name], schedule)


def _shape(
    name: str,
    shape: Shape | None,
    arms: tuple[ArmRecords, ArmRecords],
    trace_names: Sequence[str | None],
    schedule: PairSchedule | None,
) -> ShapeComparison:
    """Two arms at one shape, without a verdict. `trace_names`: of the traces that belong to it."""
    (reference, candidate), rows = arms, [timed(arm).get(name) for arm in arms]
    comparison = ShapeComparison(
        name,
        shape.batch_size if shape else None,
        shape.input_len if shape else None,
        shape.output_len if shape else None,
        figures={metric: Sides(*(interval(row, metric) for row in rows)) for metric in _METRICS} if any(rows) else {},
    )
    before, after = rows
    if before and after and reference.latency and candidate.latency and schedule:
        fairness, clocks = (
            speed.fairness(reference.latency, candidate.latency, after.shape),
            speed.clocks(before, after),
        )
        sides = before, after, schedule, fairness.widened
        gpus = contrast.gpu_counts(reference, candidate)
        comparison = replace(
            comparison,
            speed=speed.ratios(*sides).per_gpu(gpus),
            unthrottled=speed.unthrottled(*sides).per_gpu(gpus) if clocks.is_one_slow else None,
            fairness=fairness,
            clocks=clocks,
        )
        if gpus is not None and gpus[0] != gpus[1]:
            rates = Sides(*(_per_gpu(row, count) for row, count in zip(rows, gpus, strict=True)))
            comparison = replace(comparison, figures={**comparison.figures, "output_tok_s_per_gpu": rates})
    traces = [
        arm.kernels.get(trace) if trace is not None else None for arm, trace in zip(arms, trace_names, strict=True)
    ]
    notes = {
        arm.name: texts
        for arm, row, trace in zip(arms, rows, traces, strict=True)
        if (texts := (*(row.notes if row else ()), *(warning.text for warning in (trace.warnings if trace else ()))))
    }
    return _with_kernels(replace(comparison, notes=notes), traces[0], traces[1], (reference.name, candidate.name))


def _with_kernels(
    shape: ShapeComparison, before: KernelsRecord | None, after: KernelsRecord | None, names: tuple[str, str]
) -> ShapeComparison:
    """A shape with the difference of its traces, and of the reference's trace what there was to gain."""
    faster = {phase: ratio.value if ratio else None for phase, ratio in explained.by_phase(shape.speed).items()}
    ceiling = {name: _ceiling(phase) for name, phase in before.phases.items()} if before else None
    shape = replace(shape, ceiling=ceiling)
    if before is None or after is None:
        return shape
    no_kernels = explained.other_profiler(before, after, names)
    if no_kernels is not None:
        return replace(shape, no_kernels=no_kernels)
    from moe_eval.comparison import kernels

    changes = kernels.changes(before, after, names, faster)
    return replace(shape, kernels=changes, breakdown=_breakdown(before, after))


def _per_gpu(row: ShapeLatency | None, gpus: int) -> Interval | None:
    """Output tokens per second and GPU."""
    rate = interval(row, "output_tok_s")
    if rate is None:
        return None
    low, high = (bound and bound / gpus for bound in (rate.low, rate.high))
    return Interval(rate.median / gpus, low, high, rate.loads)


def _breakdown(before: KernelsRecord, after: KernelsRecord) -> dict[str, dict[str, tuple[float, float]]]:
    """Both arms' ms by phase and category. It is 0 where a traced phase has none of a category."""
    sides = categories(before), categories(after)
    return {
        phase: {
            name: (sides[0][phase].get(name, 0.0), sides[1][phase].get(name, 0.0))
            for name in {**sides[0][phase], **sides[1][phase]}
        }
        for phase in sides[0]
        if phase in sides[1]
    }


def _ceiling(phase: PhaseTime) -> CeilingOfPhase:
    wall = phase.wall_ceiling.if_free if phase.wall_ceiling else None
    busy = phase.ceiling
    return CeilingOfPhase(busy.if_free if busy else None, wall, busy.expert_gemm_share if busy else None)
