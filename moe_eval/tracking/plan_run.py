"""A parent run of MLflow for a run of `moe-eval run`, and a child for each of its arms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moe_eval.runner.folder import RUN, RunFolder
from moe_eval.tracking import keys, store
from moe_eval.tracking.arm import Arm
from moe_eval.tracking.store import ENDED, ID_TAG, STATUS_TAG, Logged

CONTENT_TAG = "moe_eval.content"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own, which nests runs
_LABELS = ("asked", "evaluators", "schedule", "machine", "versions", "git", "skipped")
# what a parent run keeps of the folder; logs and the output of failed steps stay where they are
_OF_ALL = (RUN, "rates.json", "workload_*.json", "comparison.json", "report.html", "report.md")


def open_run(folder: Path) -> Logged:
    """Show in MLflow that a run has begun; one that shows already, or that has finished, is left alone.

    Raises:
        TrackingError: with the command that logs the run later.
    """
    run = RunFolder(folder).run()
    with store.reached(folder):
        books = _Books.open(folder, run)
        finished = run["status"] == "finished"
        going = [each for each in books.found(run["run_id"]) if finished or each.info.status == "RUNNING"]
        return books.logged(going[0].info.run_id if going else books.create(None))


def log(folder: Path) -> Logged:
    """Log a run as its records stand: labels, figures and files of every arm, the report on the parent.

    What is there already as it stands is left alone, so this can be repeated.

    Raises:
        TrackingError: with the command that logs the run later.
        UsageError: the folder holds no run, or a record of it is damaged.
    """
    run = RunFolder(folder).run()
    arms = {name: Arm.read(folder, name, kinds) for name, kinds in run["evaluators"].items()}
    content = _digest(folder, run)
    with store.reached(folder):
        books = _Books.open(folder, run)
        known = books.found(run["run_id"])
        going = [each.info.run_id for each in known if each.info.status == "RUNNING"]
        same = [
            each.info.run_id
            for each in known
            if each.info.run_id not in going and each.data.tags.get(CONTENT_TAG) == content
        ]
        if same:
            for each in going:
                books.client.delete_run(each)
            return books.logged(same[0])
        opened = [each.info.run_id for each in known if each.info.run_id in going and not each.data.params]
        parent = opened[0] if opened else None  # it shows since the work began
        for each in known:
            if each.info.run_id != parent:
                books.client.delete_run(each.info.run_id)
        for arm in run["evaluators"]:
            for found in books.found(f"{run['run_id']}/{arm}"):
                books.client.delete_run(found.info.run_id)
        parent = parent or books.create(None)
        made = [parent]
        try:
            books.fill(parent, arms, made)
            books.client.set_tag(parent, CONTENT_TAG, content)
            # a run that neither ended nor goes on was killed outright
            books.client.set_tag(parent, STATUS_TAG, ENDED[run["status"]].lower())
            books.client.set_terminated(parent, ENDED[run["status"]], _moment(run.get("ended")))
        except BaseException:
            # half a run would look whole and keep the records from being logged again
            for each in made[::-1]:
                books.client.delete_run(each)
            raise
        return books.logged(parent)


@dataclass(frozen=True)
class _Books:
    """One run's folder and where it goes."""

    client: Any
    experiment: str
    experiment_id: str
    folder: Path
    run: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path, run: Mapping[str, Any]) -> _Books:
        import mlflow

        client = mlflow.MlflowClient()
        return cls(client, *store.experiment(client), folder, run)

    def logged(self, run_id: str) -> Logged:
        return Logged(store.name(), self.experiment, run_id)

    def found(self, tag: str) -> list[Any]:
        """Runs of this experiment by our own id."""
        return list(self.client.search_runs([self.experiment_id], f"tags.`{ID_TAG}` = '{tag}'"))

    def create(self, arm: str | None, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """A run of MLflow that goes on: the parent, or with a name an arm's."""
        found = {ID_TAG: self.run["run_id"] if arm is None else f"{self.run['run_id']}/{arm}", **(tags or {})}
        if parent is not None:
            found[PARENT_TAG] = parent
        gpus = self.run["machine"]["gpus"]
        found["moe_eval.gpu"] = gpus[0]["name"] if gpus else "none"
        started = _moment(self.run["started"])
        created = self.client.create_run(self.experiment_id, started, found, arm or "moe-eval run")
        return str(created.info.run_id)

    def fill(self, parent: str, arms: Mapping[str, Arm], made: list[str]) -> None:
        """Log everything; `made` is told every run as it is created."""
        run, ended = self.run, _moment(self.run.get("ended"))
        metrics = keys.aligned(arm.metrics for arm in arms.values())
        for (name, arm), figures in zip(arms.items(), metrics, strict=True):
            child = self.create(name, parent, arm.tags)
            made.append(child)
            labels = {**arm.labels, "schedule": run["schedule"]}
            store.log_labels(self.client, child, params=labels, metrics=figures, datasets=arm.datasets, ended=ended)
            for file in arm.files:
                self.client.log_artifact(child, str(file))
            self.client.set_terminated(child, arm.ended(run["status"]), ended)
        plain = {name: run[name] for name in _LABELS}
        store.log_labels(self.client, parent, params=plain, metrics={}, datasets=(), ended=ended)
        for pattern in _OF_ALL:
            for file in sorted(self.folder.glob(pattern)):
                self.client.log_artifact(parent, str(file))


def _digest(folder: Path, run: Mapping[str, Any]) -> str:
    """Of everything that is logged but when it ended: another digest means that it has to be logged anew."""
    found = hashlib.sha256(json.dumps({**run, "ended": None}, sort_keys=True).encode())
    names = sorted({file for pattern in (*_OF_ALL, "ppl_*.json", "perf_*.json", "kernels_*.json")
                    for file in folder.glob(pattern)} - {folder / RUN})  # fmt: skip
    for file in names:
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def _moment(iso: str | None) -> int:
    """Milliseconds since 1970 of a record's time; of now where there is none."""
    return int((datetime.fromisoformat(iso) if iso else datetime.now(timezone.utc)).timestamp() * 1000)
