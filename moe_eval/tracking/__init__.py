"""MLflow as a view of the records on disk, made again at any time."""

from __future__ import annotations

from pathlib import Path

from moe_eval.tracking.link import Logged
from moe_eval.tracking.store import EXPERIMENT

__all__ = ["EXPERIMENT", "Logged", "log_all", "log_run"]


def log_run(folder: Path) -> Logged:
    """Log a folder that holds one run.

    Returns:
        The first of what log_all gives.
    """
    return log_all(folder)[0]


def log_all(folder: Path) -> list[Logged]:
    """Log every run of a folder to the store that MLflow's variables name; what is there already is left alone.

    Raises:
        TrackingError: with the command that logs it later.
        UsageError: the folder holds no run, or a record is damaged.
    """
    from moe_eval.errors import UsageError
    from moe_eval.records.harness import RECORD_FILE
    from moe_eval.records.run import RUN_FILE
    from moe_eval.records.run_files import read_run
    from moe_eval.tracking import harness_run, sensitivity_run

    logged = []
    for run in read_run(folder):
        from moe_eval.tracking import plan_run  # a run of the harness has no arms

        logged.append(plan_run.log(folder, run.command))
    if (folder / RECORD_FILE).is_file():
        logged.append(harness_run.log(folder))
    logged += map(sensitivity_run.log, sorted(folder.glob(sensitivity_run.FILES)))
    if not logged:
        raise UsageError(f"{folder} holds no {RECORD_FILE} and no {RUN_FILE}. Give the folder of a run.")
    return logged
