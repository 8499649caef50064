"""Executes what run, perf and ppl are asked for: plan, measurement, comparison, report and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType

from moe_eval.cli.conclude import conclude, is_decided, settle
from moe_eval.cli.options.classes import MeasuringOptions, PerfOptions, RunOptions
from moe_eval.cli.request import gpus_of, make_folder, request_of, rules_of
from moe_eval.comparison import gate, wording
from moe_eval.errors import EngineError, TrackingError
from moe_eval.exits import Ended, code, terminable
from moe_eval.machine import named_gpus
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Rules
from moe_eval.report import quality_table, speed_table
from moe_eval.report.console import NamedTask, TaskProgress, print_renderable, say
from moe_eval.runner import plan as planning
from moe_eval.runner import resume
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.request import Command, RunRequest
from moe_eval.runner.run import Run
from moe_eval.tracking import plan_run

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a plan.

    Attributes:
        arms: measured, the reference first. Empty for a dry run, and where nothing could be measured.
        comparison: of these arms. Without arms it says what was skipped.
        page: the report. None where there is none.
        tasks: how many the plan has. `failures`: a sentence for every one that failed.
        tracking_failure: why the run could not be logged to MLflow.
    """

    comparison: ComparisonRecord
    arms: Sequence[ArmRecords] = field(default_factory=list)
    page: Path | None = None
    tasks: int = 0
    failures: Sequence[str] = ()
    tracking_failure: str | None = None


def run(options: MeasuringOptions) -> None:
    """Print the plan, measure, print the verdict, and end with the command's exit code.

    Raises:
        UsageError: the options ask for what cannot be.
        Ended: with an exit code other than 0.
    """
    conditions = gate.parse(options.gate) if options.gate is not None else ()
    outcome = measure(options, lambda text: print(text, flush=True), conditions)
    if options.dry_run:
        return
    if outcome.page is not None:
        table = _table(options, outcome)
        if table is not None:
            print_renderable(table)
        print(f"{wording.summary(outcome.comparison)}\nReport: {outcome.page}")
    errors: list[Exception] = []
    if outcome.failures:
        tried = f"{len(outcome.failures)} of {outcome.tasks} tasks failed. {options.output_dir} holds the rest."
        errors.append(EngineError(f"{tried} The same command with --resume tries them again."))
    if outcome.tracking_failure:
        errors.append(TrackingError(outcome.tracking_failure))
    for error in errors:
        print(f"moe-eval: {error}", file=sys.stderr)
    if conditions:
        settle(outcome.comparison, conditions, len(outcome.failures))
    elif errors:
        raise Ended(code(errors[0]))


def _table(options: MeasuringOptions, outcome: Outcome) -> RenderableType | None:
    """What perf and ppl show before the verdict: the arms that finished. None where none has."""
    if isinstance(options, RunOptions):
        return None
    if isinstance(options, PerfOptions):
        timed = [arm.latency for arm in outcome.arms if arm.latency and arm.latency.status is Status.FINISHED]
        return speed_table.render(timed, outcome.comparison) if timed else None
    scored = [arm.quality for arm in outcome.arms if arm.quality and arm.quality.status is Status.FINISHED]
    return quality_table.render(scored, outcome.comparison) if scored else None


def measure(options: MeasuringOptions, out: Say, conditions: Sequence[gate.Condition] = ()) -> Outcome:
    """Plan, measure, compare, report and log.

    Args:
        out: is given the plan and the places in MLflow.
        conditions: of a gate, refused where they name no arm.

    Raises:
        UsageError: the options ask for what cannot be.
        KeyboardInterrupt: with a sentence that says how to go on.
    """
    request = request_of(options)
    gpus = gpus_of(request) if options.gpu is None else named_gpus.named(options.gpu)
    plan = planning.make(request, gpus, _before(request))
    gate.check_arms(conditions, [*(arm.name for arm in plan.arms), *(entry.arm for entry in plan.skipped)])
    run = Run(request, plan, gpus)
    if plan.arms and not options.dry_run:
        run.check()
        make_folder(request.folder)
    else:
        run.check_arms(reads_weights=False)
    out(planning.describe(plan, request, gpus))
    nothing = Outcome(ComparisonRecord(reference="", arms=(), pairs=(), skipped=plan.skipped))
    if options.dry_run:
        return nothing
    if plan.arms:
        return _measured(run, out, rules_of(options))
    print("No precision was left to run. The lines above say what each of them needs.", file=sys.stderr)
    if request.command != "run":  # perf and ppl leave a record of what is skipped
        make_folder(request.folder)
        with TaskProgress() as display:
            run.execute(display)
    return nothing


def _before(request: RunRequest) -> RunRecord | None:
    """The run that goes on, once its processes have ended: until then they hold memory, which a plan counts."""
    folder = RunFolder(request.folder, request.command)
    if not request.resume or not folder.exists():
        return None
    with folder.locked():
        run = folder.run()
    resume.check_options(run, request.options, request.folder)
    return run


def _measured(run: Run, out: Say, rules: Rules) -> Outcome:
    """Execute a run. MLflow shows that it has begun, and how it ended."""
    folder, command = run.request.folder, run.request.command
    progress = _TrackedProgress(folder, command, out)
    try:
        with terminable(), progress:
            failures = run.execute(progress, lambda: is_decided(folder, command, rules))
        arms, comparison = conclude(folder, command, rules)
    finally:
        progress.log()
    return Outcome(
        comparison=comparison or ComparisonRecord(reference="", arms=(), pairs=(), skipped=run.plan.skipped),
        arms=arms,
        page=RunFolder(folder, command).page_file if comparison else None,
        tasks=len(run.plan.tasks),
        failures=failures,
        tracking_failure=progress.failure,
    )


class _TrackedProgress(TaskProgress):
    """Opens the run in MLflow when its tasks are known. MLflow's trouble stops no measurement."""

    def __init__(self, folder: Path, command: Command, out: Say) -> None:
        super().__init__()
        self._folder, self._command, self._out = folder, command, out
        self._is_open = False
        self.failure: str | None = None

    def ready(self, tasks: Sequence[NamedTask]) -> None:
        """These tasks are left."""
        self._is_open = True
        try:
            self._out(f"MLflow: {plan_run.open_run(self._folder, self._command).describe()}")
        except TrackingError as error:
            say(str(error))
        super().ready(tasks)

    def log(self) -> None:
        """Log the records, however the run ended, unless it never was a run of this command's."""
        if self._is_open:
            try:
                self._out(f"MLflow: {plan_run.log(self._folder, self._command).describe()}")
            except TrackingError as error:
                self.failure = str(error)
