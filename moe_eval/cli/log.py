"""`moe-eval log`: log recorded runs to MLflow."""

from __future__ import annotations

import argparse
from pathlib import Path

from moe_eval import tracking
from moe_eval.errors import TrackingError, UsageError

_FOLDER = "the folder of a run of lm_eval (it holds record.json), or of moe-eval run, perf or ppl"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "log",
        help="log recorded runs to MLflow",
        description="Log the runs recorded in folders to MLflow, where they are not there yet. The store is that of "
        "MLFLOW_TRACKING_URI, or mlflow.db in the working directory; the experiment that of MLFLOW_EXPERIMENT_NAME, "
        f"or {tracking.EXPERIMENT}.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help=_FOLDER)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    refused = []
    for folder in args.folders:
        try:
            for logged in tracking.log_all(folder):
                print(f"{folder}: {logged.describe()}")
        except (UsageError, TrackingError) as error:  # of one run: the others are logged all the same
            refused.append(str(error))
    if refused:
        raise UsageError(" ".join(refused))
