"""The tables of single arms and of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict

from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.report import pair_tables
from moe_eval.report.readable import shape_words
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    MODES,
    NONE,
    UNITS,
    Table,
    comparable,
    figure_cells,
    interval_head,
    named,
    names_of,
    number,
    percent,
    plain,
    without_empty_columns,
)

_MOST_LINES = 200  # of facts in one table


def arms(comparison: ComparisonRecord) -> list[Table]:
    """What was measured with what, and each arm's own perplexity."""
    rows = [
        [
            ("arm", named(arm.name)),
            ("precision asked", named(arm.precision)),
            ("precision seen", named(arm.precision_seen)),
            ("engine", named(arm.engine)),
            ("version", named(arm.engine_version)),
            ("GPU", named(arm.gpu)),
            ("GPUs", number(arm.gpus if (arm.gpus or 0) > 1 else None, 0)),
            ("MoE backend", named(arm.moe_backend)),
            ("weights on a GPU, GiB", number(arm.weights_gib, 2)),
            ("memory taken on a GPU, GiB", number(arm.taken_gib, 2)),
            ("KV-cache tokens that fit, estimate", number(arm.kv_cache_tokens, 0)),
            ("emulated", named(arm.emulated)),
            ("status", arm.status.value),
        ]
        for arm in comparison.arms
    ]
    quality = [
        [
            ("arm", named(arm.name)),
            ("token perplexity", number(arm.token_ppl, 4)),
            ("word perplexity", number(arm.word_ppl, 4)),
            ("bits per byte", number(arm.bits_per_byte, 5)),
        ]
        for arm in comparison.arms
        if not arm.random_weights
        and any(figure is not None for figure in (arm.token_ppl, arm.word_ppl, arm.bits_per_byte))
    ]
    return [*without_empty_columns("Arms", rows), *without_empty_columns("Perplexity of each arm", quality)]


def failed(comparison: ComparisonRecord) -> list[Table]:
    """Arms without a result or without a part of it, and why."""
    parts = [
        (arm.name, named(arm.precision), arm.status.value, arm.error or "no reason recorded")
        for arm in comparison.arms
        if arm.status is not Status.FINISHED
    ]
    for part in comparison.skipped:
        phrase = f"without {plain(part.evaluator)}" if part.evaluator else "skipped"
        parts.append((part.arm, "", phrase, part.reason))
    rows = [
        [("arm", named(arm)), ("precision", precision), ("status", status), ("reason", plain(reason, LONGEST_SENTENCE))]
        for arm, precision, status, reason in parts
    ]
    return without_empty_columns("Arms that were skipped or failed", rows)


def method(run: RunRecord | None) -> list[Table]:
    """How it was measured, as far as the run tells. A report is shared, so it names no GPU by its UUID."""
    if run is None:
        return []
    facts = (
        ("Run", [("started", named(run.started)), *([("revision", named(run.git))] if run.git else [])]),
        ("Schedule", [*_flat(asdict(run.schedule)), ("which means", MODES[run.schedule.mode])]),
        ("Machine", [(fact, value) for fact, value in _flat(asdict(run.machine)) if not fact.endswith("uuid")]),
        ("Versions", _flat(run.versions)),
        ("Options", _flat(run.options)),
    )
    return [
        table
        for caption, lines in facts
        for table in without_empty_columns(
            caption, [[("fact", fact), ("value", value)] for fact, value in lines[:_MOST_LINES]]
        )
    ]


def _flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines, such as ("gpus 1 name", "NVIDIA H100")."""
    items: Iterable[tuple[object, object]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value, 1)
    else:
        return [(path, named(value))]
    return [line for key, item in items for line in _flat(item, f"{path} {plain(key)}".strip())]


def schedules(comparison: ComparisonRecord) -> list[Table]:
    """In which order the two arms of every pair were timed."""
    rows = [
        [
            ("pair", names_of(pair)),
            ("schedule", named(schedule.mode)),
            ("pairs of loads", named(schedule.loads)),
            ("iterations of a load", named(schedule.per_load)),
            ("timed in one run", named(schedule.one_run)),
            ("which means", MODES[schedule.mode] if schedule.mode else named(None)),
        ]
        for pair in comparison.pairs
        if (schedule := pair.schedule) is not None
    ]
    return without_empty_columns("Schedule of every pair", rows)


def speed(comparison: ComparisonRecord) -> list[Table]:
    """Medians of the arms that nothing is compared with."""
    arms = _alone(comparison, pair_tables.has_speed)
    head = interval_head(figure for arm in arms for figures in arm.speed.values() for figure in figures.values())
    rows = [
        [
            ("arm", named(arm.name)),
            ("shape", shape_words(shape)),
            ("metric", f"{phrase}, {UNITS[metric]}"),
            *zip(("median", head), figure_cells(figure), strict=True),
        ]
        for arm in arms
        for shape, figures in arm.speed.items()
        for metric, phrase in METRICS.items()
        if (figure := figures.get(metric)) is not None
    ]
    return without_empty_columns("Speed of single arms (medians)", rows)


def floors(comparison: ComparisonRecord) -> list[Table]:
    """The least time of every step by what bounds it, beside the measured one."""
    rows = [
        [
            ("arm", named(arm.name)),
            ("shape", shape_words(shape)),
            ("step", step.replace("_", " ")),
            ("memory, ms", number(1000 * reached.floor.memory_seconds, 3)),
            ("arithmetic, ms", number(_ms(reached.floor.flops_seconds), 3)),
            ("link, ms", number(_ms(reached.floor.link_seconds), 3) if reached.floor.link_bytes else NONE),
            ("measured, ms", number(reached.measured_ms, 3)),
            ("of floor", number(percent(reached.fraction), 0, unit=" %")),
            ("link, of the measured", number(percent(reached.on_link), 1, unit=" %")),
        ]
        for arm in comparison.arms
        for shape, steps in arm.floors.items()
        for step, reached in steps.items()
    ]
    return without_empty_columns("Floors: the least time of a step, and the measured one", rows)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


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
