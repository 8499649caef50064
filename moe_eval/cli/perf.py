"""`moe-eval perf`: the latency and throughput of several precisions on the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType

from moe_eval.cli import perf_nsys
from moe_eval.cli.execute import execute
from moe_eval.cli.options.measuring import PerfOptions
from moe_eval.errors import UsageError
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
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
        execute(options, _table)


def _table(arms: Sequence[ArmRecords], comparison: ComparisonRecord) -> RenderableType | None:
    """The arms that finished. None where none has."""
    records = [arm.latency for arm in arms if arm.latency and arm.latency.status is Status.FINISHED]
    return speed_table.render(records, comparison) if records else None
