"""`moe-eval log`: log recorded runs to MLflow."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_eval import tracking


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "log",
        help="log recorded runs to MLflow",
        description="Log the runs recorded in folders to MLflow, where they are not there yet. The store is that of "
        "MLFLOW_TRACKING_URI, or mlflow.db in the working directory; the experiment that of MLFLOW_EXPERIMENT_NAME, "
        f"or {tracking.EXPERIMENT}.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="a folder that holds record.json")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    for folder in args.folders:
        print(f"{folder}: {tracking.log_run(folder).describe()}")
