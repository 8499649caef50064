"""A whole run: plan, tasks and records, opened before the work and closed however it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import msgspec

from moe_eval.checkpoint import contents, geometry
from moe_eval.data import prompts
from moe_eval.data.workload import Workload
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.evaluators.latency_record import Context
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.rates import Rates
from moe_eval.records import disk
from moe_eval.records.labels import Origin, Status
from moe_eval.records.run import RunRecord
from moe_eval.runner import fit, limits, resume
from moe_eval.runner.arm_process import ArmFailed, ArmProcess, Load
from moe_eval.runner.execute import Conditions, Executor
from moe_eval.runner.folder import RunFolder, place, say
from moe_eval.runner.plan import Plan
from moe_eval.runner.record_writer import RecordWriter
from moe_eval.runner.request import RunRequest
from moe_eval.runner.tasks import Task

_ENDED_BEFORE = "the run ended before the machine's rates were measured"


class Progress(Protocol):
    """Who hears how a run goes on."""

    def ready(self, tasks: Sequence[Task]) -> None:
        """Hear of the tasks that are left, once the run is on disk."""

    def begun(self, task: Task) -> None:
        """Hear of a task that begins."""

    def done(self, task: Task, reason: str | None) -> None:
        """Hear of a task that has ended, with the reason where it failed."""


class Run:
    """One run in its folder."""

    def __init__(self, request: RunRequest, plan: Plan, gpus: Sequence[Gpu]) -> None:
        self.request, self.plan, self.gpus = request, plan, tuple(gpus)
        self.folder = RunFolder(request.folder, request.command, place(gpus))

    def execute(self, progress: Progress) -> list[str]:
        """Do what is left to do and write the records, also as it goes: a kill leaves those of what was measured.

        A run that has finished stays as it is, but for records that are made again.

        Returns:
            A sentence for every task that failed.

        Raises:
            UsageError: the folder is in use, or holds another run.
            KeyboardInterrupt: with a sentence that says how to go on.
        """
        with self.folder.locked() as lock:
            record = self._open()
            for sentence in self.folder.mend(self.plan.tasks):
                say(sentence)
            tasks = self.folder.missing(self.plan.tasks)
            is_settled = not tasks and record.status is Status.FINISHED
            with nullcontext() if is_settled else self._closed(record):
                return self._work(record, tasks, progress, lock)

    def _work(self, record: RunRecord, tasks: Sequence[Task], progress: Progress, lock: int) -> list[str]:
        workload = self._workload()
        context = self._context(record, workload)
        writer = self._writer(context, self._known_rates() or _ENDED_BEFORE)
        writer.write_skipped()
        observer = _Observer(progress, writer, self._waiting(tasks))
        progress.ready(tasks)
        try:
            if self.plan.arms:
                with Executor(self.folder, self._conditions(workload), lock) as executor:
                    executor.run(tasks, observer)
        except BaseException:  # what was measured is told as well as it can be, without a further measurement
            self._writer(context, self._known_rates() or _ENDED_BEFORE).write()
            raise
        self._writer(context, self._rates() if self.plan.timed else "not measured").write()
        return observer.failed

    def _waiting(self, tasks: Sequence[Task]) -> set[Task]:
        """The turns after which another arm's turn at the same shape comes: it would wait while records are written."""
        if self.plan.schedule.mode != "interleaved":
            return set()
        return {
            task
            for task, following in pairwise(tasks)
            if task.kind == following.kind == "latency" and task.shape == following.shape
        }

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
        disk.write_record(self.folder.run_file, replace(record, status=status, error=reason, ended=ended))

    def _loads(self) -> dict[str, Load]:
        engine, tokenizer = self.request.arms.engine, self.request.tokenizer
        return {arm.name: Load(engine, arm.settings, tokenizer or arm.settings.checkpoint) for arm in self.plan.arms}

    def _workload(self) -> Workload | None:
        """The prompts, frozen beside the plan."""
        timed = [arm for arm in self.plan.arms if {"latency", "kernels"} & set(self.plan.evaluators[arm.name])]
        settings = [arm.settings for arm in timed]
        if not settings:
            return None
        tokenizer = self.request.tokenizer or settings[0].checkpoint
        workload = prompts.of_arms(self.request.dataset, self.request.seed, self.plan.shapes, settings, tokenizer)
        disk.write_json(self._frozen(workload), workload.to_json())
        return workload

    def _frozen(self, workload: Workload) -> Path:
        return self.folder.path / f"workload_{workload.digest}.json"

    def _geometry(self) -> geometry.Geometry | None:
        if not self.plan.arms:
            return None
        return geometry.read(contents.read_config(limits.folder(self.plan.arms[0])))

    def _conditions(self, workload: Workload | None) -> Conditions:
        request, sizes = self.request, self._geometry()
        interleaved = self.plan.schedule.mode == "interleaved"
        gpus = self.gpus[: fit.gpu_count(self.plan.arms[0].settings.options)]
        return Conditions(
            loads=self._loads(),
            timed=self.plan.timed,
            routing=registry.named(request.arms.engine).routing or {},
            experts=sizes.experts if sizes else None,
            workload=self._frozen(workload) if workload else None,
            shapes=self.plan.shapes,
            dataset=request.dataset,
            input_len=request.input_len,
            num_chunks=request.num_chunks,
            iterations=1 if interleaved else self.plan.schedule.per_block,
            warm_ups=request.warm_ups,
            together=len(self.plan.arms) if interleaved else 1,
            patience=request.timeout_s,
            uuids=[gpu.uuid for gpu in gpus if gpu.uuid],
        )

    def _context(self, record: RunRecord, workload: Workload | None) -> Context:
        return Context(
            origin=Origin(record.run_id, record.options, record.machine, record.versions, record.git),
            workload=workload,
            schedule=self.plan.schedule,
            fusion_disabled=self.request.fusion_disabled,
            geometry=self._geometry(),
        )

    def _writer(self, context: Context, rates: Rates | str) -> RecordWriter:
        kind = registry.named(self.request.arms.engine)
        no_routing = "not measured: the number of experts of this architecture is not known"
        if kind.routing is None:
            no_routing = f"not measured: {kind.title} does not tell which experts tokens go through"
        if isinstance(rates, Rates):
            return RecordWriter(self.folder, self.plan, replace(context, rates=rates), no_routing)
        return RecordWriter(self.folder, self.plan, replace(context, no_rates=rates), no_routing)

    def _known_rates(self) -> Rates | None:
        """What the machine can do at most, where this run has measured it."""
        try:
            return msgspec.json.decode(self.folder.rates_file.read_bytes(), type=Rates)
        except (OSError, ValueError):  # a damaged file is measured again
            return None

    def _rates(self) -> Rates | str:
        """What the machine can do at most, measured once a run."""
        known_rates = self._known_rates()
        if known_rates is not None:
            return known_rates
        device = self.plan.arms[0].settings.device or ("cuda" if self.gpus else "cpu")
        with ArmProcess(None, patience=self.request.timeout_s) as process:
            try:
                rates = process.ask("rates", Rates, device=device)
            except ArmFailed as error:
                return f"the machine's rates were not measured ({error})"
        disk.write_record(self.folder.rates_file, rates)
        return rates


class _Observer:
    """Hears of tasks: writes their records, and passes them on.

    Attributes:
        failed: a sentence for every task that failed.
    """

    def __init__(self, progress: Progress, writer: RecordWriter, waiting: set[Task]) -> None:
        self._progress, self._writer, self._waiting = progress, writer, waiting
        self.failed: list[str] = []

    def begun(self, task: Task) -> None:
        self._progress.begun(task)

    def done(self, task: Task, reason: str | None) -> None:
        if reason is not None:
            self.failed.append(f"{task.arm} {task.name}: {reason}")
        if task not in self._waiting:
            self._writer.write(task.kind)
        self._progress.done(task, reason)
