"""How often the verdict on tasks is wrong, and its interval holds the truth: `python benchmarks/task_verdict.py`.

It simulates two arms' answers to documents with a known truth, with the project's own functions from paired scores to
verdicts. It prints the tables of docs/method/tasks.md. A quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from moe_eval.comparison import task_quality, task_rows
from moe_eval.records.task_comparison import TaskComparison, TaskVerdict
from moe_eval.records.task_results import ArmTaskResults, DocumentResult, Score, TaskMetric, TaskResults

Scores = npt.NDArray[np.float64]  # shape (documents, repeats)
Generator = np.random.Generator
DOCUMENTS = (50, 100, 300, 1000)
LOSSES = (0.0, 0.01, 0.05)
MAX_DROP = 0.01
TASKS = 10
METRIC = "acc,none"


def compared(before: Scores, after: Scores) -> TaskComparison:
    """A task's row without its verdict, as moe-eval makes it of records."""
    sides = (_results(before), _results(after))
    (row,) = task_rows.rows(*sides)
    return row


def _results(scores: Scores) -> ArmTaskResults:
    documents = tuple(
        DocumentResult(number, "", "", "", "", {METRIC: Score(float(value))}, repeat)
        for repeat, column in enumerate(scores.T)
        for number, value in enumerate(column)
    )
    task = TaskResults("t", "1", 0, {METRIC: TaskMetric(float(scores[:, 0].mean()), True)}, documents)
    return ArmTaskResults("made up", "made up", None, None, (task,))


def flipped(generator: Generator, documents: int, losses: float, gains: float) -> TaskComparison:
    """Scores of 0 and 1, of which these shares flip."""
    lost, gained, _ = generator.multinomial(documents, [losses, gains, 1 - losses - gains]).tolist()
    return _of_flips(documents, lost, gained)


@cache
def _of_flips(documents: int, lost: int, gained: int) -> TaskComparison:
    rest = np.arange(documents - lost - gained) % 2
    sides = [np.concatenate([np.full(lost, 1.0 - side), np.full(gained, side), rest]) for side in (0.0, 1.0)]
    return compared(sides[0][:, None], sides[1][:, None])


def sampled(generator: Generator, documents: int, repeats: int, loss: float) -> TaskComparison:
    """Scores of sampled answers. Documents differ in how often they are answered right."""
    chances = np.clip(generator.beta(0.8, 0.6, (documents, 1)), loss, 1.0)
    sides = [generator.random((documents, repeats)) < chance for chance in (chances, chances - loss)]
    return compared(sides[0].astype(np.float64), sides[1].astype(np.float64))


def graded(generator: Generator, documents: int, loss: float) -> TaskComparison:
    """Scores between 0 and 1, such as F1."""
    before = generator.beta(2, 1, documents) * (1 - loss) + loss
    reach = 0.3 * np.minimum(before - loss, 1 - before + loss)
    after = before - loss + reach * generator.uniform(-1, 1, documents)
    return compared(before[:, None], after[:, None])


@dataclass(frozen=True)
class Cell:
    """One kind of documents. `make` draws and compares both arms' scores, `loss` is the true one."""

    kind: str
    documents: int
    loss: float
    make: Callable[[Generator], TaskComparison]


def cells() -> Iterator[Cell]:
    """All cells of the first table."""
    for documents in DOCUMENTS:
        for gains in (0.0, 0.02, 0.10):
            for loss in LOSSES:
                kind = f"flips, {100 * (gains + loss):.0f} % lost, {100 * gains:.0f} % gained"
                yield Cell(
                    kind, documents, loss, partial(flipped, documents=documents, losses=gains + loss, gains=gains)
                )
    for documents in DOCUMENTS[:-1]:
        for loss in LOSSES:
            yield Cell("three repeats", documents, loss, partial(sampled, documents=documents, repeats=3, loss=loss))
            yield Cell("scores from 0 to 1", documents, loss, partial(graded, documents=documents, loss=loss))


def row(cell: Cell, draws: int) -> list[str]:
    """How often the interval held the truth, and how often each verdict came."""
    generator, covered, verdicts = np.random.default_rng(cell.documents), 0, []
    for _ in range(draws):
        (judgement,) = task_quality.judged([[cell.make(generator)]], MAX_DROP)[0]
        low, high = judgement.low, judgement.high
        covered += low is not None and high is not None and low <= -cell.loss <= high
        verdicts.append(judgement.verdict)
    shares = [covered / draws, *(verdicts.count(verdict) / draws for verdict in (TaskVerdict.HOLDS, TaskVerdict.DROPS))]
    return [cell.kind, f"{cell.documents:,}", f"{100 * cell.loss:g} %", *(f"{100 * share:.1f} %" for share in shares)]


def family(documents: int, loss: float, wrong: TaskVerdict, draws: int) -> list[str]:
    """How often any of TASKS tasks has a wrong verdict, where all have the same true loss."""
    generator, errors = np.random.default_rng(documents), 0
    for _ in range(draws):
        rows = [flipped(generator, documents, 0.05 + loss, 0.05) for _ in range(TASKS)]
        errors += any(entry.verdict is wrong for entry in task_quality.judged([rows], MAX_DROP)[0])
    return [f"{TASKS} tasks", f"{documents:,}", f"{100 * loss:g} %", wrong.value, f"{100 * errors / draws:.1f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="made-up comparisons of a row")
    draws = parser.parse_args().draws
    _print(["documents differ by", "documents", "true loss", "interval holds it", "holds", "drops"])
    for cell in cells():
        print(_line(row(cell, draws)), flush=True)
    print()
    _print(["", "documents", "true loss", "wrong verdict", "in some task"])
    for documents in DOCUMENTS[1:]:
        for loss, wrong in ((MAX_DROP, TaskVerdict.HOLDS), (0.0, TaskVerdict.DROPS)):
            print(_line(family(documents, loss, wrong, draws)), flush=True)


def _print(heads: Sequence[str]) -> None:
    print(_line(heads), _line(["---"] * len(heads)), sep="\n")


def _line(cells_of_row: Sequence[str]) -> str:
    return f"| {' | '.join(cells_of_row)} |"


if __name__ == "__main__":
    main()
