"""Documents that flipped between two arms: in a table, and each to be unfolded. All of their text is from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest

from moe_eval.comparison.task_flips import LONGEST_ANSWER, LONGEST_PROMPT, MOST_CHANGED
from moe_eval.frozen import frozen
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.task_comparison import ChangedDocument, TaskComparison
from moe_eval.report.text import Row, Table, block, named, names_of, number, plain, without_empty_columns

_FEW, _FEW_IN_ALL = 3, 9
_SHORT = 40
_ABOUT = (
    f"At most {MOST_CHANGED} documents of a task are here, half of them losses where there are as many. "
    "Those come first whose margin moved the most: how much likelier the right answer was than any other. "
    "Of generated text those come first that part the earliest. "
    "Of scores that are not 0 or 1 those come first that changed the most. "
    f"A prompt is cut to its last {LONGEST_PROMPT:,} characters, and an answer to its first {LONGEST_ANSWER:,}. "
    "The samples have all of them."
)


@frozen
class Example:
    """A document to be unfolded: a line, and fields of several lines with their names. Not yet escaped."""

    title: str
    fields: tuple[tuple[str, str], ...]


def parts(comparison: ComparisonRecord) -> Iterator[str | Table | Example]:
    """All documents of all tasks, and by what they were chosen."""
    rows = [(pair, row) for pair in comparison.pairs for row in pair.tasks if row.changed]
    if rows:
        yield _ABOUT
    for pair, row in rows:
        caption = f"{_counts(row)}: {names_of(pair)}"
        yield from without_empty_columns(caption, [_row(pair, row, document) for document in row.changed])
        yield from (_example(pair, row, document) for document in row.changed)


def few(comparison: ComparisonRecord) -> list[Table]:
    """A short table for every pair: the first documents of tasks whose answers flipped, of both directions."""
    tables: list[Table] = []
    for pair in comparison.pairs:
        flipped = [row for row in pair.tasks if row.flips and row.changed]
        rows = [
            [("task", plain(row.task)), *_row(pair, row, document)]
            for row in flipped
            for document in _of_both_directions(row.changed)[:_FEW]
        ]
        caption = f"Flips: {names_of(pair)}. {'. '.join(map(_counts, flipped[:_FEW]))}"
        tables += without_empty_columns(caption, rows[:_FEW_IN_ALL])
    return tables


def _of_both_directions(documents: Iterable[ChangedDocument]) -> list[ChangedDocument]:
    """A loss and a gain in turn."""
    sides = [[document for document in documents if document.is_loss is is_loss] for is_loss in (True, False)]
    return [document for document in chain.from_iterable(zip_longest(*sides)) if document is not None]


def _counts(row: TaskComparison) -> str:
    if row.flips is None:
        return f"{plain(row.task)}, documents that changed the most"
    return (
        f"{plain(row.task)}: {row.flips.losses} right to wrong and {row.flips.gains} wrong to right of "
        f"{row.flips.answers:,}"
    )


def _row(pair: Pair, row: TaskComparison, document: ChangedDocument) -> Row:
    first, second = document.answers
    margins = document.margins
    return [
        ("document", _place(row, document)),
        ("change", _change(row, document)),
        ("margin in nats", f"{margins[0]:+.2f} to {margins[1]:+.2f}" if margins else ""),
        ("prompt", f"...{tail}" if (tail := plain(document.prompt[-_SHORT:], _SHORT)) else ""),
        ("target", plain(document.target, _SHORT)),
        (named(pair.reference), plain(first, _SHORT)),
        (named(pair.other), plain(second, _SHORT)),
    ]


def _place(row: TaskComparison, document: ChangedDocument) -> str:
    """The number of a document, with its task where the row is a group's."""
    of_task = f" of {plain(document.task)}" if row.is_group else ""
    repeat = f", repeat {document.repeat + 1}" if document.repeat else ""
    return f"{document.number}{of_task}{repeat}"


def _change(row: TaskComparison, document: ChangedDocument) -> str:
    if row.flips:
        return "right to wrong" if document.is_loss else "wrong to right"
    scores = " to ".join(number(score, 4) for score in document.scores)
    return f"{'worse' if document.is_loss else 'better'}, {scores}"


def _example(pair: Pair, row: TaskComparison, document: ChangedDocument) -> Example:
    names = (pair.reference, pair.other)
    fields = [("prompt", document.prompt), ("target", document.target)]
    for name, answer, response, score in zip(names, document.answers, document.responses, document.scores, strict=True):
        fields.append((f"{named(name)}, score {score:g}", answer))
        fields += [(f"{named(name)}, before the filter", response)] if response else []
    title = f"Document {_place(row, document)}: {_change(row, document)}"
    return Example(title, tuple((name, block(text) or "(empty)") for name, text in fields))
