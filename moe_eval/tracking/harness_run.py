"""One run of MLflow for one run of the harness, made from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from moe_eval.records import harness
from moe_eval.records.harness import HarnessRecord
from moe_eval.tracking import store
from moe_eval.tracking.store import ENDED, ID_TAG, STATUS_TAG, Logged


def log(folder: Path) -> Logged:
    """Log the record of a run folder, with its files as artifacts; one that is there as it stands is left alone.

    Raises:
        TrackingError: with the command that logs the record later.
        UsageError: the folder holds no record.
    """
    record = harness.read(folder)
    with store.reached(folder):
        return _log(record, folder)


def _log(record: HarnessRecord, folder: Path) -> Logged:
    import mlflow

    client = mlflow.MlflowClient()
    name, experiment_id = store.experiment(client)
    for logged in client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{record.run_id}'"):
        if logged.info.status != "RUNNING" and logged.data.tags.get(STATUS_TAG) == ENDED[record.status].lower():
            return Logged(store.name(), name, logged.info.run_id)
        # half a run that could not be taken back, or one that was logged before it had ended
        client.delete_run(logged.info.run_id)
    started = int(datetime.fromisoformat(record.started).timestamp() * 1000)
    ended = started + int((record.seconds or 0) * 1000)
    run = client.create_run(experiment_id, started, _tags(record), _title(record))
    run_id = run.info.run_id
    try:
        metrics = {key: value for key, value in record.metrics.items() if value is not None}
        params = _params(record)
        store.log_labels(client, run_id, params=params, metrics=metrics, datasets=record.datasets, ended=ended)
        client.log_artifacts(run_id, str(folder))
        client.set_terminated(run_id, ENDED[record.status], ended)
    except BaseException:
        # half a run would look whole and keep the record from being logged again
        client.delete_run(run_id)
        raise
    return Logged(store.name(), name, run_id)


def _title(record: HarnessRecord) -> str:
    engine, tasks = _engine(record), record.settings.get("tasks")
    name = str(engine.get("checkpoint") or record.model_args.get("pretrained") or "shipped model")
    precision = engine.get("precision") or record.model_args.get("precision") or "?"
    return f"{Path(name).name} {precision} {','.join(map(str, tasks)) if isinstance(tasks, Sequence) else ''}"


def _engine(record: HarnessRecord) -> Mapping[str, object]:
    """What the engine said of itself; nothing where none was loaded."""
    engine = record.labels.get("engine")
    return engine if isinstance(engine, Mapping) else {}


def _tags(record: HarnessRecord) -> dict[str, str]:
    engine, gpus = _engine(record), record.machine.get("gpus")
    gpu = gpus[0] if isinstance(gpus, Sequence) and gpus else None
    tags = {
        ID_TAG: record.run_id,
        STATUS_TAG: ENDED[record.status].lower(),
        "moe_eval.engine": engine.get("name"),
        "moe_eval.checkpoint.precision": engine.get("precision"),
        "moe_eval.gpu": gpu.get("name") if isinstance(gpu, Mapping) else "none",
        "moe_eval.error": record.error,
        "mlflow.note.content": "\n\n".join(record.notes) or None,
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _params(record: HarnessRecord) -> dict[str, object]:
    return {
        "model_args": record.model_args,
        "harness": record.settings,
        **{key: value for key, value in record.labels.items() if key != "scored"},
        "machine": record.machine,
        "versions": record.versions,
        "git": record.git,
        "seconds": record.seconds,
    }
