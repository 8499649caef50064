"""The tracking store: reached with patience, quietly, and never half written."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from moe_eval.errors import TrackingError
from moe_eval.machine import collector
from moe_eval.records.harness import DatasetFacts
from moe_eval.records.labels import Status
from moe_eval.tracking import parameters, patience

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.data.dataset_source import DatasetSource
    from mlflow.entities import DatasetInput

_LONGEST_NOTE = 7500  # characters: MLflow takes 8,000 in a tag and cuts the rest off
_LONGEST_TAG, _LONGEST_VALUE = 8000, 6000  # mlflow.utils.validation, what it refuses beyond
EXPERIMENT = "moe_eval"
SQLITE = "sqlite:///"  # of a database in a file
ID_TAG = "moe_eval.run_id"
STATUS_TAG = "moe_eval.status"
NOTE_TAG = "mlflow.note.content"  # MLflow's description of a run, shown as Markdown
CONTENT_TAG = "moe_eval.content"  # a digest: what is there as it stands is left alone
# MLflow's words for how a run ended; one that neither ended nor goes on was killed outright
ENDED = {status: status.value.upper() for status in (Status.FINISHED, Status.FAILED, Status.KILLED)}
ENDED |= dict.fromkeys((Status.RUNNING, Status.SKIPPED), "KILLED")
# of a checkpoint: a store keeps them a second time, with its model. Times, kernels and serving are of a run
_OF_MODEL = ("headline/", "quality/", "memory/", "harness/", "sensitivity/")
OPENING = 0.25  # of the time that a command may wait for MLflow, the share of what comes before the logging
Result = TypeVar("Result")
_CREDENTIALS = re.compile(r"(?<=//)\S*@|\?\S*")  # what stands before a host, and a query


def reach(folder: Path, call: Callable[[], Result], share: float = 1.0) -> Result:
    """The result of a call that talks to the store.

    Args:
        folder: of the records.
        share: of the time that a command may wait for MLflow. Below 1 it is tried again when the run ends.

    Raises:
        TrackingError: the store is not one, or did not take what was sent; with the command that logs them later, or
            that it is tried again.
    """
    with quiet(), _uninterrupted(), collector.paused():
        refusal = _old_file_store()
        if refusal is None:
            try:
                return patience.within(call, share)
            except patience.NoAnswer as error:
                refusal = f"{_place()} {error}"
            # MLflow and what lies under it (requests, SQLAlchemy, boto) raise whatever they like
            except Exception as error:
                reason = _CREDENTIALS.sub("", " ".join(str(error).split()))[:200]
                refusal = f"{_place()} did not take the run ({type(error).__name__}: {reason})"
    later = f"Nothing is lost: log it later with `moe-eval log {shlex.quote(str(folder))}`"
    raise TrackingError(f"{refusal}. {later if share == 1 else 'It is tried again when the run ends'}.")


def _place() -> str:
    try:
        return f"MLflow at {name()}"
    except ImportError:  # it is broken, or half installed: the user hears of what was measured all the same
        return "MLflow"


@contextmanager
def opened_meanwhile() -> Iterator[None]:
    """Import MLflow and open its store in a thread, which takes seconds, while the caller measures.

    A store that is not there yet is left to the logging, which makes it whole. So are all failures.
    """
    thread = threading.Thread(target=_open, name="moe_eval-mlflow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(patience.NoAnswer):
            patience.within(thread.join, OPENING)


def _open() -> None:
    with suppress(Exception):
        import mlflow

        address = os.environ.get("MLFLOW_TRACKING_URI") or mlflow.get_tracking_uri()
        is_new = address.startswith(SQLITE) and not Path(address.removeprefix(SQLITE)).exists()
        if not is_new and _old_file_store() is None:
            mlflow.MlflowClient()


def experiment(client: MlflowClient) -> tuple[str, str]:
    """The experiment's name and id. mlflow.set_experiment would also make it the one of the process that called us."""
    called = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    entry = client.get_experiment_by_name(called)
    if entry is None:
        return called, str(client.create_experiment(called, _artifacts()))
    if entry.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {entry.experiment_id}"
        raise LookupError(
            f"the experiment {called} was deleted: `{restore}`, or name another in MLFLOW_EXPERIMENT_NAME"
        )
    return called, str(entry.experiment_id)


def _artifacts() -> str | None:
    """The folder of a new experiment's artifacts: beside its database, and not where the command happens to run.

    MLflow's own default of a database in a file is `mlruns` of the working directory. None for that of other stores.
    """
    import mlflow

    address = mlflow.get_tracking_uri()
    folder = Path(address.removeprefix(SQLITE).partition("?")[0]).absolute().parent
    return str(folder / "mlruns") if address.startswith(SQLITE) and folder != Path.cwd() else None


def log_labels(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    datasets: Sequence[DatasetFacts],
    ended: int,
    model_id: str | None = None,
) -> None:
    """Parameters, metrics and inputs of a run, in as few calls as MLflow's client makes of them.

    Args:
        params: nested as they are in a record. `ended`: milliseconds since 1970, the metrics' time.
        metrics: in the order in which MLflow is to show them.
        model_id: the model that those of a checkpoint are of, and that is an input of the run.
    """
    from mlflow.entities import LoggedModelInput, Metric, Param

    client.log_batch(
        run_id,
        params=[Param(key, storable(value, _LONGEST_VALUE)) for key, value in parameters.of_labels(params)],
        metrics=[
            Metric(key, value, ended, 0, model_id=model_id if key.startswith(_OF_MODEL) else None)
            for key, value in metrics.items()
        ],
    )
    models = [LoggedModelInput(model_id)] if model_id else None
    client.log_inputs(run_id, [_input(dataset) for dataset in datasets], models)


def storable(text: str, longest: int = _LONGEST_TAG) -> str:
    """Text as every database takes it: without NUL and half characters, and cut off."""
    return text.encode("utf-8", "replace").decode().replace("\0", " ")[:longest]


def create_run(client: MlflowClient, experiment_id: str, started: int, tags: Mapping[str, str], title: str) -> str:
    """The id of a new run. `started`: milliseconds since 1970."""
    texts = {key: storable(value) for key, value in tags.items()}
    run_id: str = client.create_run(experiment_id, started, texts, storable(title)).info.run_id
    return run_id


def milliseconds(iso: str | None) -> int:
    """Since 1970, of a record's time; of now where there is none."""
    return int((datetime.fromisoformat(iso) if iso else datetime.now(timezone.utc)).timestamp() * 1000)


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Tags of a run, in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, storable(value)) for key, value in tags.items()])


def description(text: str) -> str:
    """Markdown that MLflow takes as a description, cut off at a line's end."""
    if len(text) <= _LONGEST_NOTE:
        return text
    return f"{text[:_LONGEST_NOTE].rpartition(chr(10))[0] or text[:_LONGEST_NOTE]}\n\nThe artifacts hold the rest."


def log_files(client: MlflowClient, run_id: str, folder: Path, texts: Mapping[str, str]) -> None:
    """Log what a folder holds as artifacts of a run, with texts that are written there by their names in MLflow."""
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="replace")
    client.log_artifacts(run_id, str(folder))


def _input(dataset: DatasetFacts) -> DatasetInput:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    kind, _, where = dataset.source.partition(":")
    if kind == "hub":
        path, _, configuration = where.partition(":")
        hub_options = {"config_name": configuration or None, "split": dataset.split}
        source: DatasetSource = HuggingFaceDatasetSource(path, **hub_options)
    else:
        source = CodeDatasetSource({"task": where})
    described = MetaDataset(source, name=dataset.task, digest=dataset.digest)._to_mlflow_entity()
    facts = {"mlflow.data.context": "evaluation", **{key: str(value) for key, value in asdict(dataset).items()}}
    return DatasetInput(described, [InputTag(key, value) for key, value in facts.items()])


def name() -> str:
    """The tracking store without a user's password."""
    import mlflow

    address = os.environ.get("MLFLOW_TRACKING_URI") or mlflow.get_tracking_uri()
    return _CREDENTIALS.sub("", address)


def _old_file_store() -> str | None:
    """What to do about a file store that MLflow 3 no longer opens, where the user names no other store."""
    is_allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true"
    if os.environ.get("MLFLOW_TRACKING_URI") or is_allowed or not any(Path("mlruns").glob("*/meta.yaml")):
        return None
    try:
        from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE as _  # noqa: F401
    except ImportError:  # MLflow 3.5 opens it: there it is the default
        return None
    return (
        "./mlruns is a file store of an older MLflow, which MLflow no longer opens by itself. Migrate it with "
        "`mlflow migrate-filestore`, move it away, name another store in MLFLOW_TRACKING_URI, or set "
        "MLFLOW_ALLOW_FILE_STORE=true"
    )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the run is logged: a new sqlite store cut off half made is lost for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        kind: signal.signal(kind, lambda number, _: held.append(number)) for kind in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    for number in held:
        signal.raise_signal(number)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a new store's migration steps and the retries of a dead one off the screen: one sentence is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
