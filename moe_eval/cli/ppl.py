"""`moe-eval ppl`: the quality of several precisions over the same windows, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType

from moe_eval.cli.execute import execute
from moe_eval.cli.options.measuring import PplOptions
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.report import quality_table


def run(options: PplOptions) -> None:
    """Run the subcommand."""
    execute(options, _table)


def _table(arms: Sequence[ArmRecords], comparison: ComparisonRecord) -> RenderableType | None:
    """The arms that finished. None where none has."""
    records = [arm.quality for arm in arms if arm.quality and arm.quality.status is Status.FINISHED]
    return quality_table.render(records, comparison) if records else None
