"""MLflow as a view of the records on disk, made again at any time."""

from __future__ import annotations

from pathlib import Path

from moe_eval.tracking.store import EXPERIMENT, Logged

__all__ = ["EXPERIMENT", "Logged", "log_run"]


def log_run(folder: Path) -> Logged:
    """Log a run's folder to the store that MLflow's variables name; what is there already is left alone.

    Raises:
        TrackingError: with the command that logs it later.
        UsageError: the folder holds no run.
    """
    from moe_eval.runner.folder import RUN
    from moe_eval.tracking import harness_run, plan_run

    return plan_run.log(folder) if (folder / RUN).is_file() else harness_run.log(folder)
