"""One run of MLflow for one record of `moe-eval sensitivity`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from moe_eval.records import anonymous, disk
from moe_eval.records.sensitivity import SENSITIVITY_SCHEMA, SensitivityRecord
from moe_eval.stats import Divergence
from moe_eval.tracking import models, owner, published, store
from moe_eval.tracking.link import Logged
from moe_eval.tracking.store import ID_TAG, STATUS_TAG
from moe_eval.tracking.title import Title, label, source_tags

FILES = "sensitivity_*.json"


def log(file: Path) -> Logged:
    """Log a record, with its recipe as an artifact; one that is there is left alone.

    Raises:
        TrackingError: with the command that logs the record later.
        UsageError: the file holds no such record.
    """
    schemas, maker = (SENSITIVITY_SCHEMA,), "moe-eval sensitivity"
    record = disk.read_record(file, SensitivityRecord, schemas=schemas, maker=maker)
    identity = anonymous.of_publication([record])
    recipe = file.with_name(f"{file.stem}_recipe.yaml")
    with tempfile.TemporaryDirectory() as scratch:  # before MLflow is waited for
        for entry in filter(Path.is_file, (file, recipe)):
            published.copy(entry, Path(scratch, entry.name), identity)
        return store.reach(file.parent, lambda: _log(anonymous.anonymous(record, identity), Path(scratch)))


def _log(record: SensitivityRecord, artifacts: Path) -> Logged:
    import mlflow

    client = mlflow.MlflowClient()
    name, experiment_id = store.experiment(client)
    owner.end_killed(client, experiment_id)
    for logged in client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{record.origin.run_id}'"):
        if logged.info.status == "FINISHED":
            return Logged(store.name(), name, logged.info.run_id, experiment_id)
        models.delete_run(client, experiment_id, logged.info.run_id)  # half a run
    started = store.milliseconds(record.started)
    ended = started + int(1000 * record.figures.seconds)
    title = Title.of_engine(record.labels.engine)
    run_id = store.create_run(client, experiment_id, started, _tags(record), title.name(f"{record.precision} by layer"))
    try:
        labels: dict[str, object] = msgspec.to_builtins(record.labels)
        store.log_labels(
            client,
            run_id,
            params={**labels, "options": record.origin.options, "machine": msgspec.to_builtins(record.origin.machine)},
            metrics=dict(_metrics(record)),
            datasets=(),
            ended=ended,
            model_id=models.create(client, experiment_id, run_id, title.model, _engine(labels)),
        )
        client.log_artifacts(run_id, str(artifacts))
        owner.end(client, run_id, "FINISHED", ended)
    except BaseException:
        models.delete_run(client, experiment_id, run_id)
        raise
    return Logged(store.name(), name, run_id, experiment_id)


def _engine(labels: dict[str, object]) -> dict[str, object]:
    engine = labels.get("engine")
    return engine if isinstance(engine, dict) else {}


def _tags(record: SensitivityRecord) -> dict[str, str]:
    tags = {
        ID_TAG: record.origin.run_id,
        STATUS_TAG: "finished",
        "moe_eval.model": Title.of_engine(record.labels.engine).model,
        "moe_eval.engine": label(record.labels.engine),
        "moe_eval.suggested_layers": ",".join(map(str, record.figures.suggestion.layers)),
        "moe_eval.dataset": record.figures.reference.dataset,
        **source_tags("moe-eval sensitivity", record.origin.git, record.origin.versions),
    }
    return {key: value for key, value in tags.items() if value}


def _metrics(record: SensitivityRecord) -> Iterator[tuple[str, float]]:
    suggestion = record.figures.suggestion
    if suggestion.divergence is not None:
        yield from _kld("sensitivity/suggested/kld", suggestion.divergence)
    yield "sensitivity/suggested/saved_bytes", float(suggestion.saved_bytes)
    for layer in record.figures.layers:
        yield from _kld(f"sensitivity/layer_{layer.layer}/kld", layer.divergence)
        for expert in layer.by_expert:
            yield from _kld(f"sensitivity/layer_{layer.layer}/expert_{expert.expert}/kld", expert.divergence)


def _kld(key: str, cost: Divergence) -> Iterator[tuple[str, float]]:
    yield key, cost.mean
    if cost.kld is not None:
        yield from ((f"{key}_low", cost.kld.low), (f"{key}_high", cost.kld.high))
