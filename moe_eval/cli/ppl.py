"""`moe-eval ppl`: the quality of several precisions over the same windows, side by side."""

from __future__ import annotations

from moe_eval.cli.execute import execute
from moe_eval.cli.options.measuring import PplOptions
from moe_eval.report import quality_table


def run(options: PplOptions) -> None:
    """Run the subcommand."""
    execute(options, quality_table.render)
