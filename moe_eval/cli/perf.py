"""`moe-eval perf`: the latency and throughput of several precisions on the same prompts, side by side."""

from __future__ import annotations

from moe_eval.cli import perf_nsys
from moe_eval.cli.execute import execute
from moe_eval.cli.options.measuring import PerfOptions
from moe_eval.errors import UsageError
from moe_eval.report import speed_table


def run(options: PerfOptions) -> None:
    """Run the subcommand.

    Raises:
        UsageError: options that do not go together.
    """
    if options.layerwise_nvtx and options.mode != "nsys":
        raise UsageError("--layerwise_nvtx slows every layer down. Give it with --mode nsys.")
    if options.mode == "nsys":
        perf_nsys.record(options)
    else:
        execute(options, speed_table.render)
