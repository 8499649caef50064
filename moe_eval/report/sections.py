"""What a report says, section by section: page and Markdown are two looks of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report import arm_tables, charts, pair_tables, prediction_tables
from moe_eval.report.drawing import Chart
from moe_eval.report.text import LONGEST_SENTENCE, Table, comparable, named, names_of, plain, with_speed


@dataclass(frozen=True)
class Heading:
    """A title within a section: level 3 or 4."""

    text: str
    level: int


@dataclass(frozen=True)
class Paragraph:
    """A text of its own."""

    text: str


@dataclass(frozen=True)
class PairVerdict:
    """The verdict of a pair.

    Attributes:
        names: of both arms.
        statements: a word that introduces it, and a sentence; the verdict's own sentence has no such word.
        differs: why they cannot be compared.
    """

    names: str
    verdict: Verdict
    statements: tuple[tuple[str, str], ...]
    differs: tuple[str, ...]
    tables: tuple[Table, ...]


Part = Heading | Paragraph | PairVerdict | Table | Chart


@dataclass(frozen=True)
class Section:
    """A part of a report that links lead to."""

    ident: str
    title: str
    parts: tuple[Part, ...]


def of_report(comparison: ComparisonRecord, run: RunRecord | None) -> list[Section]:
    """The sections of a report, the verdict first. One without anything to say is left out."""
    sections = (
        ("verdict", "Verdict", _verdicts(comparison)),
        ("speed", "Speed", _speed(comparison)),
        ("steps", "Time per step", _steps(comparison)),
        ("quality", "Quality", _quality(comparison)),
        ("labels", "Labels that differ", (table for pair in comparison.pairs for table in pair_tables.labels(pair))),
        ("failed", "Skipped and failed arms", arm_tables.failed(comparison)),
        ("method", "How it was measured", _method(comparison, run)),
    )
    filled = (Section(ident, title, tuple(parts)) for ident, title, parts in sections)
    return [section for section in filled if section.parts]


def title_of(comparison: ComparisonRecord) -> str:
    """The names of the arms, the reference last."""
    names = [named(arm.name) for arm in comparison.arms]
    if len(names) < 2:
        return "".join(names) or "No arms"
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[1:4])}{rest} against {names[0]}"


def _verdicts(comparison: ComparisonRecord) -> list[Part]:
    if comparison.pairs:
        return [_verdict(pair, comparison.rules) for pair in comparison.pairs]
    finished = any(arm.status is Status.FINISHED for arm in comparison.arms)
    reason = "One arm alone has no other to be compared with." if finished else "No arm has a result."
    return [Paragraph(f"Nothing was compared. {reason}")]


def _verdict(pair: Pair, rules: Rules) -> PairVerdict:
    statements = (
        ("", pair.sentence),
        ("Because:", pair.because),
        ("What would settle it:", pair.settled_by or ""),
    )
    return PairVerdict(
        names_of(pair),
        pair.verdict,
        tuple((word, plain(text, LONGEST_SENTENCE)) for word, text in statements if text),
        tuple(plain(text, LONGEST_SENTENCE) for text in pair.differs),
        tuple(pair_tables.verdicts(pair, rules)),
    )


def _speed(comparison: ComparisonRecord) -> list[Part]:
    tables = [table for pair in with_speed(comparison) for table in pair_tables.of_speed(pair, comparison.rules)]
    broken = [
        Paragraph(f"{names_of(pair)} is broken, and a broken arm has no speed.")
        for pair in comparison.pairs
        if pair.verdict is Verdict.BROKEN
    ]
    return [*charts.speed(comparison), *tables, *broken, *arm_tables.speed(comparison)] or _nothing(comparison)


def _steps(comparison: ComparisonRecord) -> list[Part]:
    parts: list[Part] = []
    for shape, phases in charts.steps(comparison).items():
        parts.append(Heading(shape, 3))
        for phase in phases:
            parts += [Heading(phase.name, 4), *phase.charts, *phase.tables]
    makers = (prediction_tables.ceilings, prediction_tables.predictions)
    tables = [table for pair in comparable(comparison) for maker in makers for table in maker(pair)]
    if tables:
        parts += [Heading("Ceilings and predictions", 3), *tables]
    return parts or _nothing(comparison)


def _quality(comparison: ComparisonRecord) -> list[Part]:
    return [*charts.quality(comparison), *pair_tables.quality(comparison)] or _nothing(comparison)


def _method(comparison: ComparisonRecord, run: RunRecord | None) -> Iterable[Part]:
    return (*arm_tables.arms(comparison), *arm_tables.schedules(comparison), *arm_tables.method(run))


def _nothing(comparison: ComparisonRecord) -> list[Part]:
    """Said where there is a pair of which this was not measured; without a pair the section is left out."""
    return [Paragraph("Not measured.")] if comparable(comparison) else []
