"""A parent run of MLflow for a run of `moe-eval run`, and a child for each of its arms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moe_eval.records import DatasetFacts
from moe_eval.runner.folder import RunFolder
from moe_eval.tracking import keys, store
from moe_eval.tracking.store import ENDED, ID_TAG, STATUS_TAG, Logged

CONTENT_TAG = "moe_eval.content"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own, which nests runs
_LABELS = ("asked", "evaluators", "schedule", "machine", "versions", "git", "skipped")
# what a parent run keeps of the folder; logs and the output of failed steps stay where they are
_OF_ALL = ("run.json", "rates.json", "workload_*.json", "comparison.json", "report.html", "report.md")


def open_run(folder: Path) -> Logged:
    """Show in MLflow that a run has begun; one that shows already is left alone.

    Raises:
        TrackingError: with the command that logs the run later.
    """
    run = RunFolder(folder).run()
    with store.reached(f"moe-eval log {folder}"):
        books = _Books.open(folder, run)
        going = [each for each in books.found(run["run_id"]) if each.info.status == "RUNNING"]
        return books.logged(going[0].info.run_id if going else books.create(None))


def log(folder: Path) -> Logged:
    """Log a run as its records stand: labels, figures and files of every arm, the report on the parent.

    What is there already as it stands is left alone, so this can be repeated.

    Raises:
        TrackingError: with the command that logs the run later.
        UsageError: the folder holds no run.
    """
    run = RunFolder(folder).run()
    content = _digest(folder)
    with store.reached(f"moe-eval log {folder}"):
        books = _Books.open(folder, run)
        parent = None
        for found in books.found(run["run_id"]):
            if found.info.status != "RUNNING" and found.data.tags.get(CONTENT_TAG) == content:
                return books.logged(found.info.run_id)
            if found.info.status == "RUNNING" and not found.data.params and parent is None:
                parent = found.info.run_id  # opened before the work
            else:
                books.client.delete_run(found.info.run_id)
        for arm in run["evaluators"]:
            for found in books.found(f"{run['run_id']}/{arm}"):
                books.client.delete_run(found.info.run_id)
        parent = parent or books.create(None)
        made = [parent]
        try:
            books.fill(parent, made)
            books.client.set_tag(parent, CONTENT_TAG, content)
            books.client.set_tag(parent, STATUS_TAG, run["status"])
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

    def fill(self, parent: str, made: list[str]) -> None:
        """Log everything; `made` is told every run as it is created."""
        run, ended = self.run, _moment(self.run.get("ended"))
        recorded = {arm: _records(self.folder, arm) for arm in run["evaluators"]}
        metrics = dict(zip(recorded, keys.aligned(map(_metrics, recorded.values())), strict=True))
        for arm, found in recorded.items():
            first = next(iter(found.values()), {})
            labels = {name: first.get(name) for name in ("versions", "git", "asked", "labels")}
            labels |= {"precision": arm, "schedule": run["schedule"]}
            child = self.create(arm, parent, _tags(arm, found))
            made.append(child)
            datasets = _datasets(found)
            store.log_labels(self.client, child, params=labels, metrics=metrics[arm], datasets=datasets, ended=ended)
            for file in _files(self.folder, arm):
                self.client.log_artifact(child, str(file))
            failed = not found or any(record["status"] != "finished" for record in found.values())
            self.client.set_terminated(child, "FAILED" if failed else "FINISHED", ended)
        plain = {name: run[name] for name in _LABELS}
        store.log_labels(self.client, parent, params=plain, metrics={}, datasets=(), ended=ended)
        for pattern in _OF_ALL:
            for file in sorted(self.folder.glob(pattern)):
                self.client.log_artifact(parent, str(file))


def _tags(arm: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What to search and group by: engine, precision asked and seen."""
    engines = [record["labels"].get("engine", {}) for record in found.values() if record.get("labels")]
    seen = [record["precision_seen"] for record in found.values() if record.get("precision_seen")]
    errors = "; ".join(str(record["error"]) for record in found.values() if record.get("error"))
    tags = {
        "moe_eval.precision": arm,
        "moe_eval.precision_seen": seen[0] if seen else None,
        "moe_eval.engine": engines[0].get("name") if engines else None,
        "moe_eval.error": errors[:5000] or None,
    }
    return {key: value for key, value in tags.items() if value is not None}


def _records(folder: Path, arm: str) -> dict[str, dict[str, Any]]:
    """An arm's records by file name."""
    files = [file for kind in ("ppl", "perf", "kernels") for file in sorted(folder.glob(f"{kind}_{arm}_*.json"))]
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def _metrics(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    read = {"ppl": keys.of_ppl, "perf": keys.of_perf, "kernels": keys.of_kernels}
    metrics: dict[str, float] = {}
    for name, record in found.items():
        metrics |= read[name.partition("_")[0]](record)
    return metrics


def _datasets(found: Mapping[str, Mapping[str, Any]]) -> list[DatasetFacts]:
    """What was scored, and the prompts that were timed."""
    facts = []
    for record in found.values():
        if record.get("dataset_digest"):
            source, count = f"local:{record['dataset']}", record["num_chunks"]
            facts.append(
                DatasetFacts(record["dataset"], "1", source, "test", count, str(record["dataset_digest"])[:16])
            )
        work = record.get("workload")
        if work and "shapes" in record:
            facts.append(DatasetFacts("prompts", "1", f"local:{work['source']}", "test", 1, str(work["digest"])))
    return facts


def _files(folder: Path, arm: str) -> Iterable[Path]:
    yield from (folder / name for name in _records(folder, arm))
    yield from sorted((folder / "arms" / arm).glob("trace_*"))


def _digest(folder: Path) -> str:
    """Of everything that is logged: another digest means that it has to be logged anew."""
    found = hashlib.sha256()
    names = sorted({file for pattern in (*_OF_ALL, "ppl_*.json", "perf_*.json", "kernels_*.json")
                    for file in folder.glob(pattern)})  # fmt: skip
    for file in names:
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


def _moment(iso: str | None) -> int:
    """Milliseconds since 1970 of a record's time; of now where there is none."""
    return int((datetime.fromisoformat(iso) if iso else datetime.now(timezone.utc)).timestamp() * 1000)
