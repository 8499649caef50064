"""Where a run is in MLflow: links that open its verdict, and the table of runs with the columns that count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.frozen import frozen

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow keeps a shared view of an experiment's table in a tag with this beginning; a link names the rest of it
_VIEW_TAG, _VIEW = "mlflow.sharedViewState.", "moe_eval"
_LOCAL = "http://127.0.0.1:5000"  # what `mlflow ui` serves at
# pixels: the end of a name, which is the arm, has to be seen
_NAME_WIDTH, _FIGURE_WIDTH = 400, 160


@frozen
class Logged:
    """Where a record is in MLflow. `unreadable`: sentences on traces that are not logged."""

    store: str
    experiment: str
    run_id: str
    experiment_id: str
    unreadable: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line that says where to look."""
        base = self.store.rstrip("/") if self.store.startswith("http") else _LOCAL
        # without the type, MLflow opens an experiment on an empty page for traces of agents
        runs = f"{base}/#/experiments/{self.experiment_id}/runs"
        kind = "workflowType=machine_learning"
        links = f"{runs}/{self.run_id}?{kind}, all runs: {runs}?{kind}&viewStateShareKey={_VIEW}"
        start = "" if base != _LOCAL or self.store == _LOCAL else f"start `{self._command()}`, then "
        place = f"run {self.run_id} in experiment {self.experiment} ({start}open {links})"
        return " ".join([f"{place}.", *self.unreadable]) if self.unreadable else place

    def _command(self) -> str:
        is_default = self.store in (f"sqlite:///{Path('mlflow.db').absolute()}", "sqlite:///mlflow.db")
        return "mlflow ui" if is_default else f"mlflow ui --backend-store-uri {self.store}"


def share_view(client: MlflowClient, experiment_id: str, metrics: Sequence[str]) -> None:
    """Give the experiment the view that links name: MLflow's table shows no metric unless somebody chooses it.

    Args:
        metrics: keys of the columns.
    """
    name, verdict, figures = "attributes.`Run Name`", "tags.`moe_eval.verdict`", [f"metrics.`{key}`" for key in metrics]
    view = json.dumps(
        {
            "selectedColumns": [*figures, verdict, "attributes.`Models`", "attributes.`Dataset`"],
            "columnOrder": [name, *figures, verdict],
            "columnWidths": {name: _NAME_WIDTH, **dict.fromkeys(figures, _FIGURE_WIDTH)},
        }
    )
    if client.get_experiment(experiment_id).tags.get(_VIEW_TAG + _VIEW) != view:
        client.set_experiment_tag(experiment_id, _VIEW_TAG + _VIEW, view)
