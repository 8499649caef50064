"""Recorded arms from MLflow: the records that a run or an experiment keeps as artifacts."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError
from moe_eval.tracking import store
from moe_eval.tracking.plan_run import PARENT_TAG

RUN_ID = re.compile(r"[0-9a-f]{32}")
_RECORD = re.compile(r"(perf|ppl|kernels)_.*\.json")


def fetch(name: str, folder: Path) -> Path:
    """Download the records of a run, of its children where it is a parent, or of an experiment's newest parent.

    Args:
        name: a run's id or an experiment's name.
        folder: where a folder for the records is made.

    Returns:
        The folder: records of one run belong together, as they did where it ran.

    Raises:
        UsageError: there is no such run or experiment, or it keeps no records.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    here = Path(tempfile.mkdtemp(dir=folder))
    with store.patient():
        client = mlflow.MlflowClient()
        try:
            runs = _run(client, name) if RUN_ID.fullmatch(name) else _experiment(client, name)
            for run in runs:
                kept = [each.path for each in client.list_artifacts(run.info.run_id)]
                for path in filter(_RECORD.fullmatch, kept):
                    client.download_artifacts(run.info.run_id, path, str(here))
        except MlflowException as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"MLflow at {store.name()} has no {name} ({reason}); give another one.") from None
    if not any(here.iterdir()):
        raise UsageError(f"The runs of {name} in MLflow keep no records of arms; give runs that `moe-eval run` logged.")
    return here


def _run(client: Any, run_id: str) -> list[Any]:
    run = client.get_run(run_id)
    children = client.search_runs([run.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run_id}'")
    return list(children)[::-1] or [run]


def _experiment(client: Any, name: str) -> list[Any]:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise UsageError(f"{name} is no folder, no run id and no experiment in MLflow; give one of them.")
    for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]):
        if PARENT_TAG not in run.data.tags and (found := _run(client, run.info.run_id)) != [run]:
            return found
    raise UsageError(f"The experiment {name} has no run with arms; make one with `moe-eval run`.")
