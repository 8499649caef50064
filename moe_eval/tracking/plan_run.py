"""A parent run of MLflow for a run of `moe-eval run`, `perf` or `ppl`, and a child for each of its arms."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from moe_eval.errors import UsageError
from moe_eval.records import disk
from moe_eval.records.comparison import COMPARISON_FILE, COMPARISON_SCHEMA, ComparisonRecord
from moe_eval.records.run import RUN_FILE, RunRecord
from moe_eval.records.run_files import read_run
from moe_eval.tracking import store
from moe_eval.tracking.arm import Arm
from moe_eval.tracking.store import ENDED, ID_TAG, STATUS_TAG, Logged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONTENT_TAG = "moe_eval.content"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own, which nests runs
_LABELS = ("command", "options", "evaluators", "schedule", "machine", "versions", "git", "skipped")
_HEADLINE = (
    r"latency/.*/speedup|quality/ln_ppl_ratio"  # metrics of all arms but the reference that stand on the parent too
)
# what a parent run shows of its folder, after the command's prefix; logs stay where they are
_VIEWS = (COMPARISON_FILE, "report.html", "report.md")
_PICTURE = "report.png"


def open_run(folder: Path, command: str = "run") -> Logged:
    """Show in MLflow that a run has begun; one that shows already, or that has finished, is left alone.

    Raises:
        TrackingError: with the command that logs the run later.
        UsageError: the folder holds no run of this command.
    """
    files = _Files.read(folder, command)
    with store.reached(folder):
        books = _Books.open(files)
        finished = files.run.status.value == "finished"
        logged = [run for run in books.runs(files.run.run_id) if finished or run.info.status == "RUNNING"]
        return books.logged(logged[0].info.run_id if logged else books.create(None))


def log(folder: Path, command: str = "run") -> Logged:
    """Log a run as its records stand: labels, figures and files of every arm, the report on the parent.

    What is there already as it stands is left alone, so this can be repeated.

    Raises:
        TrackingError: with the command that logs the run later.
        UsageError: the folder holds no run of this command, or a record of it is damaged.
    """
    files = _Files.read(folder, command)
    arms = files.arms()
    content = files.digest(arms)
    with store.reached(folder):
        books = _Books.open(files)
        logged = books.runs(files.run.run_id)
        going = [run for run in logged if run.info.status == "RUNNING"]
        for run in logged:
            if run not in going and run.data.tags.get(CONTENT_TAG) == content:
                for half in going:
                    books.client.delete_run(half.info.run_id)
                return books.logged(run.info.run_id)
        # one without parameters shows since the work began
        parent = next((run.info.run_id for run in going if not run.data.params), None)
        books.delete(logged, besides=parent)
        return books.write(parent or books.create(None), arms, content)


@dataclass(frozen=True)
class _Files:
    """The folder of a run, and what is logged of it."""

    folder: Path
    run: RunRecord

    @classmethod
    def read(cls, folder: Path, command: str) -> _Files:
        run = next((run for run in read_run(folder) if run.command == command), None)
        if run is None:
            raise UsageError(f"{folder} holds no {_prefix(command)}{RUN_FILE}. Give the folder of a run.")
        return cls(folder, run)

    @property
    def _start(self) -> str:
        return _prefix(self.run.command)

    def arms(self) -> list[Arm]:
        """The arms as their records stand, the reference first."""
        comparison, arms = self._comparison(), self.folder / f"{self._start}arms"
        return [
            Arm.read(self.folder, name, evaluators, arms, comparison)
            for name, evaluators in self.run.evaluators.items()
        ]

    def _comparison(self) -> ComparisonRecord | None:
        """None where there is none yet: it is a view of the records, which can be made again."""
        file = self.folder / f"{self._start}{COMPARISON_FILE}"
        try:
            schemas, maker = (COMPARISON_SCHEMA,), "moe-eval compare"
            return disk.read_record(file, ComparisonRecord, schemas=schemas, maker=maker) if file.is_file() else None
        except UsageError:
            return None

    def of_all(self) -> list[Path]:
        """What is logged on the parent."""
        patterns = [f"{self._start}{name}" for name in (RUN_FILE, "rates.json", *_VIEWS, _PICTURE)]
        return [file for pattern in [*patterns, "workload_*.json"] for file in sorted(self.folder.glob(pattern))]

    def digest(self, arms: Sequence[Arm]) -> str:
        """Of everything that is logged but when it ended: another digest means that it has to be logged anew."""
        digest = hashlib.sha256(msgspec.json.encode(replace(self.run, ended=None), order="sorted"))
        of_all = [file for file in self.of_all() if not file.name.endswith((RUN_FILE, _PICTURE))]
        for file in sorted({*of_all, *(file for arm in arms for file in arm.files)}):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Books:
    """Where a run goes in MLflow."""

    client: MlflowClient
    experiment: str
    experiment_id: str
    files: _Files

    @classmethod
    def open(cls, files: _Files) -> _Books:
        import mlflow

        client = mlflow.MlflowClient()
        return cls(client, *store.experiment(client), files)

    def logged(self, run_id: str) -> Logged:
        return Logged(store.name(), self.experiment, run_id)

    def runs(self, tag: str) -> list[Run]:
        """Runs of this experiment by our own id."""
        return list(self.client.search_runs([self.experiment_id], f"tags.`{ID_TAG}` = '{tag}'"))

    def delete(self, parents: Sequence[Run], besides: str | None) -> None:
        """Take back what was logged of this run before."""
        run = self.files.run
        children = [child for arm in run.evaluators for child in self.runs(f"{run.run_id}/{arm}")]
        for entry in [*parents, *children]:
            if entry.info.run_id != besides:
                self.client.delete_run(entry.info.run_id)

    def create(self, arm: str | None, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """A run of MLflow that goes on: the parent, or with a name an arm's."""
        run = self.files.run
        gpus = run.machine.gpus
        all_tags = {
            ID_TAG: run.run_id if arm is None else f"{run.run_id}/{arm}",
            "moe_eval.gpu": gpus[0].name if gpus else "none",
            **(tags or {}),
            **({} if parent is None else {PARENT_TAG: parent}),
        }
        title = arm or f"moe-eval {run.command}"
        created = self.client.create_run(self.experiment_id, _milliseconds(run.started), all_tags, title)
        return str(created.info.run_id)

    def write(self, parent: str, arms: Sequence[Arm], content: str) -> Logged:
        """Log everything, or take back what was logged."""
        run, written = self.files.run, [parent]
        try:
            self._fill(parent, arms, written)
            self.client.set_tag(parent, CONTENT_TAG, content)
            self.client.set_tag(parent, STATUS_TAG, ENDED[run.status].lower())
            self.client.set_terminated(parent, ENDED[run.status], _milliseconds(run.ended))
        except BaseException:
            # half a run would look whole and keep the records from being logged again
            for run_id in written[::-1]:
                self.client.delete_run(run_id)
            raise
        return self.logged(parent)

    def _fill(self, parent: str, arms: Sequence[Arm], written: list[str]) -> None:
        """Log arms and parent; `written` gets the id of every run as it is created."""
        run, ended = self.files.run, _milliseconds(self.files.run.ended)
        labels = {name: msgspec.to_builtins(getattr(run, name), str_keys=True) for name in _LABELS}
        for arm in arms:
            child = self.create(arm.name, parent, arm.tags)
            written.append(child)
            params = {**arm.labels, "schedule": labels["schedule"]}
            store.log_labels(self.client, child, params=params, metrics=arm.metrics, datasets=arm.datasets, ended=ended)
            for file in [*arm.files, *arm.traces]:
                self.client.log_artifact(child, str(file))
            self.client.set_terminated(child, arm.ended(run.status), ended)
        headlines = {
            f"{arm.name}/{key}": value
            for arm in arms[1:]
            for key, value in arm.metrics.items()
            if re.fullmatch(_HEADLINE, key)
        }
        store.log_labels(self.client, parent, params=labels, metrics=headlines, datasets=(), ended=ended)
        for file in self.files.of_all():
            self.client.log_artifact(parent, str(file))


def _prefix(command: str) -> str:
    """How the files of a command begin."""
    return "" if command == "run" else f"{command}_"


def _milliseconds(iso: str | None) -> int:
    """Since 1970, of a record's time; of now where there is none."""
    return int((datetime.fromisoformat(iso) if iso else datetime.now(timezone.utc)).timestamp() * 1000)
