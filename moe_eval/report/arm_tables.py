"""The tables of single arms and of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.report import pair_tables
from moe_eval.report.table import Table, without_empty_columns
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    MODES,
    UNITS,
    comparable,
    digits_of,
    flat,
    named,
    names_of,
    number,
    plain,
)

_MOST_LINES = 200  # of facts in one table


def arms(comparison: ComparisonRecord) -> list[Table]:
    """What was measured with what, and each arm's own perplexity."""
    heads = (
        "arm",
        "precision asked",
        "precision seen",
        "engine",
        "version",
        "GPU",
        "MoE backend",
        "emulated",
        "status",
    )
    rows, quality = [], []
    for arm in comparison.arms:
        facts = (
            arm.name,
            arm.precision,
            arm.precision_seen,
            arm.engine,
            arm.engine_version,
            arm.gpu,
            arm.moe_backend,
            arm.emulated,
            arm.status.value,
        )
        rows.append([named(fact) for fact in facts])
        figures = ((arm.token_ppl, 4), (arm.word_ppl, 4), (arm.bits_per_byte, 5))
        if any(figure is not None for figure, _ in figures):
            quality.append([named(arm.name), *(number(figure, digits) for figure, digits in figures)])
    return [
        *without_empty_columns("Arms", heads, rows),
        *without_empty_columns(
            "Perplexity of each arm", ("arm", "token perplexity", "word perplexity", "bits per byte"), quality
        ),
    ]


def failed(comparison: ComparisonRecord) -> list[Table]:
    """Arms without a result or without a part of it, and why."""
    rows = [
        (
            named(arm.name),
            named(arm.precision),
            arm.status.value,
            plain(arm.error or "no reason recorded", LONGEST_SENTENCE),
        )
        for arm in comparison.arms
        if arm.status is not Status.FINISHED
    ]
    for part in comparison.skipped:
        phrase = f"without {plain(part.evaluator)}" if part.evaluator else "skipped"
        rows.append((named(part.arm), "", phrase, plain(part.reason, LONGEST_SENTENCE)))
    return without_empty_columns("Arms that were skipped or failed", ("arm", "precision", "status", "reason"), rows)


def method(run: RunRecord | None) -> list[Table]:
    """How it was measured, as far as the run tells."""
    if run is None:
        return []
    schedule = [*flat(asdict(run.schedule)), ("which means", MODES[run.schedule.mode])]
    facts = (
        ("Run", [("started", named(run.started)), *([("revision", named(run.git))] if run.git else [])]),
        ("Schedule", schedule),
        ("Machine", flat(asdict(run.machine))),
        ("Versions", flat(run.versions)),
        ("Options", flat(run.options)),
    )
    return [
        table
        for caption, lines in facts
        for table in without_empty_columns(caption, ("fact", "value"), lines[:_MOST_LINES])
    ]


def schedules(comparison: ComparisonRecord) -> list[Table]:
    """In which order the two arms of every pair were timed."""
    rows = []
    for pair in comparison.pairs:
        schedule = pair.schedule
        if schedule is not None:
            facts = (schedule.mode, schedule.blocks, schedule.per_block, schedule.one_run)
            rows.append((names_of(pair), *map(named, facts), MODES[schedule.mode]))
    heads = ("pair", "schedule", "blocks", "iterations of a block", "timed in one run", "which means")
    return without_empty_columns("Schedule of every pair", heads, rows)


def speed(comparison: ComparisonRecord) -> list[Table]:
    """Medians of the arms that nothing is compared with."""
    rows = []
    for arm in _alone(comparison, pair_tables.has_speed):
        for shape, figures in arm.speed.items():
            for metric, phrase in METRICS.items():
                figure = figures.get(metric)
                if figure is not None:
                    digits = digits_of([figure.median])
                    cells = (number(figure.median, digits), pair_tables.bounds_of(figure, digits))
                    rows.append((named(arm.name), plain(shape), f"{phrase}, {UNITS[metric]}", *cells))
    return without_empty_columns(
        "Speed of single arms (medians)", ("arm", "shape", "metric", "median", "95 % interval"), rows
    )


def traced(comparison: ComparisonRecord) -> Iterator[tuple[ComparedArm, str, str, Mapping[str, float]]]:
    """Arm, shape, phase and ms by category of the arms whose kernels nothing is compared with."""
    for arm in _alone(comparison, lambda pair: any(shape.breakdown for shape in pair.shapes)):
        for shape, phases in arm.kernels.items():
            for phase, times in phases.items():
                yield arm, shape, phase, times


def _alone(comparison: ComparisonRecord, is_measured: Callable[[Pair], bool]) -> list[ComparedArm]:
    """Arms in no comparable pair of which `is_measured` is true."""
    pairs = [pair for pair in comparable(comparison) if is_measured(pair)]
    names = {name for pair in pairs for name in (pair.reference, pair.other)}
    return [arm for arm in comparison.arms if arm.name not in names]
