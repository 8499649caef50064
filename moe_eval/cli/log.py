"""`moe-eval log`: log recorded runs to MLflow."""

from __future__ import annotations

from dataclasses import asdict

from moe_eval import tracking
from moe_eval.cli.options.exchange import LogOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import meant
from moe_eval.errors import TrackingError, UsageError
from moe_eval.outside import words
from moe_eval.tracking import patience


def run(options: LogOptions) -> Conclusion:
    """Run the subcommand. Of a run that could not be logged there is a message, and the exit code is 2."""
    patience.begin()
    lines, runs, refusals = [], [], []
    for folder in options.folders:
        try:
            for logged in tracking.log_all(folder):
                lines.append(words.one_line(f"{folder}: {logged.describe()}"))
                runs.append({"folder": folder, **asdict(logged)})
                print(lines[-1])
        except (UsageError, TrackingError) as error:  # of one run: the others are logged all the same
            refusals.append(f"{error}{meant(folder)}")
    return Conclusion({"runs": runs}, lines, refusals, 2 if refusals else 0)
