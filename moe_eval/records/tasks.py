"""The record of the tasks evaluator: what one arm scored in tasks of lm-evaluation-harness, by document."""

from __future__ import annotations

from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.task_results import ArmTaskResults

TASKS_RECORD_SCHEMA = 2


@frozen
class EvaluatedSuite:
    """One entry of --tasks that was evaluated.

    Attributes:
        file: the harness's results in the arm's folder. Samples lie beside it.
        documents: that were evaluated. `answered_before`: requests whose answers were on disk already.
    """

    file: str
    documents: int
    answered_before: int


@frozen
class TasksRecord:
    """One arm's results, with all its labels.

    Attributes:
        precision: that was planned.
        results: of what has been evaluated, also where the status is not finished. None where nothing has.
        sm_version, gpu_name: of the first GPU. None on a CPU, and where the arm is an endpoint.
    """

    arm: str
    precision: str
    status: Status
    error: str | None = None
    engine: str | None = None
    moe_backend: str | None = None
    sm_version: str | None = None
    gpu_name: str | None = None
    results: ArmTaskResults | None = None
    labels: ArmLabels = field(default_factory=ArmLabels)
    origin: Origin = field(default_factory=Origin)
    schema: int = TASKS_RECORD_SCHEMA
