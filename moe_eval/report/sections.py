"""What a report says: the answer of every pair, a few charts, and everything else in folds.

Page, picture and Markdown are looks of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from moe_eval.comparison.wording import unfinished
from moe_eval.frozen import frozen
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report import (
    arm_tables,
    charts,
    overview,
    pair_tables,
    prediction_tables,
    readable,
    serving_chart,
    serving_table,
    task_changes,
    task_table,
    tiles,
)
from moe_eval.report.drawing import Chart
from moe_eval.report.task_changes import Example
from moe_eval.report.text import LONGEST_SENTENCE, Table, comparable, named, names_of, paragraph, plain, with_speed
from moe_eval.report.tiles import Kind, Tile

_LONGEST_REASON = 400


@frozen
class Answer:
    """What a pair of arms comes to, or the figures of an arm by itself.

    Attributes:
        title: the names of the arms.
        verdict: None for an arm by itself.
        place: the shape that the tiles of speed are of, in words. Empty where there is none.
        statements: a word that introduces it, and a sentence. The verdict's own sentence has no such word.
        differs: why two arms cannot be compared.
    """

    title: str
    verdict: Verdict | None
    place: str
    tiles: tuple[Tile, ...]
    statements: tuple[tuple[str, str], ...] = ()
    differs: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """Of the verdict."""
        return tiles.kind_of(self.verdict.value if self.verdict else "")


Part = str | Table | Chart | Example | Answer


@frozen
class Fold:
    """A part of a report that is opened on request. `ident` is what links lead to."""

    ident: str
    title: str
    parts: tuple[Part, ...]


@frozen
class Report:
    """A report.

    Attributes:
        title: the names of the arms. `header`: model, GPU, engine, date and run, empty where nothing is known.
        overview: a row for every pair where there are too many to show all in full.
        notes: sentences on what has no answer, and on what is not shown in full.
        tasks: what decides of every task, and the first of the documents that flipped. Folds have all of them.
        charts: of frontiers under load, of speed, of a step and of quality, as far as they say something.
    """

    title: str
    header: str
    answers: tuple[Answer, ...]
    overview: tuple[Table, ...]
    notes: tuple[str, ...]
    charts: tuple[Chart, ...]
    tasks: tuple[Table, ...]
    folds: tuple[Fold, ...]


def of_report(comparison: ComparisonRecord, run: RunRecord | None, *, is_short: bool = False) -> Report:
    """What is said of a comparison. What has nothing to say is left out. A short report has no folds."""
    leading = overview.leading(comparison)
    speed, step, quality = charts.speed(leading), charts.steps(leading), charts.quality(leading)
    served = serving_chart.frontiers(leading)
    return Report(
        title=title_of(comparison),
        header=tiles.header_line(comparison.header),
        answers=tuple(_answers(leading)),
        overview=tuple(overview.table(comparison)),
        notes=tuple(_notes(comparison)),
        charts=tuple(chart for chart in (served, *speed[:1], step, quality) if chart is not None),
        tasks=tasks(comparison),
        folds=() if is_short else tuple(fold for fold in _folds(comparison, run, speed[1:]) if fold.parts),
    )


def _folds(comparison: ComparisonRecord, run: RunRecord | None, further: Sequence[Chart]) -> Iterator[Fold]:
    folds: tuple[tuple[str, str, Iterable[Part]], ...] = (
        ("answers", "Verdicts of all further arms", _further_answers(comparison)),
        ("shapes", "Verdict of every shape", _verdicts(comparison)),
        ("speed", "Speed: all figures", (*further, *_speed(comparison))),
        ("serving", "Serving: all load points", serving_table.tables(comparison)),
        ("steps", "Time per step: all shapes and phases", _steps(comparison)),
        ("quality", "Quality: all figures", pair_tables.quality(comparison)),
        ("tasks", "Tasks of lm-eval: all figures", task_table.tables(comparison)),
        ("flips", "Documents that flipped", task_changes.parts(comparison)),
        ("labels", "Labels that differ", (table for pair in comparison.pairs for table in pair_tables.labels(pair))),
        ("failed", "Skipped and failed arms", arm_tables.failed(comparison)),
        ("method", "How it was measured", _method(comparison, run)),
    )
    return (Fold(ident, title, tuple(parts)) for ident, title, parts in folds)


def tasks(comparison: ComparisonRecord) -> tuple[Table, ...]:
    """What a terminal and Markdown say of tasks."""
    return (*task_table.tables(comparison, is_short=True), *task_changes.few(comparison))


def title_of(comparison: ComparisonRecord) -> str:
    """The names of the arms, the reference last."""
    names = [named(arm.name) for arm in comparison.arms]
    if len(names) < 2:
        return "".join(names) or "No arms"
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[1:4])}{rest} against {names[0]}"


def _answers(comparison: ComparisonRecord) -> Iterator[Answer]:
    for pair in comparison.pairs:
        yield _answer(pair, comparison.rules)
    if not comparison.pairs:
        yield from (_of_arm(arm) for arm in comparison.arms if arm.status is Status.FINISHED)


def _further_answers(comparison: ComparisonRecord) -> Iterator[Answer]:
    in_full = {pair.other for pair in overview.leading(comparison).pairs}
    yield from (_answer(pair, comparison.rules) for pair in comparison.pairs if pair.other not in in_full)


def _answer(pair: Pair, rules: Rules) -> Answer:
    statements = (("", pair.sentence), ("Because:", pair.because), ("Next:", pair.settled_by or ""))
    return Answer(
        names_of(pair),
        pair.verdict,
        tiles.place_of(pair),
        tiles.of_pair(pair, rules),
        tuple((word, plain(text, LONGEST_SENTENCE)) for word, text in statements if text),
        tuple(plain(text, LONGEST_SENTENCE) for text in pair.differs),
    )


def _of_arm(arm: ComparedArm) -> Answer:
    shape = tiles.shape_of_arm(arm)
    return Answer(named(arm.name), None, readable.shape_words(shape) if shape else "", tiles.of_arm(arm))


def _notes(comparison: ComparisonRecord) -> Iterator[str]:
    yield from filter(None, [overview.remark(comparison)])
    names = {arm.name for arm in comparison.arms}
    if not comparison.pairs:
        finished = any(arm.status is Status.FINISHED for arm in comparison.arms)
        reason = "One arm alone has no other to be compared with." if finished else "No arm has a result."
        yield f"Nothing was compared. {reason}"
    for arm in comparison.arms:
        if arm.status is not Status.FINISHED:
            yield paragraph(plain(unfinished(arm), _LONGEST_REASON))
    for part in comparison.skipped:
        if part.evaluator is None and part.arm not in names:
            yield paragraph(plain(f"{part.arm} was left out ({part.reason.rstrip('.')})", _LONGEST_REASON))


def _verdicts(comparison: ComparisonRecord) -> Iterator[Table]:
    for pair in comparison.pairs:
        yield from pair_tables.verdicts(pair, comparison.rules)


def _speed(comparison: ComparisonRecord) -> Iterator[Table]:
    for pair in with_speed(comparison):
        yield from pair_tables.of_speed(pair, comparison.rules)
    yield from arm_tables.speed(comparison)
    yield from arm_tables.floors(comparison)


def _steps(comparison: ComparisonRecord) -> Iterator[str | Table]:
    for pair in comparable(comparison):
        for shape in pair.shapes:
            for phase in pair_tables.phases_of(shape):
                if (change := (shape.kernels or {}).get(phase)) and change.text:
                    yield paragraph(
                        f"{names_of(pair)}, {readable.shape_words(shape.name)}, {plain(phase)}: {change.text}"
                    )
                yield from pair_tables.kernels(pair, shape, phase)
    for arm, shape_name, phase, times in arm_tables.traced(comparison):
        yield from pair_tables.of_one_arm(arm, shape_name, phase, times)
    for maker in (prediction_tables.ceilings, prediction_tables.predictions):
        for pair in comparable(comparison):
            yield from maker(pair)


def _method(comparison: ComparisonRecord, run: RunRecord | None) -> Iterable[Table]:
    return (*arm_tables.arms(comparison), *arm_tables.schedules(comparison), *arm_tables.method(run))
