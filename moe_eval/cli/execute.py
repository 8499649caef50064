"""Executes what run, perf and ppl are asked for: plan, measurement, comparison, report and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import field
from pathlib import Path

from moe_eval.cli.arm_logs import followed
from moe_eval.cli.conclude import conclude, concluded, is_decided
from moe_eval.cli.options.compare import rules_of
from moe_eval.cli.options.measuring import MeasuringOptions, PerfOptions, RunOptions
from moe_eval.cli.output import Conclusion
from moe_eval.cli.paths import make_folder
from moe_eval.cli.request import gpus_of, request_of, say_what_runs
from moe_eval.comparison import gate_text, served_gate
from moe_eval.errors import EngineError, TrackingError
from moe_eval.exits import terminable
from moe_eval.frozen import frozen
from moe_eval.machine import named_gpus
from moe_eval.outside.words import lines
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.run import RunRecord
from moe_eval.report import overview, quality_table, speed_table
from moe_eval.report.console import say
from moe_eval.report.progress import NamedTask, TaskProgress
from moe_eval.report.renderable import Renderable
from moe_eval.runner import plan as planning
from moe_eval.runner import plan_text, resume
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import Command, RunRequest
from moe_eval.runner.run import Run
from moe_eval.tracking import Logged, patience, plan_run
from moe_eval.tracking.live import Live

Say = Callable[[str], None]


@frozen
class Outcome:
    """What came of a plan.

    Attributes:
        arms: measured, the reference first. Empty for a dry run, and where nothing could be measured.
        comparison: of these arms. Without arms it says what was skipped.
        page: the report. None where there is none.
        plan: what was planned.
        failures: a sentence for every task that failed.
        logged: the run in MLflow. `tracking_failure`: why it could not be logged there.
    """

    comparison: ComparisonRecord
    plan: Plan
    arms: Sequence[ArmRecords] = field(default_factory=list)
    page: Path | None = None
    failures: Sequence[str] = ()
    logged: Logged | None = None
    tracking_failure: str | None = None


def run(options: MeasuringOptions) -> Conclusion:
    """Print the plan, measure, and print the verdict.

    Raises:
        UsageError: the options ask for what cannot be.
    """
    conditions = gate_text.parse(options.gate) if options.gate is not None else ()
    plan_lines: list[str] = []

    def out(text: str) -> None:
        plan_lines.append(text)
        print(lines(text), flush=True)

    outcome = measure(options, out, conditions)
    if options.dry_run:
        return Conclusion(_planned(outcome.plan), plan_lines)
    errors: list[Exception] = []
    if outcome.failures:
        tried = f"{len(outcome.failures)} of {len(outcome.plan.tasks)} tasks failed. {options.output_dir} holds"
        errors.append(EngineError(f"{tried} the rest. The same command with --resume tries them again."))
    if outcome.tracking_failure:
        errors.append(TrackingError(outcome.tracking_failure))
    return concluded(
        outcome.comparison,
        conditions,
        page=outcome.page,
        logged=outcome.logged,
        table=_table(options, outcome),
        failures=outcome.failures,
        errors=errors,
    )


def _planned(plan: Plan) -> dict[str, object]:
    """A plan as --json shows it."""
    return {
        "evaluators": plan.evaluators,
        "skipped": plan.skipped,
        "shapes": plan.shapes,
        "schedule": plan.schedule,
        "tasks": [f"{task.arm} {task.name}" for task in plan.tasks],
    }


def _table(options: MeasuringOptions, outcome: Outcome) -> Renderable | None:
    """What perf and ppl show before the verdict: the arms that finished, of many the best. None where none has."""
    if isinstance(options, RunOptions):
        return None
    comparison = overview.leading(outcome.comparison)
    names = {arm.name for arm in comparison.arms}
    arms = [arm for arm in outcome.arms if arm.name in names]
    if isinstance(options, PerfOptions):
        timed = [arm.latency for arm in arms if arm.latency and arm.latency.status is Status.FINISHED]
        return speed_table.render(timed, comparison) if timed else None
    scored = [arm.quality for arm in arms if arm.quality and arm.quality.status is Status.FINISHED]
    return quality_table.render(scored, comparison) if scored else None


def measure(options: MeasuringOptions, out: Say, conditions: Sequence[gate_text.Condition] = ()) -> Outcome:
    """Plan, measure, compare, report and log.

    Args:
        out: is given the plan and the places in MLflow.
        conditions: of a gate, refused where they name no arm.

    Raises:
        UsageError: the options ask for what cannot be.
        KeyboardInterrupt: with a sentence that says how to go on.
    """
    patience.begin()
    request = request_of(options)
    gpus = gpus_of(request) if options.gpu is None else named_gpus.named(options.gpu)
    plan = planning.make(request, gpus, _before(request))
    say_what_runs(options)
    gate_text.check_arms(conditions, [*(arm.name for arm in plan.arms), *(entry.arm for entry in plan.skipped)])
    limits = request.serving.limits if request.serving else None
    served_gate.check(conditions, limits, [point.name for point in plan.points], is_timed=bool(plan.timed))
    run = Run(request, plan, gpus)
    if plan.arms and not options.dry_run:
        run.check()
        make_folder(request.folder)
    else:
        run.check_arms(reads_weights=False)
    out(plan_text.describe(plan, request, gpus))
    nothing = Outcome(ComparisonRecord(reference="", arms=(), pairs=(), skipped=plan.skipped), plan)
    if options.dry_run:
        return nothing
    if plan.arms:
        return _measured(run, out, options)
    print("No precision was left to run. The lines above say what each of them needs.", file=sys.stderr)
    if request.command != "run":  # perf and ppl leave a record of what is skipped
        make_folder(request.folder)
        with TaskProgress(is_quiet=options.quiet) as display:
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


def _measured(run: Run, out: Say, options: MeasuringOptions) -> Outcome:
    """Execute a run. MLflow shows that it has begun, and how it ended."""
    folder, command, rules = RunFolder(run.request.folder, run.request.command), run.request.command, rules_of(options)
    progress = _TrackedProgress(folder.path, command, out, is_quiet=options.quiet)
    try:
        with terminable(), progress, followed(folder.arms) if options.verbose else nullcontext():
            failures = run.execute(progress, lambda: is_decided(folder.path, command, rules))
        arms, comparison = conclude(folder.path, command, rules)
    except BaseException:
        if run.is_open:
            progress.log()
        if progress.logged is not None:
            out(f"MLflow: {progress.logged.describe()}")
        raise
    progress.log()
    return Outcome(
        comparison=comparison or ComparisonRecord(reference="", arms=(), pairs=(), skipped=run.plan.skipped),
        plan=run.plan,
        arms=arms,
        page=folder.page_file if comparison else None,
        failures=failures,
        logged=progress.logged,
        tracking_failure=progress.failure,
    )


class _TrackedProgress(TaskProgress):
    """Opens the run in MLflow when its tasks are known. MLflow's trouble stops no measurement."""

    def __init__(self, folder: Path, command: Command, out: Say, *, is_quiet: bool) -> None:
        super().__init__(is_quiet=is_quiet)
        self._folder, self._command, self._out = folder, command, out
        self.logged: Logged | None = None
        self._live: Live | None = None
        self.failure: str | None = None

    def ready(self, tasks: Sequence[NamedTask], seconds: Sequence[float] = (), *, may_end_early: bool = False) -> None:
        """These tasks are left."""
        try:
            logged = plan_run.open_run(self._folder, self._command)
            self._live = Live(self._folder, self._command, logged.run_id, tasks)
            self._out(f"MLflow: {logged.describe()}")
        except TrackingError as error:
            say(str(error))
        super().ready(tasks, seconds, may_end_early=may_end_early)

    def done(self, task: NamedTask, reason: str | None) -> None:
        """A task has ended."""
        super().done(task, reason)
        if self._live is not None:
            self._live.done(task, reason)

    def log(self) -> None:
        """Log the records, however the run ended."""
        try:
            self.logged = plan_run.log(self._folder, self._command)
        except TrackingError as error:
            self.failure = str(error)
