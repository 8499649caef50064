"""A whole run: plan, tasks and records, opened before the work and closed however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from typing import Protocol

from moe_eval import stats
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.evaluators import latency
from moe_eval.evaluators.latency_record import Context
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.rates import Rates
from moe_eval.records import disk
from moe_eval.records.labels import Origin, Status
from moe_eval.records.run import RunRecord, Sweep
from moe_eval.runner import arm_plan, estimate, machine_rates, resume, served, suites, sweep
from moe_eval.runner.execute import Executor, Observer
from moe_eval.runner.folder import RunFolder, place, say
from moe_eval.runner.plan import Plan
from moe_eval.runner.record_writer import RecordWriter
from moe_eval.runner.request import RunRequest
from moe_eval.runner.setup import Setup
from moe_eval.runner.tasks import Task

_ENDED_BEFORE = "the run ended before the machine's rates were measured"


class Progress(Observer, Protocol):
    """Who hears how a run goes on."""

    def ready(self, tasks: Sequence[Task], seconds: Sequence[float], *, may_end_early: bool) -> None:
        """Hear of the tasks that are left, once the run is on disk, and how long each may take.

        Args:
            may_end_early: the run may end before it has done them all.
        """


class Run:
    """One run in its folder.

    Attributes:
        is_open: whether the folder is this run's, and holds its record.
    """

    def __init__(self, request: RunRequest, plan: Plan, gpus: Sequence[Gpu]) -> None:
        self.request, self.plan, self.gpus = request, plan, tuple(gpus)
        self.folder = RunFolder(request.folder, request.command, place(gpus))
        self._setup = Setup(request, plan, gpus, self.folder)
        self._ended_after: int | None = None
        self._sweep: Sweep | None = None
        self._takes_turns = plan.schedule.mode == "turns"
        self.is_open = False

    @property
    def _is_sweep(self) -> bool:
        """Whether it is open how far servers are driven."""
        return self.request.serving is not None and self.request.serving.is_sweep and self._sweep is None

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is written or loaded.

        Raises:
            UsageError: with the reason. One that several arms share stands there once.
        """
        self.check_arms()
        suites.check_scores(self.plan.arms, self.plan.suites)
        if "latency" in self.request.evaluators:
            latency.refuse_profiler()
        served.check(self.request, self._setup.served)
        _ = self._setup.workload, self._setup.requests  # a text that is too short for them is refused here

    def check_arms(self, *, reads_weights: bool = True) -> None:
        """Refuse arms that their engines could not load. `reads_weights`: whether weights have to be there."""
        reasons: dict[str, str] = {}
        for arm in self.plan.arms:
            try:
                registry.check_arm(arm.engine, arm.settings, self.gpus, reads_weights=reads_weights)
            except UsageError as error:
                reasons[arm.name] = str(error)
        arm_plan.refuse(reasons, len(self.plan.arms))

    def execute(self, progress: Progress, is_decided: Callable[[], bool] = lambda: False) -> list[str]:
        """Do what is left to do and write the records, also as it goes: a kill leaves those of what was measured.

        A run that has finished stays as it is, but for records that are made again.

        Args:
            is_decided: whether the records on disk decide every pair. A run until decided asks before it loads again.

        Returns:
            A sentence for every task that failed.

        Raises:
            UsageError: the folder is in use, or holds another run.
            KeyboardInterrupt: with a sentence that says how to go on.
        """
        with self.folder.locked() as lock:
            record = self._open()
            if record.ended_after is not None:
                self.plan = self.plan.until(record.ended_after)
            if record.sweep is not None:
                self.plan = self.plan.up_to(record.sweep.most_users)
            self._sweep = record.sweep
            for sentence in self.folder.mend(self.plan.tasks):
                say(sentence)
            tasks = self.folder.missing(self.plan.tasks)
            is_settled = not tasks and record.status is Status.FINISHED
            with nullcontext() if is_settled else self._closed(record):
                return self._work(record, tasks, progress, is_decided, lock)

    def _work(
        self,
        record: RunRecord,
        tasks: Sequence[Task],
        progress: Progress,
        is_decided: Callable[[], bool],
        lock: int,
    ) -> list[str]:
        self.is_open = True
        self._setup.write()
        writer = self._writer(record, machine_rates.known(self.folder) or _ENDED_BEFORE)
        writer.write_skipped()
        observer = _Observer(progress, writer, self._waiting(tasks))
        expected = estimate.of_tasks(self.plan, self.request, self.gpus)
        may_end_early = self.plan.schedule.until_decided or self._is_sweep
        ready = partial(progress.ready, tasks, [expected[task] for task in tasks], may_end_early=may_end_early)
        try:
            if self.plan.arms:
                with Executor(self.folder, self._setup.conditions(self.plan), lock) as executor:
                    executor.prepare(tasks)
                    ready()
                    self._run(executor, tasks, observer, is_decided)
            else:
                ready()
        except BaseException:  # what was measured is told as well as it can be, without a further measurement
            self._writer(record, machine_rates.known(self.folder) or _ENDED_BEFORE).write()
            raise
        self._writer(record, self._measured_rates() if self.plan.timed else "not measured").write()
        return observer.failed

    def _run(
        self, executor: Executor, tasks: Sequence[Task], observer: _Observer, is_decided: Callable[[], bool]
    ) -> None:
        """Do tasks, in a run until decided those of another load only while a pair is open and minutes are left."""
        schedule, begun = self.plan.schedule, time.monotonic()
        fewest = min(stats.LEAST_LOADS, schedule.loads) if schedule.until_decided else schedule.loads
        is_sweep = self._is_sweep
        executor.run([task for task in tasks if task.load < fewest and not (is_sweep and task.point)], observer)
        if is_sweep:
            self._serve(executor, observer)
        for load in range(fewest, schedule.loads):
            of_load = [task for task in tasks if task.load == load]
            if of_load:
                shortened = self.plan.until(load)
                replace(observer.writer, plan=shortened).write()
                is_late = (
                    self.request.most_minutes is not None and time.monotonic() - begun > 60 * self.request.most_minutes
                )
                if is_late or is_decided():
                    self.plan, self._ended_after = shortened, load
                    return
            executor.run(of_load, observer)

    def _serve(self, executor: Executor, observer: _Observer) -> None:
        """Drive servers with ever more users, until more of them add nothing."""

        def drive(plan: Plan, tasks: Sequence[Task]) -> None:
            self.plan = plan
            observer.writer = replace(observer.writer, plan=plan)
            executor.run(self.folder.missing(tasks), observer)

        plan, self._sweep = sweep.run(self.plan, self.folder, drive)
        drive(plan, [task for task in plan.tasks if task.point])

    def _waiting(self, tasks: Sequence[Task]) -> set[Task]:
        """The turns after which another arm's turn at the same shape comes: it would wait while records are written."""
        turns = pairwise(tasks) if self._takes_turns else ()
        return {turn for turn, later in turns if turn.kind == later.kind == "latency" and turn.shape == later.shape}

    def _open(self) -> RunRecord:
        """The record of this run. It is that of the run in the folder where this goes on with it."""
        current = resume.begin(self.request, self.plan, self.gpus)
        if self.folder.exists() and self.request.resume:
            before = self.folder.run()
            resume.check(before, current, self.folder.path)
            return before
        if self.request.command != "run":
            names = [arm.name for arm in self.plan.arms] + [entry.arm for entry in self.plan.skipped]
            self.folder.set_aside({f"{self.request.command}_{name}_{self.folder.where}" for name in names})
        elif self.folder.exists():
            raise UsageError(
                f"{self.folder.path} holds a run already. Give --resume to go on with it, or another --output_dir."
            )
        return current

    @contextmanager
    def _closed(self, record: RunRecord) -> Iterator[None]:
        """Write that the run is at work, and then how it ended. What was measured is in the records in any case."""
        record = replace(record, status=Status.RUNNING, error=None, ended=None)
        disk.write_record(self.folder.run_file, record)
        try:
            yield
        except BaseException as error:
            status = Status.KILLED if isinstance(error, (KeyboardInterrupt, SystemExit)) else Status.FAILED
            sentence = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:1000]
            with suppress(OSError):  # a full disk is what ended it, perhaps
                disk.write_record(self.folder.run_file, replace(record, status=status, error=sentence))
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"Interrupted. {self.folder.path} holds what was measured, and the same command with --resume goes "
                    "on."
                ) from None
            raise
        is_complete = not self.folder.missing(self.plan.tasks)
        ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
        status = Status.FINISHED if is_complete else Status.FAILED
        reason = None if is_complete else "some tasks failed; their records say why"
        ended_after = record.ended_after or self._ended_after
        disk.write_record(
            self.folder.run_file,
            replace(record, status=status, error=reason, ended=ended, ended_after=ended_after, sweep=self._sweep),
        )

    def _measured_rates(self) -> list[Rates] | str:
        is_on_gpus = bool(self.gpus)
        return machine_rates.measured(self.plan, self.folder, self.request.timeout_s, is_on_gpus=is_on_gpus)

    def _writer(self, record: RunRecord, rates: Sequence[Rates] | str) -> RecordWriter:
        context = Context(
            origin=Origin(record.run_id, record.options, record.machine, record.versions, record.git),
            workload=self._setup.workload,
            schedule=self.plan.schedule,
            fusion_disabled=self.request.fusion_disabled,
        )
        return RecordWriter(
            self.folder, self.plan, context, self._setup.geometries, rates, self._setup.requests, self.request.serving
        )


class _Observer:
    """Hears of tasks: writes their records, keeps a sentence for every one that `failed`, and passes them on."""

    def __init__(self, progress: Progress, writer: RecordWriter, waiting: set[Task]) -> None:
        self._progress, self.writer, self._waiting = progress, writer, waiting
        self.failed: list[str] = []
        self.begun = progress.begun

    def done(self, task: Task, reason: str | None) -> None:
        if reason is not None:
            self.failed.append(f"{task.arm} {task.name}: {reason}")
        if task not in self._waiting:
            self.writer.write(task.kind)
        self._progress.done(task, reason)
