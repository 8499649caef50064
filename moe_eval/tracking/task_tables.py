"""Answers to tasks of the harness as tables that MLflow shows: JSON as `mlflow.log_table` writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from moe_eval.records.task_results import ArmTaskResults, TaskResults

if TYPE_CHECKING:
    from moe_eval.records.comparison import ComparisonRecord

TABLES_TAG = "mlflow.loggedArtifacts"  # MLflow's own: which artifacts are tables
FLIPS_FILE = "flips.json"
MOST_ROWS = 1000
_LONGEST_CELL = 1000
_NO_NAME = re.compile(r"[^\w.-]")  # in the name of a file
_MOST_TAG = 5000  # characters, the most that every store takes
_FLIPS = ("arm", "task", "document", "repeat", "change", "prompt", "target")


def samples(results: ArmTaskResults | None) -> dict[str, str]:
    """The first MOST_ROWS documents of every task of an arm, by the names of their tables in MLflow."""
    tasks = results.tasks if results else ()
    return {f"samples/{_NO_NAME.sub('_', task.task)}.json": _samples(task) for task in tasks}


def _samples(task: TaskResults) -> str:
    metrics = list(task.metrics)
    columns = ["document", "repeat", "prompt", "target", "answer", "response", "margin", *metrics]
    rows = [
        [
            row.number,
            row.repeat,
            row.prompt_text[-_LONGEST_CELL:],
            row.target_text[:_LONGEST_CELL],
            row.answer[:_LONGEST_CELL],
            row.response[:_LONGEST_CELL],
            row.margin,
            *(score.value if (score := row.scores.get(metric)) else None for metric in metrics),
        ]
        for row in task.documents[:MOST_ROWS]
    ]
    return _table(columns, rows)


def flips(comparison: ComparisonRecord | None) -> dict[str, str]:
    """The documents that a comparison names as changed, as one table. Empty without any."""
    rows = (
        [
            [
                pair.other,
                document.task,
                document.number,
                document.repeat,
                "loss" if document.is_loss else "gain",
                document.prompt[-_LONGEST_CELL:],
                document.target[:_LONGEST_CELL],
                *(text[:_LONGEST_CELL] for text in document.answers),
                *document.scores,
                *(document.margins or (None, None)),
            ]
            for pair in comparison.pairs
            for row in pair.tasks
            for document in row.changed
        ]
        if comparison
        else []
    )
    sides = [f"{side} {figure}" for figure in ("answer", "score", "margin") for side in ("reference", "other")]
    return {FLIPS_FILE: _table([*_FLIPS, *sides], rows)} if rows else {}


def tags(names: Iterable[str]) -> Mapping[str, str]:
    """What makes MLflow show artifacts as tables. Of very many it shows the first as tables."""
    entries: list[dict[str, str]] = []
    for name in names:
        entry = {"path": name, "type": "table"}
        if len(json.dumps([*entries, entry])) <= _MOST_TAG:
            entries.append(entry)
    return {TABLES_TAG: json.dumps(entries)} if entries else {}


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return json.dumps({"columns": columns, "data": rows}, ensure_ascii=False)
