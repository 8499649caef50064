"""The record of a run of the harness: a frozen dataclass and its JSON on disk, from which every view is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files
from moe_eval.records import disk
from moe_eval.records.labels import Status

HARNESS_SCHEMA = 2
RECORD_FILE, RESULTS_FILE = "record.json", "results.json"


@frozen
class DatasetFacts:
    """What a task of the harness evaluated.

    Attributes:
        source: `hub:PATH:CONFIGURATION`, or `local:TASK` for a task that reads files itself.
        documents: how many were evaluated.
        digest: 16 hexadecimal digits of SHA-256 over the hashes of these documents, in order.
    """

    task: str
    version: str
    source: str
    split: str
    documents: int
    digest: str


@frozen
class HarnessRecord:
    """One `simple_evaluate` of our model, with all its labels.

    Attributes:
        run_id: 32 hexadecimal digits; also a tag in MLflow.
        status: `running` until the run has ended one way or another.
        started: UTC, ISO 8601. `seconds` is wall-clock time including loading.
        model_args: as given, secrets removed.
        settings: the harness's options that differ from nothing.
        labels: what the model said of itself (engine facts, window, BOS policy, tokens scored).
        metrics: by MLflow key; units are in the names. None where a metric is no number.
        datasets: one for each task.
        notes: sentences a reader of the numbers has to know.
    """

    run_id: str
    status: Status
    started: str
    model_args: Mapping[str, object]
    settings: Mapping[str, object]
    seconds: float | None = None
    error: str | None = None
    labels: Mapping[str, object] = field(default_factory=dict)
    machine: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    datasets: tuple[DatasetFacts, ...] = ()
    notes: tuple[str, ...] = ()
    schema: int = HARNESS_SCHEMA

    def write(self, folder: Path) -> None:
        """Write record.json into `folder`, whole or not at all."""
        disk.write_record(folder / RECORD_FILE, self)


def read(folder: Path) -> HarnessRecord:
    """Read the record of a run folder, of schema 1 or 2: the fields are the same.

    Raises:
        UsageError: there is none, it is damaged, or it is of another schema.
    """
    file = folder / RECORD_FILE
    if not files.is_there(file):
        raise UsageError(f"{folder} holds no {RECORD_FILE}. Give the folder of a run.")
    return disk.read_record(file, HarnessRecord, schemas=(1, HARNESS_SCHEMA), maker="lm_eval --model trtllm_moe")
