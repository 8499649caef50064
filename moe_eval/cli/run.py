"""`moe-eval run`: every arm, every evaluator, one comparison."""

from __future__ import annotations

from moe_eval.cli.execute import execute
from moe_eval.cli.options.measuring import RunOptions


def run(options: RunOptions) -> None:
    """Run the subcommand."""
    execute(options)
