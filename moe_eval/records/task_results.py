"""Per-document results of the harness's tasks: what the model answered, and the score of every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TASKS_SCHEMA = 1
Weights = Literal["documents", "tasks"]


@dataclass(frozen=True)
class Score:
    """One metric of one document.

    Attributes:
        value: the score, or the log-likelihood in nats. None where the harness gives something else, or no number.
        weight: 1, or the words or bytes that the log-likelihood is of.
    """

    value: float | None
    weight: float = 1.0


@dataclass(frozen=True)
class DocumentResult:
    """What became of one document in one repeat.

    Attributes:
        number: the harness's `doc_id`, of the document in its split.
        document, prompt, target: SHA-256 of these, as the harness computes them.
        answer: the text that was generated, or the number of the choice with the highest log-likelihood.
        scores: by the harness's key METRIC,FILTER.
        repeat: from 0. Repeats have other seeds.
    """

    number: int
    document: str
    prompt: str
    target: str
    answer: str
    scores: Mapping[str, Score]
    repeat: int = 0


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a task or a group over all its documents, as the harness gives it.

    Attributes:
        score: of the first repeat. None where it is no number.
        higher_is_better: None where the harness does not know.
    """

    score: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class TaskResults:
    """One task.

    Attributes:
        metrics: by METRIC,FILTER, in the order of the task. The first one decides.
    """

    task: str
    version: str
    num_fewshot: int | None
    metrics: Mapping[str, TaskMetric]
    documents: tuple[DocumentResult, ...]


@dataclass(frozen=True)
class TaskGroup:
    """A group whose score the harness makes of its tasks.

    Attributes:
        tasks: below it, at any depth.
        weights: `documents` where every document counts alike, `tasks` where every task does. None where the score is
            neither.
    """

    group: str
    tasks: tuple[str, ...]
    metrics: Mapping[str, TaskMetric]
    weights: Weights | None


@dataclass(frozen=True)
class ArmTaskResults:
    """All tasks that one arm was evaluated on.

    Attributes:
        model: the harness's name of the model class, such as hf. `checkpoint`: what it calls the model.
        precision: as the engine or the model's arguments say. None where neither does.
        started: seconds since 1970. None where the harness did not write it.
    """

    model: str
    checkpoint: str
    precision: str | None
    started: float | None
    tasks: tuple[TaskResults, ...]
    groups: tuple[TaskGroup, ...] = ()
    schema: int = field(default=TASKS_SCHEMA)
