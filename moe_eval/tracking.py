"""MLflow as a view of the records on disk: one run for one record, made again at any time."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from moe_eval import records
from moe_eval.errors import TrackingError
from moe_eval.records import DatasetFacts, HarnessRecord

EXPERIMENT = "moe_eval"
ID_TAG = "moe_eval.run_id"
STATUS_TAG = "moe_eval.status"
_ENDED = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "running": "KILLED"}
# MLflow retries a server that does not answer for minutes; after hours of measuring, seconds are enough to tell.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print a password in the URL
}
_BATCH = 100  # MLflow takes at most 100 parameters, and 1,000 metrics, in a call
_CREDENTIALS = re.compile(r"(?<=//)\S*@|\?\S*")  # what stands before a host, and a query


@dataclass(frozen=True)
class Logged:
    """Where a record is in MLflow."""

    store: str
    experiment: str
    run_id: str

    def describe(self) -> str:
        """One line that says where to look."""
        here = f"sqlite:///{Path('mlflow.db').absolute()}"
        if self.store in (here, "sqlite:///mlflow.db"):
            look = "mlflow ui"
        else:
            web = self.store.startswith("http")
            look = f"open {self.store}" if web else f"mlflow ui --backend-store-uri {self.store}"
        return f"run {self.run_id} in experiment {self.experiment} ({look})"


def log_run(folder: Path) -> Logged:
    """Log the record of a run folder, with its files as artifacts, to the store that MLflow's variables name.

    A record that is already there as it stands is left alone, so this can be repeated.

    Raises:
        TrackingError: with the command that logs the record later.
        UsageError: the folder holds no record.
    """
    record = records.read(folder)
    with _patient(), _quiet(), _uninterrupted():
        refusal = _old_file_store()
        if refusal is None:
            try:
                return _log(record, folder)
            # MLflow and what lies under it (requests, SQLAlchemy, boto) raise whatever they like
            except Exception as error:
                reason = _CREDENTIALS.sub("", " ".join(str(error).split()))[:200]
                refusal = f"MLflow at {_store()} did not take the run ({type(error).__name__}: {reason})"
    raise TrackingError(f"{refusal}; nothing is lost: log it later with `moe-eval log {folder}`.")


def _log(record: HarnessRecord, folder: Path) -> Logged:
    import mlflow
    from mlflow.entities import Metric, Param

    client = mlflow.MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment_id = _experiment(client, name)
    for found in client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{record.run_id}'"):
        if found.info.status != "RUNNING" and found.data.tags.get(STATUS_TAG) == record.status:
            return Logged(_store(), name, found.info.run_id)
        # half a run that could not be taken back, or one that was logged before it had ended
        client.delete_run(found.info.run_id)
    started = int(datetime.fromisoformat(record.started).timestamp() * 1000)
    ended = started + int((record.seconds or 0) * 1000)
    run = client.create_run(experiment_id, started, _tags(record), _title(record))
    run_id = run.info.run_id
    try:
        params = [Param(key, value) for key, value in flatten(_params(record))]
        for first in range(0, len(params), _BATCH):
            client.log_batch(run_id, params=params[first : first + _BATCH])
        metrics = [Metric(key, value, ended, 0) for key, value in record.metrics.items()]
        for first in range(0, len(metrics), _BATCH):
            client.log_batch(run_id, metrics=metrics[first : first + _BATCH])
        client.log_inputs(run_id, [_input(dataset) for dataset in record.datasets])
        client.log_artifacts(run_id, str(folder))
        client.set_terminated(run_id, _ENDED[record.status], ended)
    except BaseException:
        # half a run would look whole and keep the record from being logged again
        client.delete_run(run_id)
        raise
    return Logged(_store(), name, run_id)


def _experiment(client: Any, name: str) -> str:
    """The experiment's id. mlflow.set_experiment would also make it the one of the process that called us."""
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _title(record: HarnessRecord) -> str:
    engine = record.labels.get("engine", {})
    name = str(engine.get("checkpoint") or record.model_args.get("pretrained") or "shipped model")
    precision = engine.get("precision") or record.model_args.get("precision") or "?"
    return f"{Path(name).name} {precision} {','.join(map(str, record.settings.get('tasks') or []))}"


def _tags(record: HarnessRecord) -> dict[str, str]:
    engine = record.labels.get("engine", {})
    gpus = record.machine.get("gpus") or []
    tags = {
        ID_TAG: record.run_id,
        STATUS_TAG: record.status,
        "moe_eval.engine": engine.get("name"),
        "moe_eval.precision": engine.get("precision"),
        "moe_eval.gpu": gpus[0]["name"] if gpus else "none",
        "moe_eval.error": record.error,
        "mlflow.note.content": "\n\n".join(record.notes) or None,
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _params(record: HarnessRecord) -> dict[str, Any]:
    return {
        "model_args": record.model_args,
        "harness": record.settings,
        **{key: value for key, value in record.labels.items() if key != "scored"},
        "machine": record.machine,
        "versions": record.versions,
        "git": record.git,
        "seconds": record.seconds,
    }


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested labels as (dotted key, text) pairs; lists of numbers and texts stay one value."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from flatten(each, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from flatten(each, f"{prefix}.{index}")
    else:
        key = re.sub(r"[^\w.:/ -]", "_", prefix)
        yield key, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _input(dataset: DatasetFacts) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    kind, _, where = dataset.source.partition(":")
    if kind == "hub":
        path, _, configuration = where.partition(":")
        source: Any = HuggingFaceDatasetSource(path, config_name=configuration or None, split=dataset.split)
    else:
        source = CodeDatasetSource({"task": where})
    described = MetaDataset(source, name=dataset.task, digest=dataset.digest)._to_mlflow_entity()
    facts = {"mlflow.data.context": "evaluation", **{key: str(value) for key, value in asdict(dataset).items()}}
    return DatasetInput(described, [InputTag(key, value) for key, value in facts.items()])


def _store() -> str:
    """The tracking store without a user's password."""
    import mlflow

    named = os.environ.get("MLFLOW_TRACKING_URI") or mlflow.get_tracking_uri()
    return _CREDENTIALS.sub("", named)


def _old_file_store() -> str | None:
    """What to do about a file store that MLflow 3 no longer opens, where the user names no other store."""
    if os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
        return None
    if not any(Path("mlruns").glob("*/meta.yaml")):
        return None
    return (
        "./mlruns is a file store of an older MLflow, which MLflow no longer opens unasked: migrate it with "
        "`mlflow migrate-filestore`, move it away, name another store in MLFLOW_TRACKING_URI, or set "
        "MLFLOW_ALLOW_FILE_STORE=true"
    )


@contextmanager
def _patient() -> Iterator[None]:
    """Bound MLflow's retries, unless the user has set them."""
    ours = {key: value for key, value in _PATIENCE.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the run is logged: a new sqlite store cut off half made is lost for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: held.append(number)) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    for number in held:
        signal.raise_signal(number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a new store's migration steps and the retries of a dead one off the screen: one sentence is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
