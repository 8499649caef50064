"""A parent run of MLflow for a run of `moe-eval run`, `perf` or `ppl`, and a child for each of its arms."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from moe_eval.frozen import frozen
from moe_eval.machine import collector
from moe_eval.tracking import headlines, keys, link, models, owner, store, task_tables
from moe_eval.tracking.arm import BREAKDOWN_FILE, Arm
from moe_eval.tracking.link import Logged
from moe_eval.tracking.run_files import RunFiles
from moe_eval.tracking.store import CONTENT_TAG, ENDED, ID_TAG, NOTE_TAG, STATUS_TAG
from moe_eval.tracking.title import source_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"  # MLflow's own, which nests runs
_LABELS = ("command", "options", "evaluators", "schedule", "machine", "versions", "git", "skipped")


def open_run(folder: Path, command: str = "run") -> Logged:
    """Show in MLflow that a run has begun. One that was killed before it was logged goes on.

    Raises:
        TrackingError: with the reason.
        UsageError: the folder holds no run of this command.
    """
    files = RunFiles.read(folder, command)

    def show() -> Logged:
        books = _Books.open(files)
        logged = books.runs(files.run.run_id)
        if logged and files.run.status.value == "finished":
            return books.logged(logged[0].info.run_id)
        return books.logged(books.continued(logged) or books.create_parent(()))

    return store.reach(folder, show, store.OPENING)


@collector.paused()
def log(folder: Path, command: str = "run") -> Logged:
    """Log a run as its records stand: labels, figures and files of every arm, the report on the parent.

    What is there already as it stands is left alone, so this can be repeated. A run in an earlier form is replaced.
    A trace that cannot be read is left out.

    Raises:
        TrackingError: with the command that logs the run later.
        UsageError: the folder holds no run of this command, or a record of it is damaged.
    """
    files = RunFiles.read(folder, command)
    arms = files.arms()

    def write() -> Logged:
        books = _Books.open(files, staged)
        logged = books.runs(files.run.run_id)
        open_runs = [run for run in logged if run.info.status == "RUNNING" or not run.data.params]
        for run in logged:
            if run not in open_runs and run.data.tags.get(CONTENT_TAG) == content:
                for half in open_runs:
                    books.delete(half.info.run_id)
                return books.logged(run.info.run_id)
        parent = books.continued(open_runs)
        books.delete_all(logged, besides=parent)
        return books.write(parent or books.create_parent(arms), arms, content)

    with tempfile.TemporaryDirectory() as scratch:  # before MLflow is waited for
        staged = Path(scratch)
        unreadable = files.stage(arms, staged)
        content = files.digest(arms, unreadable)
        return replace(store.reach(folder, write), unreadable=tuple(unreadable))


@frozen
class _Books:
    """Where a run goes in MLflow."""

    client: MlflowClient
    experiment: str
    experiment_id: str
    files: RunFiles
    staged: Path  # of files, see RunFiles.stage. Empty where none are logged

    @classmethod
    def open(cls, files: RunFiles, staged: Path = Path()) -> _Books:
        import mlflow

        client = mlflow.MlflowClient()
        name, experiment_id = store.experiment(client)
        owner.end_killed(client, experiment_id)
        return cls(client, name, experiment_id, files, staged)

    def logged(self, run_id: str) -> Logged:
        return Logged(store.name(), self.experiment, run_id, self.experiment_id)

    def runs(self, tag: str) -> list[Run]:
        """Runs of this experiment by our own id."""
        return list(self.client.search_runs([self.experiment_id], f"tags.`{ID_TAG}` = '{tag}'"))

    def continued(self, logged: Sequence[Run]) -> str | None:
        """The id of the run that shows since the work began, also before it was killed. None where there is none.

        It has no parameters yet. MLflow neither changes nor deletes those of others, so they cannot be logged anew.
        """
        run = next((run for run in logged if not run.data.params), None)
        if run is None:
            return None
        owner.take(self.client, run)
        return str(run.info.run_id)

    def delete(self, run_id: str) -> None:
        models.delete_run(self.client, self.experiment_id, run_id)

    def delete_all(self, parents: Sequence[Run], besides: str | None) -> None:
        """Take back what was logged of this run before."""
        start = f"{self.files.run.run_id}/"
        alike = self.client.search_runs([self.experiment_id], f"tags.`{ID_TAG}` LIKE '{start}%'")
        children = [run for run in alike if run.data.tags[ID_TAG].startswith(start)]  # `_` stands for any letter
        for entry in [*parents, *children]:
            if entry.info.run_id != besides:
                self.delete(entry.info.run_id)

    def create_parent(self, arms: Sequence[Arm]) -> str:
        """The parent, which goes on. Its name may not be whole before the arms are loaded."""
        run = self.files.run
        name = self.files.title(arms).name(*run.evaluators)
        return self._create(name, store.milliseconds(run.started), {ID_TAG: run.run_id})

    def _create(self, name: str, started: int, tags: Mapping[str, str]) -> str:
        run = self.files.run
        gpus = run.machine.gpus
        all_tags = {
            "moe_eval.gpu": gpus[0].name if gpus else "none",
            **source_tags(f"moe-eval {run.command}", run.git, run.versions),
            **tags,
        }
        return store.create_run(self.client, self.experiment_id, started, all_tags, name)

    def write(self, parent: str, arms: Sequence[Arm], content: str) -> Logged:
        """Log everything, or take back what was logged."""
        run, written = self.files.run, [parent]
        try:
            important = keys.categories(record for arm in arms for record in arm.kernels)
            model_ids = [self._write_arm(parent, arm, arm.metrics(important), written) for arm in arms]
            self._write_parent(parent, arms)
            models.link(self.client, parent, [model_id for model_id in model_ids if model_id])
            link.share_view(self.client, self.experiment_id, headlines.COLUMNS)
            tags = {CONTENT_TAG: content, STATUS_TAG: ENDED[run.status].lower()}
            store.set_tags(self.client, parent, tags)
            owner.end(self.client, parent, ENDED[run.status], store.milliseconds(run.ended))
        except BaseException:
            # half a run would look whole and keep the records from being logged again
            for run_id in written[::-1]:
                self.delete(run_id)
            raise
        return self.logged(parent)

    def _write_arm(self, parent: str, arm: Arm, metrics: Mapping[str, float], written: list[str]) -> str | None:
        """Log an arm; `written` gets the id of its run as it is created. Returns the id of its model."""
        run, title = self.files.run, arm.title.filled(self.files.title([arm]))
        started, ended = self.files.span(arm.name)
        texts, tables = {BREAKDOWN_FILE: arm.breakdown} if arm.breakdown else {}, arm.tables
        tags = {ID_TAG: f"{run.run_id}/{arm.name}", PARENT_TAG: parent, NOTE_TAG: arm.description, **arm.tags}
        tags |= task_tables.tags(tables)
        child = self._create(title.name(arm.name), started, {key: value for key, value in tags.items() if value})
        written.append(child)
        # before the metrics: MLflow's client reads the whole run to see where its files go
        store.log_files(self.client, child, self.files.staged(self.staged, arm), texts | tables)
        engine: Mapping[str, object] = msgspec.to_builtins(arm.engine) if arm.engine else {}
        model_id = models.create(self.client, self.experiment_id, child, arm.title.model, engine)
        store.log_labels(
            self.client,
            child,
            params={**arm.labels, "schedule": msgspec.to_builtins(run.schedule)},
            metrics=metrics,
            datasets=arm.datasets,
            ended=ended,
            model_id=model_id,
        )
        owner.end(self.client, child, arm.ended(run.status), ended)
        return model_id

    def _write_parent(self, parent: str, arms: Sequence[Arm]) -> None:
        """What MLflow reads the whole run for comes before its metrics."""
        run, files = self.files.run, self.files
        title, tables = files.title(arms), task_tables.flips(files.comparison)
        self.client.update_run(parent, name=title.name(*run.evaluators))
        tags = {
            NOTE_TAG: files.description(),
            "moe_eval.model": title.model,
            "moe_eval.engine": ", ".join(
                dict.fromkeys(filter(None, (arm.tags.get("moe_eval.engine") for arm in arms)))
            ),
            "moe_eval.error": run.error,
            **files.verdicts,
            **task_tables.tags(tables),
        }
        store.set_tags(self.client, parent, {key: value for key, value in tags.items() if value})
        store.log_files(self.client, parent, files.staged(self.staged), tables)
        store.log_labels(
            self.client,
            parent,
            params={name: msgspec.to_builtins(getattr(run, name), str_keys=True) for name in _LABELS},
            metrics=headlines.of_parent(files.comparison),
            datasets=list(dict.fromkeys(dataset for arm in arms for dataset in arm.datasets)),
            ended=store.milliseconds(run.ended),
        )
