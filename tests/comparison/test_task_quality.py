"""The verdict on tasks: scores, groups and repeats by hand, refused pairs, and error rates with a known truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean_stderr
from scipy import stats as distributions

from moe_eval.comparison import task_gate, task_quality, task_rows
from moe_eval.errors import UsageError
from moe_eval.imports import harness_samples
from moe_eval.records.task_comparison import TaskComparison, TaskVerdict
from moe_eval.records.task_results import (
    ArmTaskResults,
    DocumentResult,
    Score,
    TaskGroup,
    TaskMetric,
    TaskResults,
    Weights,
)
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
    errors = [mean_stderr(scores) for scores in (before, after)]  # lm-eval's own, where a run computed none
    assert [row.reference_error, row.other_error] == pytest.approx(errors)
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


def test_every_metric_of_a_group_has_its_own_weights_and_a_verdict() -> None:
    sides = []
    for lost in (0, 30):
        tasks = []
        for name, size in (("x", 300), ("y", 100)):
            scores = [0.0] * lost + [1.0] * (size - lost)
            metrics = {key: TaskMetric(sum(scores) / size, True) for key in ("acc,none", "acc_norm,none")}
            documents = tuple(document(at, dict.fromkeys(metrics, Score(value))) for at, value in enumerate(scores))
            tasks.append(TaskResults(name, "1", 0, metrics, documents))
        means = {"acc,none": 1 - 2 * lost / 400, "acc_norm,none": 1 - (lost / 300 + lost / 100) / 2}
        weights: dict[str, tuple[Weights, ...]] = {"acc,none": ("documents",), "acc_norm,none": ("tasks",)}
        metrics = {key: TaskMetric(score, True) for key, score in means.items()}
        group = TaskGroup("g", ("x", "y"), metrics, weights)
        sides.append(ArmTaskResults("hf", "m", None, None, tuple(tasks), (group,)))
    entries = task_quality.judged([list(task_rows.rows(*sides))], 0.01)[0]
    of_group = {row.metric: row for row in entries if row.task == "g"}
    assert of_group["acc,none"].difference == pytest.approx(-0.15)
    assert of_group["acc_norm,none"].difference == pytest.approx(-0.2)
    assert {row.verdict for row in entries} == {TaskVerdict.DROPS}


def document(number: int, scores: dict[str, Score], **changes: Any) -> DocumentResult:
    fields: dict[str, Any] = {"document": "", "prompt": "", "target": "", "answer": "", **changes}
    return DocumentResult(number=number, scores=scores, **fields)


def single(rows: Sequence[DocumentResult], *, version: str = "1", generation: str = "") -> ArmTaskResults:
    """An arm with one task of these documents."""
    scores = [row.scores["acc,none"].value or 0.0 for row in rows if row.repeat == 0]
    metrics = {"acc,none": TaskMetric(sum(scores) / len(scores), True)}
    return ArmTaskResults(
        "hf", "m", None, None, (TaskResults("t", version, 0, metrics, tuple(rows), None, generation),)
    )


def test_the_most_informative_documents_come_first_of_both_directions() -> None:
    """Twelve losses and three gains: by how far the margin moved, seven and three."""
    sides: list[list[DocumentResult]] = [[], []]
    for at in range(15):
        is_loss, moved = at < 12, 0.1 + at
        for side in (0, 1):
            is_right = is_loss is (side == 0)
            score = {"acc,none": Score(float(is_right))}
            sides[side].append(document(at, score, margin=moved / 2 if is_right else -moved / 2, answer=f"{side}"))
    for side in (0, 1):
        sides[side].append(document(15, {"acc,none": Score(1.0)}))
    (row,) = task_rows.rows(single(sides[0]), single(sides[1]))
    assert [changed.number for changed in row.changed] == [11, 10, 9, 8, 7, 6, 5, 14, 13, 12]
    assert [changed.is_loss for changed in row.changed] == [True] * 7 + [False] * 3
    assert (row.changed[0].scores, row.changed[0].answers) == ((1.0, 0.0), ("0", "1"))
    assert row.changed[0].margins == pytest.approx((5.55, -5.55))


def test_generated_text_that_parts_early_comes_first() -> None:
    answers = [("the answer is 4", "the answer is 5"), ("the answer is 4", "x"), ("the answer is 4", "the end")]
    sides = [
        [document(at, {"acc,none": Score(1.0 - side)}, answer=pair[side]) for at, pair in enumerate(answers)]
        for side in (0, 1)
    ]
    (row,) = task_rows.rows(single(sides[0]), single(sides[1]))
    assert [changed.number for changed in row.changed] == [1, 2, 0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "2"}, "t has version 1 on one side and 2 on the other"),
        ({"generation": '{"until": []}'}, "t has other generation arguments: none and "),
    ],
)
def test_other_versions_and_generation_arguments_are_refused(change: dict[str, str], reason: str) -> None:
    rows = [document(at, {"acc,none": Score(1.0)}) for at in range(3)]
    with pytest.raises(UsageError, match=reason):
        list(task_rows.rows(single(rows), single(rows, **change)))


def test_flips_of_repeats_count_answers_and_test_documents() -> None:
    """Four documents lose all three repeats and one gains one of them: signs of five documents are tested."""
    sides = [
        [
            document(at, {"acc,none": Score(float(value))}, repeat=repeat)
            for repeat in range(3)
            for at, value in enumerate(values[repeat])
        ]
        for values in (
            [[1, 1, 1, 1, 0, 1]] * 3,
            [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]],
        )
    ]
    (row,) = task_rows.rows(single(sides[0]), single(sides[1]))
    assert row.flips is not None
    assert (row.flips.losses, row.flips.gains, row.flips.answers) == (12, 1, 18)
    differences = np.array([-3, -3, -3, -3, 1])
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    oracle = (np.abs(signs @ differences) >= 11).mean()
    assert row.flips.p_value == pytest.approx(oracle)
    assert row.flips.noise == 0
    assert row.flips.share_error == pytest.approx(np.std([1, 1, 1, 1, 1 / 3, 0], ddof=1) / math.sqrt(6))


def test_what_one_side_alone_has_is_said(tmp_path: Path) -> None:
    folders = [made.write(tmp_path / name, {"t": [1.0, 0.0], name: [1.0, 0.0]}) for name in "ab"]
    entries = rows(folders)
    assert entries.keys() == {"t", "a", "b"}
    assert (entries["a"].other, entries["b"].reference) == (None, None)
    assert entries["a"].reason == entries["b"].reason == "It was evaluated on one side alone."
    assert judged(entries["b"]).verdict is TaskVerdict.NOT_JUDGED


def test_documents_that_settle_a_verdict_allow_for_the_other_tasks(tmp_path: Path) -> None:
    """What is found with as many documents as were said is decided, also among four tasks."""
    names = [f"t{at}" for at in range(4)]
    sizes = [50]
    for _ in range(2):
        folders = [
            made.write(tmp_path / f"{name}{sizes[-1]}", dict.fromkeys(names, [1.0] * sizes[-1])) for name in "ab"
        ]
        entries = task_quality.judged([list(rows(folders).values())], 0.01)[0]
        if len(sizes) == 1:
            (reason,) = {row.reason for row in entries}
            sizes.append(int(reason.split()[1].replace(",", "")))
    assert {row.verdict for row in entries} == {TaskVerdict.HOLDS}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompts": "another"}, "t has other prompts or targets in 3 of 3 documents, first in document 0"),
        ({"tasks": {"t": [1.0, 0.0]}}, r"t was evaluated on other documents \(3 and 2\), first of them document 2"),
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


@pytest.mark.parametrize(("bound", "holds", "fails"), [(0.9, True, False), (0.5, False, False), (0.05, False, True)])
def test_a_gate_on_flips_of_repeats_goes_by_documents(bound: float, holds: bool, fails: bool) -> None:
    """Fifty documents, of which half flip in all of their repeats: a share of 0.5 with Student's interval."""
    sides = [
        [
            document(at, {"acc,none": Score(float(side == 0 or at % 2))}, repeat=repeat)
            for repeat in range(2)
            for at in range(50)
        ]
        for side in (0, 1)
    ]
    (figure,) = task_gate.figures(list(task_rows.rows(single(sides[0]), single(sides[1]))), None, "<=", bound)
    text, is_held, p_value = figure
    low, high = distributions.t.interval(0.95, 49, 0.5, np.std([0, 1] * 25, ddof=1) / math.sqrt(50))
    assert text == f"t has 50 of 100, 0.5000 ({low:.4f} to {high:.4f})"
    assert is_held is holds
    assert p_value is not None
    assert (p_value <= ERROR_RATE) is fails
