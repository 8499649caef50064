"""Executes what run, perf and ppl are asked for: plan, measurement, comparison, report and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType

from moe_eval.cli import gated
from moe_eval.cli.conclude import conclude
from moe_eval.cli.options.measuring import MeasuringOptions
from moe_eval.cli.request import gpus_of, make_folder, request_of
from moe_eval.comparison import gate, wording
from moe_eval.errors import EngineError, TrackingError
from moe_eval.evaluators import latency
from moe_eval.exits import Ended, code, terminable
from moe_eval.machine.hardware import Gpu
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import CommandName, RunRecord
from moe_eval.report.console import TaskProgress, print_renderable, say
from moe_eval.runner import opened
from moe_eval.runner import plan as planning
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import RunRequest
from moe_eval.runner.run import Run
from moe_eval.runner.tasks import Task
from moe_eval.tracking import plan_run

Table = Callable[[Sequence[ArmRecords], ComparisonRecord], Sequence[RenderableType]]


@dataclass(frozen=True)
class Outcome:
    """What came of a plan.

    Attributes:
        arms: measured, the reference first.
        comparison: None for a dry run, and where nothing could be measured.
        tasks: of the plan. `failures`: a sentence for every task that failed.
        tracking_failure: why the run could not be logged to MLflow.
    """

    folder: Path
    arms: list[ArmRecords] = field(default_factory=list)
    comparison: ComparisonRecord | None = None
    tasks: int = 0
    failures: tuple[str, ...] = ()
    tracking_failure: str | None = None


def execute(options: MeasuringOptions, table: Table | None = None) -> None:
    """Run a command: print the plan, measure, print the verdict, and end with the command's exit code.

    Args:
        table: what the command shows before the verdict.

    Raises:
        UsageError: the options ask for what cannot be.
        Ended: with an exit code other than 0.
    """
    conditions = gate.parse(options.gate) if options.gate is not None else ()
    outcome = measure(options, lambda text: print(text, flush=True))
    if options.dry_run:
        return
    if outcome.comparison is not None and outcome.arms:
        _show(outcome, options, table)
    errors: list[Exception] = []
    if outcome.failures:
        errors.append(EngineError(_failed(outcome)))
    if outcome.tracking_failure:
        errors.append(TrackingError(outcome.tracking_failure))
    for error in errors:
        print(f"moe-eval: {error}", file=sys.stderr)
    if conditions:
        gated.settle(outcome.comparison or gated.NOTHING, conditions, len(outcome.failures))
    elif errors:
        raise Ended(code(errors[0]))


def _show(outcome: Outcome, options: MeasuringOptions, table: Table | None) -> None:
    assert outcome.comparison is not None
    for renderable in table(outcome.arms, outcome.comparison) if table else ():
        print_renderable(renderable)
    print(wording.summary(outcome.comparison))
    print(f"Report: {RunFolder(outcome.folder, request_command(options)).page_file}")


def _failed(outcome: Outcome) -> str:
    return (
        f"{len(outcome.failures)} of {outcome.tasks} tasks failed. {outcome.folder} holds the rest. The same command "
        "with --resume tries them again."
    )
