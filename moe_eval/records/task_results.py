"""Per-document results of the harness's tasks: what the model answered, and the score of every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from moe_eval.frozen import frozen

TASKS_SCHEMA = 1
Weights = Literal["documents", "tasks"]


@frozen
class Score:
    """One metric of one document.

    Attributes:
        value: the score, or the log-likelihood in nats. None where the harness gives something else, or no number.
        weight: 1, or the words or bytes that the log-likelihood is of.
    """

    value: float | None
    weight: float = 1.0


@frozen
class DocumentResult:
    """What became of one document in one repeat.

    Attributes:
        number: the harness's `doc_id`, of the document in its split.
        document, prompt, target: SHA-256 of these, as the harness computes them.
        answer: that was scored: a text after the task's filter, or the choice with the highest log-likelihood.
        scores: by the harness's key METRIC,FILTER.
        repeat: from 0. Repeats have other seeds.
        prompt_text, target_text: in whole. Of choices the target is the text of the right one.
        response: the text that was generated, before the filter. Empty where it is the answer.
        margin: log-likelihood in nats of the right choice less that of the likeliest other one, or of the target where
            it is the only one. None for generated text.
    """

    number: int
    document: str
    prompt: str
    target: str
    answer: str
    scores: Mapping[str, Score]
    repeat: int = 0
    prompt_text: str = ""
    target_text: str = ""
    response: str = ""
    margin: float | None = None


@frozen
class TaskMetric:
    """A metric of a task or a group over all its documents, as the harness gives it.

    Attributes:
        score: of the first repeat. None where it is no number.
        higher_is_better: None where the harness does not know.
        error: the harness's standard error. None where it gives none.
    """

    score: float | None
    higher_is_better: bool | None
    error: float | None = None


@frozen
class TaskResults:
    """One task.

    Attributes:
        metrics: by METRIC,FILTER, in the order of the task. The first one decides.
        split_documents: that the task has, of which `documents` may be a part. None where that is not known.
        generation: the generation arguments as JSON, without seeds. Empty where nothing was generated.
    """

    task: str
    version: str
    num_fewshot: int | None
    metrics: Mapping[str, TaskMetric]
    documents: tuple[DocumentResult, ...]
    split_documents: int | None = None
    generation: str = ""


@frozen
class TaskGroup:
    """A group whose score the harness makes of its tasks.

    Attributes:
        tasks: below it, at any depth.
        weights: that give the score of a metric: `documents` where every document counts alike, `tasks` where every
            task does. Both where they come to the same, none where the score is no such mean.
    """

    group: str
    tasks: tuple[str, ...]
    metrics: Mapping[str, TaskMetric]
    weights: Mapping[str, tuple[Weights, ...]]


@frozen
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
