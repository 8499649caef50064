"""One run of MLflow for one run of the harness, made from its record."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.imports import harness_samples
from moe_eval.records import anonymous, harness
from moe_eval.records.harness import HarnessRecord
from moe_eval.tracking import headlines, link, models, owner, published, store, task_tables
from moe_eval.tracking.link import Logged
from moe_eval.tracking.store import CONTENT_TAG, ENDED, ID_TAG, NOTE_TAG, STATUS_TAG
from moe_eval.tracking.title import CPU, Title, short, source_tags

_FORM = b"4"  # of what is logged: a run in another form is logged anew
_LOGGED = (".json", ".jsonl", ".gz")


def log(folder: Path) -> Logged:
    """Log the record of a run folder, with its files as artifacts; one that is there as it stands is left alone.

    Raises:
        TrackingError: with the command that logs the record later.
        UsageError: the folder holds no record.
    """
    record = harness.read(folder)
    identity = anonymous.of_publication([record])
    content = hashlib.sha256(_FORM + msgspec.json.encode(record, order="sorted")).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as scratch:  # before MLflow is waited for
        for file in sorted(folder.iterdir()):
            if file.name.endswith(_LOGGED):
                published.copy(file, Path(scratch, file.name), identity)
        return store.reach(folder, lambda: _log(anonymous.anonymous(record, identity), content, Path(scratch)))


def _log(record: HarnessRecord, content: str, artifacts: Path) -> Logged:
    import mlflow

    client = mlflow.MlflowClient()
    name, experiment_id = store.experiment(client)
    owner.end_killed(client, experiment_id)
    for logged in client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{record.run_id}'"):
        if logged.info.status != "RUNNING" and logged.data.tags.get(CONTENT_TAG) == content:
            return Logged(store.name(), name, logged.info.run_id, experiment_id)
        # half a run that could not be taken back, one that was logged before it had ended, or one in an earlier form
        models.delete_run(client, experiment_id, logged.info.run_id)
    started = store.milliseconds(record.started)
    ended = started + int((record.seconds or 0) * 1000)
    run_id = store.create_run(client, experiment_id, started, _tags(record), _title(record).name(_precision(record)))
    try:
        metrics = {key: value for key, value in record.metrics.items() if value is not None}
        store.log_labels(
            client,
            run_id,
            params=_params(record),
            metrics=dict(sorted(metrics.items(), key=lambda entry: _place(entry[0]))),
            datasets=record.datasets,
            ended=ended,
            model_id=models.create(client, experiment_id, run_id, _title(record).model, _engine(record)),
        )
        tables = _tables(artifacts)
        store.log_files(client, run_id, artifacts, tables)
        store.set_tags(client, run_id, task_tables.tags(tables))
        link.share_view(client, experiment_id, headlines.COLUMNS)
        client.set_tag(run_id, CONTENT_TAG, content)
        owner.end(client, run_id, ENDED[record.status], ended)
    except BaseException:
        # half a run would look whole and keep the record from being logged again
        models.delete_run(client, experiment_id, run_id)
        raise
    return Logged(store.name(), name, run_id, experiment_id)


def _tables(folder: Path) -> dict[str, str]:
    """Samples as tables. Where they cannot be read, their files are logged all the same."""
    try:
        return task_tables.samples(harness_samples.read(folder))
    except UsageError:
        return {}


def _place(key: str) -> int:
    """Where a metric stands: MLflow shows first what was logged first. Counts and kernels explain, and come last."""
    starts = ("quality/word_ppl", "quality/token_ppl", "quality/bits_per_byte", "harness/", "latency/")
    return next((place for place, start in enumerate(starts) if key.startswith(start)), len(starts))


def _title(record: HarnessRecord) -> Title:
    engine = _engine(record)
    model = str(engine.get("checkpoint") or record.model_args.get("pretrained") or "shipped model")
    name = engine.get("name") or record.model_args.get("engine")
    gpu, count = _gpu(record), engine.get("gpus")
    if count == 0 or gpu is None:
        gpu = CPU
    elif isinstance(count, int) and count > 1:
        gpu = f"{count} x {gpu}"
    return Title(short(model), gpu, None if name is None else str(name))


def _precision(record: HarnessRecord) -> str:
    return str(_engine(record).get("precision") or record.model_args.get("precision") or "?")


def _gpu(record: HarnessRecord) -> str | None:
    """The name of the first GPU."""
    gpus = record.machine.get("gpus")
    gpu = gpus[0] if isinstance(gpus, Sequence) and gpus else None
    return str(gpu.get("name")) if isinstance(gpu, Mapping) else None


def _engine(record: HarnessRecord) -> Mapping[str, object]:
    """What the engine said of itself; nothing where none was loaded."""
    engine = record.labels.get("engine")
    return engine if isinstance(engine, Mapping) else {}


def _tags(record: HarnessRecord) -> dict[str, str]:
    engine, tasks = _engine(record), record.settings.get("tasks")
    tags = {
        ID_TAG: record.run_id,
        STATUS_TAG: ENDED[record.status].lower(),
        NOTE_TAG: store.description(_description(record)) or None,
        "moe_eval.model": _title(record).model,
        "moe_eval.engine": " ".join(str(engine[part]) for part in ("name", "version") if engine.get(part)) or None,
        "moe_eval.checkpoint.precision": engine.get("precision"),
        "moe_eval.gpu": _gpu(record) or "none",
        "moe_eval.tasks": ", ".join(map(str, tasks)) if isinstance(tasks, Sequence) else None,
        "moe_eval.error": record.error,
        **source_tags("lm_eval --model trtllm_moe", record.git, record.versions),
    }
    return {key: str(value) for key, value in tags.items() if value is not None}


def _description(record: HarnessRecord) -> str:
    """The figures of every task as a table, and what a reader of them has to know."""
    figures = {
        key: value for key, value in record.metrics.items() if value is not None and not key.startswith("kernels/")
    }
    rows = [f"| {key.replace('|', '/')} | {figures[key]:.6g} |" for key in sorted(figures, key=_place)]
    table = ["\n".join(("| metric | value |", "|---|---:|", *rows))] if rows else []
    return "\n\n".join([*([record.error] if record.error else []), *record.notes, *table])


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
