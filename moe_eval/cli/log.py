"""`moe-eval log`: log recorded runs to MLflow."""

from __future__ import annotations

from moe_eval import tracking
from moe_eval.cli.options.classes import LogOptions
from moe_eval.errors import TrackingError, UsageError


def run(options: LogOptions) -> None:
    """Run the subcommand.

    Raises:
        UsageError: with a sentence for every run that could not be logged.
    """
    refusals = []
    for folder in options.folders:
        try:
            for logged in tracking.log_all(folder):
                print(f"{folder}: {logged.describe()}")
        except (UsageError, TrackingError) as error:  # of one run: the others are logged all the same
            refusals.append(str(error))
    if refusals:
        raise UsageError(" ".join(refusals))
