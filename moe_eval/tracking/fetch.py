"""Recorded arms from MLflow: the records that a run or an experiment keeps as artifacts.

The comparison comes along: it says what arms cost in quality, which their records alone do not. Artifacts of arms have
the same names for every arm now. Earlier versions logged them by the names that they have on disk.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.errors import UsageError
from moe_eval.records.comparison import COMPARISON_FILE
from moe_eval.records.run import RUN_FILE
from moe_eval.tracking import owner, patience, store
from moe_eval.tracking.arm import ARM_TAG
from moe_eval.tracking.plan_run import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_ID = re.compile(r"[0-9a-f]{32}")
_OF_RUN = re.compile(rf"(perf_|ppl_)?({re.escape(RUN_FILE)}|{re.escape(COMPARISON_FILE)})")
_RECORD = re.compile(r"(perf|ppl|kernels|tasks|serving)_.*\.json")
_OF_TASKS = re.compile(r"record\.json|results\.json|samples_.*\.jsonl")  # of lm_eval --model trtllm_moe
_NAMES = {
    "latency.json": "perf",
    "quality.json": "ppl",
    "tasks.json": "tasks",
    "serving.json": "serving",
}  # in MLflow and on disk
_KERNELS = re.compile(r"kernels/(?:([bcr][\d.e+-]+_(?:i\d+_o\d+|mixed))|.*)\.json")
# what a store says where it has no such run
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND")


def fetch(name: str, folder: Path) -> Path:
    """Download the records of a run, with those of its children where it is a parent, or of an experiment's newest one.

    Args:
        name: a run's id or an experiment's name.
        folder: where a folder for the records is made.

    Returns:
        The folder: records of one run belong together, as they did where it ran.

    Raises:
        UsageError: there is no such run or experiment, it keeps no records, or the store cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = mlflow.get_tracking_uri()
    database = Path(uri.removeprefix(store.SQLITE).partition("?")[0])
    if uri.startswith(store.SQLITE) and not database.exists():  # it would be made
        raise UsageError(
            f"{name} is no folder, and there is no MLflow store at {store.name()}. Give a folder, or name the store in "
            "MLFLOW_TRACKING_URI."
        )
    here = Path(tempfile.mkdtemp(dir=folder))
    try:
        with store.quiet():
            patience.within(lambda: _fetch(name, here))
    except UsageError:
        raise
    except patience.NoAnswer as error:
        raise UsageError(f"{name} is no folder, and MLflow at {store.name()} {error}. Start it again.") from None
    # MLflow and what lies under it (requests, SQLAlchemy, boto) raise whatever they like
    except Exception as error:
        if isinstance(error, MlflowException) and error.error_code in _ABSENT:
            raise UsageError(f"MLflow at {store.name()} has no {name}. Give another one.") from None
        raise UsageError(
            f"{name} is no folder, and MLflow at {store.name()} cannot be reached ({type(error).__name__}). Start "
            "it, or name another store in MLFLOW_TRACKING_URI."
        ) from None
    names = [file.name for file in here.iterdir()]
    if "record.json" not in names and not any(
        _RECORD.fullmatch(name) and not _OF_RUN.fullmatch(name) for name in names
    ):
        raise UsageError(f"The runs of {name} in MLflow keep no records of arms. Give runs that moe-eval logged.")
    return here


def _fetch(name: str, folder: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    runs = _run(client, name) if RUN_ID.fullmatch(name) else _experiment(client, name)
    owner.end_killed(client, runs[0].info.experiment_id)
    for run in runs:
        _download(client, run.info.run_id, folder, _OF_RUN, _RECORD, _OF_TASKS)
        _download_arm(client, run, folder)
        if parent := run.data.tags.get(PARENT_TAG):  # it has the comparison of its children
            _download(client, parent, folder, _OF_RUN)


def _download(client: MlflowClient, run_id: str, folder: Path, *names: re.Pattern[str]) -> None:
    for file in client.list_artifacts(run_id):
        if any(name.fullmatch(file.path) for name in names):
            client.download_artifacts(run_id, file.path, str(folder))


def _download_arm(client: MlflowClient, run: Run, folder: Path) -> None:
    """Download the records of an arm, by the names that they have on disk."""
    run_id, arm = run.info.run_id, run.data.tags.get(ARM_TAG)
    files = [file.path for path in ("", "kernels") for file in client.list_artifacts(run_id, path)] if arm else []
    for name in files:
        kernels = _KERNELS.fullmatch(name)
        if kernels or name in _NAMES:
            # the records say on which GPU it ran
            stem = f"kernels_{arm}_cpu_{kernels[1] or ''}" if kernels else f"{_NAMES[name]}_{arm}_cpu"
            Path(client.download_artifacts(run_id, name, str(folder))).rename(folder / f"{stem.rstrip('_')}.json")


def _run(client: MlflowClient, run_id: str) -> list[Run]:
    """A run and its children."""
    run = client.get_run(run_id)
    children = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run_id}'")
    return [run, *list(children)[::-1]]


def _experiment(client: MlflowClient, name: str) -> list[Run]:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise UsageError(f"{name} is no folder, no run id and no experiment in MLflow. Give one of these.")
    if experiment.lifecycle_stage == "deleted":
        raise UsageError(
            f"The experiment {name} was deleted in MLflow. Bring it back with `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}`."
        )
    for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]):
        if PARENT_TAG not in run.data.tags and len(family := _run(client, run.info.run_id)) > 1:
            return family
    raise UsageError(f"The experiment {name} has no run with arms. Make one with `moe-eval run`.")
