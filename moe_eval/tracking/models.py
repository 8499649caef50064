"""Checkpoints as MLflow's external models: entities whose files lie elsewhere, with the metrics of the run beside."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TYPE = "checkpoint"
_FORBIDDEN = re.compile(r"""[/:.%"']""")  # in a model's name, by MLflow
_LABELS = ("checkpoint", "fingerprint", "architecture", "precision", "emulated", "quant_algo", "dtype", "weights")


def create(
    client: MlflowClient, experiment_id: str, run_id: str, name: str | None, engine: Mapping[str, object]
) -> str | None:
    """The id of a new model of a run. None without a name: nothing was loaded.

    Args:
        engine: its labels, of which those of the checkpoint become the model's parameters.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    if not name:
        return None
    model = client.create_logged_model(
        experiment_id,
        name=_FORBIDDEN.sub("_", name),
        source_run_id=run_id,
        tags={MLFLOW_MODEL_IS_EXTERNAL: "true"},
        params={label: str(engine[label]) for label in _LABELS if engine.get(label) is not None},
        model_type=_TYPE,
    )
    model_id = str(model.model_id)
    client.finalize_logged_model(model_id, "READY")
    return model_id


def link(client: MlflowClient, run_id: str, model_ids: Sequence[str]) -> None:
    """Make models the inputs of a run, so that its row names them."""
    from mlflow.entities import LoggedModelInput

    if model_ids:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id) for model_id in model_ids])


def delete_run(client: MlflowClient, experiment_id: str, run_id: str) -> None:
    """Take back a run and the models that it made."""
    for model in client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)
    client.delete_run(run_id)
