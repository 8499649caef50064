"""The verdict on tasks: scores, groups and repeats by hand, refused pairs, and error rates with a known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_eval.comparison import task_quality, task_rows
from moe_eval.errors import UsageError
from moe_eval.imports import harness_samples
from moe_eval.records.task_comparison import TaskComparison, TaskVerdict
from moe_eval.stats import ERROR_RATE
from tests.doubles import harness_results as made


def rows(folders: Sequence[Path]) -> dict[str, TaskComparison]:
    first, second = map(harness_samples.read, folders)
    return {row.task: row for row in task_rows.rows(first, second)}


def judged(row: TaskComparison, max_drop: float = 0.01) -> TaskComparison:
    return task_quality.judged([[row]], max_drop)[0][0]


def test_scores_flips_and_recovery_are_those_of_the_documents(tmp_path: Path) -> None:
    before, after = [1.0] * 60 + [0.0] * 40, [0.0] * 25 + [1.0] * 35 + [1.0] * 5 + [0.0] * 35
    row = rows([made.write(tmp_path / "a", {"t": before}), made.write(tmp_path / "b", {"t": after})])["t"]
    assert (row.reference, row.other, row.difference) == (0.6, 0.4, pytest.approx(-0.2))
    assert row.flips is not None
    assert (row.flips.losses, row.flips.gains) == (25, 5)
    assert row.recovery == pytest.approx(2 / 3)
    assert judged(row).verdict is TaskVerdict.DROPS
    assert judged(row, 0.5).verdict is TaskVerdict.HOLDS
    swapped = rows([tmp_path / "b", tmp_path / "a"])["t"]
    assert swapped.low == pytest.approx(-(row.high or 0))


def test_what_is_open_says_how_many_documents_settle_it(tmp_path: Path) -> None:
    row = judged(
        rows([made.write(tmp_path / "a", {"t": [1.0] * 50}), made.write(tmp_path / "b", {"t": [1.0] * 50})])["t"]
    )
    assert row.verdict is TaskVerdict.OPEN
    assert row.reason == "About 390 documents would settle it."
    many = [made.write(tmp_path / name, {"t": [1.0] * 390}) for name in "cd"]
    assert judged(rows(many)["t"]).verdict is TaskVerdict.HOLDS


def test_groups_weigh_documents_or_tasks_as_the_harness_does(tmp_path: Path) -> None:
    before, after = {"x": [1.0] * 10, "y": [1.0, 0.0]}, {"x": [1.0] * 9 + [0.0], "y": [0.0, 0.0]}

    def both(name: str, first: float, second: float) -> TaskComparison:
        sides = ((before, first), (after, second))
        groups = [{"g": (("x", "y"), score)} for _, score in sides]
        folders = [
            made.write(tmp_path / f"{name}{at}", tasks, groups=group)
            for at, ((tasks, _), group) in enumerate(zip(sides, groups, strict=True))
        ]
        table = rows(folders)
        assert table["x"].group == "g"
        return table["g"]

    by_size, by_task = both("size", 11 / 12, 9 / 12), both("task", 0.75, 0.45)
    assert by_size.difference == pytest.approx(-2 / 12)
    assert by_task.difference == pytest.approx(-0.3)
    assert both("other", 0.5, 0.4).reason == "The score of the group is no mean over documents or tasks."


def test_perplexity_is_compared_by_its_logarithm(tmp_path: Path) -> None:
    folders = []
    for name, shift in (("a", 0.0), ("b", 0.03)):
        nats = [-2.0 - shift - 0.001 * at for at in range(30)]
        folder = made.write(tmp_path / name, {"t": nats}, metric="perplexity", higher=False)
        (file,) = folder.glob("results_*")
        text = file.read_text().replace(f"{sum(nats) / 30}", f"{math.exp(-sum(nats) / 30)}")
        file.write_text(text)
        folders.append(folder)
    row = judged(rows(folders)["t"])
    assert row.difference == pytest.approx(0.03)
    assert row.is_logarithm
    assert row.verdict is TaskVerdict.DROPS


def test_repeats_are_one_document(tmp_path: Path) -> None:
    folders = []
    for name, scores in (("a", [1.0, 1.0, 0.0, 1.0]), ("b", [1.0, 0.0, 0.0, 1.0])):
        folder = made.write(tmp_path / name, {"t": scores})
        folders.append(made.write(folder, {"t": [0.0] * 4}, date="2026-01-01T00-00-00.0", config={"random_seed": 5}))
    row = rows(folders)["t"]
    assert row.documents == 4
    assert row.difference == pytest.approx(-1 / 8)
    assert row.flips is not None
    assert (row.flips.losses, row.flips.gains, row.flips.answers) == (1, 0, 8)
    assert row.flips.noise == pytest.approx(3 / 4)  # all right answers of the first repeat are wrong in the second
    assert row.error is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompts": "another"}, "t has other prompts or targets in 3 of 3 documents"),
        ({"tasks": {"t": [1.0, 0.0]}}, "t was evaluated on other documents"),
    ],
)
def test_other_prompts_and_documents_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    first = made.write(tmp_path / "a", {"t": [1.0, 0.0, 1.0]})
    second = made.write(tmp_path / "b", **{"tasks": {"t": [1.0, 0.0, 1.0]}, **change})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=reason):
        rows([first, second])


def limit(draws: int) -> float:
    return ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / draws)


def test_verdicts_of_several_tasks_are_wrong_as_rarely_as_stated(tmp_path: Path) -> None:
    """Five tasks at a loss of exactly what is allowed, and five without any: some "holds" or "drops" is an error."""
    empty = replace(rows([made.write(tmp_path / "a", {"t": [1.0]}), made.write(tmp_path / "b", {"t": [1.0]})])["t"])
    assert empty.flips is not None
    generator, draws, documents = np.random.default_rng(3), 600, 400
    for loss, wrong in ((0.06, TaskVerdict.HOLDS), (0.05, TaskVerdict.DROPS)):
        errors = 0
        counts = generator.multinomial(documents, [loss, 0.05, 0.95 - loss], size=(draws, 5))
        for run in counts.tolist():
            table = []
            for losses, gains, _ in run:
                difference = (gains - losses) / documents
                flips = replace(empty.flips, losses=losses, gains=gains)
                # an interval that allows either claim, so that p-values alone decide
                row = replace(empty, documents=documents, difference=difference, flips=flips, low=0.0, high=-1e-9)
                table.append(row)
            errors += any(row.verdict is wrong for row in task_quality.judged([table], 0.01)[0])
        assert errors / draws <= limit(draws)


def test_intervals_of_clusters_hold_the_truth() -> None:
    """Scores of documents are means of three repeats, most of which agree between the arms."""
    generator, documents, covered, draws = np.random.default_rng(4), 150, 0, 2000
    empty = TaskComparison("t", "acc,none", True, None, False, True, documents, 0.0, 0.0, is_share=True)
    for _ in range(draws):
        chances = generator.beta(2, 2, (documents, 1))
        sides = [generator.random((documents, 3)) < chances for _ in range(2)]
        sums = sides[1].mean(axis=1) - sides[0].mean(axis=1)
        row = task_rows._with_interval(replace(empty, difference=float(sums.mean())), sums, np.ones(documents))
        covered += row.low is not None and row.high is not None and row.low <= 0 <= row.high
    assert covered / draws > 0.93
