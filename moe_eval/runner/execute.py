"""Executes tasks: loads arms as they are needed, writes what each task gives, and goes on where one breaks down."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Protocol

from moe_eval.data.workload import Shape
from moe_eval.evaluators.kernels import CapturedRun
from moe_eval.evaluators.load_generator import Order
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import Status
from moe_eval.records.quality import QualityFigures
from moe_eval.records.samples import Sample, WarmUp
from moe_eval.records.serving import ServedLoad
from moe_eval.records.shape_latency import Routing
from moe_eval.records.tasks import EvaluatedSuite
from moe_eval.runner.arm_process import ArmDied, ArmFailed
from moe_eval.runner.conditions import Conditions
from moe_eval.runner.folder import LOG, RunFolder
from moe_eval.runner.loads import Loaded, Loads
from moe_eval.runner.recording import Recording
from moe_eval.runner.tasks import RECORDED_LOAD, Task, TaskResult, TurnResult, served_load

_SETTLED = 2.5  # requests of a user before a server is traced
_TAIL = 20  # lines of an arm's output that a failed task keeps


class Observer(Protocol):
    """Who hears of tasks."""

    def begun(self, task: Task) -> None:
        """Hear of a task that begins."""

    def done(self, task: Task, reason: str | None) -> None:
        """Hear of a task that has ended, with the reason where it failed."""


class Executor:
    """Does tasks in order. Use it as a context manager: no process outlives it."""

    def __init__(self, folder: RunFolder, conditions: Conditions, lock: int) -> None:
        self._folder, self._conditions = folder, conditions
        self._loads = Loads(folder, conditions, lock)
        self._broke: dict[str, ArmFailed] = {}  # why arms broke down outside of a task of theirs

    def __enter__(self) -> Executor:
        self._loads.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._loads.__exit__(*error)

    def prepare(self, tasks: Sequence[Task]) -> None:
        """Let the process of the first load begin to import its engine. Arms that load together begin together."""
        if self._conditions.together == 1:
            self._loads.begin_ahead(next(iter(tasks), None))

    def run(self, tasks: Sequence[Task], observer: Observer) -> None:
        """Do tasks.

        A task that fails is written down with its reason and the arm's last output. The arm is loaded afresh for the
        next one. An arm that cannot be loaded, or whose process dies or hangs, fails all of its tasks of that load. One
        that broke down in a warm-up for another's turn fails its own next task. Loads for routing or under Nsight
        Systems are not tried where the first load failed so.
        """
        hopeless: dict[tuple[str, int], str] = {}
        for index, task in enumerate(tasks):
            observer.begun(task)
            result = self._attempt(task, tasks[index:], hopeless)
            if result is not None:
                self._finish(task, result, observer)
            is_last = all(
                (following.arm, following.load) != (task.arm, task.load) for following in tasks[index + 1 : index + 2]
            )
            if self._loads.recording is not None and (is_last or result is not None):
                self._settle(self._loads.recording, observer)

    def _attempt(
        self, task: Task, remaining: Sequence[Task], hopeless: dict[tuple[str, int], str]
    ) -> TaskResult | None:
        """What a task gives. None for a capture, whose report comes when its load has ended."""
        started = time.monotonic()
        broke = self._broke.pop(task.arm, None)
        try:
            for load in (task.load, *(() if task.point else (max(0, task.load),))):
                if (reason := hopeless.get((task.arm, load))) is not None:
                    raise ArmFailed(reason)
            if broke is not None:
                raise broke
            arm = self._ready(task, remaining, hopeless)
            if task.point is None:
                result = self._do(task, arm)
            else:
                result = self._traced(task, arm) if task.kind == "kernels" else self._served(task, arm)
        except ArmFailed as error:
            if isinstance(error, ArmDied):
                hopeless[task.arm, task.load] = str(error)
            self._loads.close(task.arm, self._conditions.patience if task.load == RECORDED_LOAD else None)
            return TaskResult(Status.FAILED, str(error), self._tail(task.arm))
        return result and replace(result, seconds=round(time.monotonic() - started, 3))

    def _finish(self, task: Task, result: TaskResult, observer: Observer) -> None:
        ended = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._folder.write(task, replace(result, ended=ended))
        observer.done(task, result.error)

    def _settle(self, recording: Recording, observer: Observer) -> None:
        """End a load under Nsight Systems, and read its reports."""
        self._loads.recording = None
        self._loads.close(recording.arm, self._conditions.patience)
        for task, result in recording.results():
            self._finish(task, result, observer)

    def _ready(self, task: Task, remaining: Sequence[Task], hopeless: dict[tuple[str, int], str]) -> Loaded:
        """The loaded arm of a task, beside those that take turns with it.

        All arms of a load are loaded first, so that no turn of it runs on an emptier GPU than another.
        """
        captures = sum((later.arm, later.load) == (task.arm, task.load) for later in remaining)
        beside = [turn for turn in self._turns(task, remaining) if (turn.arm, turn.load) not in hopeless]
        if beside:
            self._loads.begin([task, *beside])
        try:
            arm = self._loads.arm(task, captures, remaining)
        except ArmFailed as error:
            hopeless[task.arm, task.load] = str(error)
            raise
        for turn in beside:
            if (turn.arm, turn.load) in hopeless:
                continue
            try:
                self._loads.arm(turn)
            except ArmFailed as error:
                self._loads.close(turn.arm)
                hopeless[turn.arm, turn.load] = str(error)
        return arm

    def _turns(self, task: Task, remaining: Sequence[Task]) -> Iterator[Task]:
        """The later tasks of other arms that take turns with a task."""
        if self._conditions.together > 1 and task.kind == "latency":
            for turn in remaining:
                is_beside = (turn.kind, turn.shape, turn.load) == (task.kind, task.shape, task.load)
                if is_beside and turn.arm != task.arm and turn.arm not in self._broke:
                    yield turn

    def _do(self, task: Task, arm: Loaded) -> TaskResult | None:
        conditions, ask = self._conditions, arm.process.ask
        if task.kind in ("quality", "noise"):
            figures = ask(
                "quality",
                QualityFigures,
                arrays=str(self._folder.arrays(task.arm, task.kind)),
                dataset=conditions.dataset,
                input_len=conditions.input_len,
                num_chunks=conditions.num_chunks,
                alone=task.kind == "noise",
                reference=self._reference(task),
            )
            return TaskResult(Status.FINISHED, quality=figures)
        if task.suite is not None:
            evaluated = ask(
                "tasks",
                EvaluatedSuite,
                folder=str(self._folder.harness_results(task.arm)),
                answers=str(self._folder.answers(task)),
                spec=conditions.suites[task.suite],
                options=conditions.tasks,
                repeat=task.repeat,
                window=conditions.window,
            )
            return TaskResult(Status.FINISHED, tasks=evaluated)
        workload = str(conditions.workload)
        if task.kind == "routing":
            routing = ask(
                "routing",
                dict[int, Routing],
                workload=workload,
                shape=max(conditions.shapes, key=lambda shape: shape.batch_size),
                experts=conditions.arms[task.arm].experts,
                batch_sizes=sorted({shape.batch_size for shape in conditions.shapes}),
            )
            return TaskResult(Status.FINISHED, routing=routing)
        assert task.shape is not None
        if task.kind == "latency":
            return TaskResult(Status.FINISHED, latency=self._turn(task.arm, arm, task.shape))
        if arm.recording is not None:
            arm.recording.begun += 1
            arm.recording.runs[task] = ask("capture", CapturedRun, workload=workload, shape=task.shape)
            return None
        folder, name = str(self._folder.of_arm(task.arm)), f"trace_{task.shape.name}"
        record = ask("kernels", KernelsRecord, workload=workload, shape=task.shape, folder=folder, name=name)
        return TaskResult(Status.FINISHED, kernels=record)

    def _served(self, task: Task, arm: Loaded) -> TaskResult:
        """One point of an arm's server."""
        folder = self._folder.generated(task)
        load = arm.process.ask("serving", ServedLoad, order=self._order(task), folder=str(folder))
        gpus = self._loads.meters(arm).sampler.summary(load.started, load.ended)
        load = replace(load, gpus=gpus, folder=str(folder.relative_to(self._folder.path)))
        return TaskResult(Status.FINISHED, serving=load)

    def _order(self, task: Task) -> Order:
        """How a server is driven at the point of a task."""
        serving = self._conditions.serving
        assert serving is not None
        assert task.point is not None
        point = task.point
        count = point.requests(serving.minimum)
        return Order(str(serving.requests), point, count, point.warm_up, serving.tokenizer)

    def _traced(self, task: Task, arm: Loaded) -> TaskResult:
        """A trace of an arm's server, once users are out of step: after the time of some requests."""
        measured = self._folder.result(Task("serving", task.arm, served_load(0), point=task.point))
        if measured is None or measured.serving is None:
            raise ArmFailed("its server was not measured at this load, so it is not traced")
        settle_s = _SETTLED * statistics.median(measured.serving.times.e2e_ms) / 1000
        record = arm.process.ask(
            "serving_trace",
            KernelsRecord,
            order=self._order(task),
            folder=str(self._folder.generated(task)),
            settle_s=settle_s,
            trace_folder=str(self._folder.of_arm(task.arm)),
            name=f"trace_{task.name}",
        )
        return TaskResult(Status.FINISHED, kernels=record)

    def _reference(self, task: Task) -> str | None:
        """The scores to compare a task's with: of the first arm that was scored before it. A noise task is a repeat."""
        earlier = itertools.takewhile(lambda name: name != task.arm, self._conditions.arms)
        names = [task.arm] if task.kind == "noise" else earlier
        scored = (name for name in names if self._folder.done(Task("quality", name)))
        return next((str(self._folder.arrays(name, "quality")) for name in scored), None)

    def _turn(self, name: str, arm: Loaded, shape: Shape) -> TurnResult:
        """One turn of an arm, after a warm-up where its process has not had one for this shape."""
        workload = str(self._conditions.workload)
        for neighbour in [name, *self._loads.loaded]:  # those that take turns with it are warm before it begins
            self._warm_up(neighbour, name, shape)
        samples = arm.process.ask(
            "measure",
            list[Sample],
            workload=workload,
            shape=shape,
            iterations=self._conditions.iterations,
            uuids=arm.uuids,
        )
        meters = self._loads.meters(arm)
        return TurnResult(
            samples=tuple(samples),
            warm_up=arm.warmed[shape],
            gpus=meters.sampler.summary(samples[0].started, samples[-1].ended),
            slow_samples=tuple(meters.sampler.flagged([(sample.started, sample.ended) for sample in samples])),
            nvml=meters.sampler.lost or meters.nvml.why_not,
        )

    def _warm_up(self, name: str, turn_of: str, shape: Shape) -> None:
        """Warm an arm up for a shape, once a load. A failure is the arm's own, whosever turn it is."""
        arm = self._loads.loaded.get(name)
        if arm is None or name not in self._conditions.timed or shape in arm.warmed:
            return
        try:
            arm.warmed[shape] = arm.process.ask(
                "warm_up",
                WarmUp,
                workload=str(self._conditions.workload),
                shape=shape,
                minimum=self._conditions.warm_ups,
                uuids=arm.uuids,
                worked=self._worked(arm),
            )
        except ArmFailed as error:
            if name == turn_of:
                raise
            self._loads.close(name)
            self._broke[name] = type(error)(f"{error}, in a warm-up before {turn_of}'s turn")

    def _worked(self, arm: Loaded) -> float:
        """Seconds for which a load's GPUs have worked without a pause. Where arms take turns, they have pauses."""
        warm_ups = arm.warmed.values() if self._conditions.together == 1 else ()
        return sum(sum(warm_up.seconds) for warm_up in warm_ups)

    def _tail(self, arm: str) -> tuple[str, ...]:
        """The last lines that an arm has printed."""
        file = self._folder.of_arm(arm) / LOG
        if not file.is_file():
            return ()
        with file.open("rb") as text:
            text.seek(max(0, file.stat().st_size - (1 << 14)))
            lines = text.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        return tuple(line[:500] for line in lines if line.strip())[-_TAIL:]
