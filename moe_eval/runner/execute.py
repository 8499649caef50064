"""Executes tasks: loads arms as they are needed, writes what each task gives, and goes on where one breaks down."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from moe_eval.data.workload import Shape
from moe_eval.evaluators.kernels import CapturedRun
from moe_eval.machine.nsys import NsysSettings
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from moe_eval.records import disk
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import Status
from moe_eval.records.quality import QualityFigures
from moe_eval.records.samples import Sample, WarmUp
from moe_eval.records.shape_latency import Routing
from moe_eval.runner.arm_process import ArmDied, ArmFailed, ArmProcess, Load
from moe_eval.runner.folder import LOG, RunFolder
from moe_eval.runner.recording import Recording
from moe_eval.runner.tasks import RECORDED_LOAD, ROUTING_LOAD, LoadResult, Task, TaskResult, TurnResult

_TAIL = 20  # lines of an arm's output that a failed task keeps


class Observer(Protocol):
    """Who hears of tasks."""

    def begun(self, task: Task) -> None:
        """Hear of a task that begins."""

    def done(self, task: Task, reason: str | None) -> None:
        """Hear of a task that has ended, with the reason where it failed."""


@dataclass(frozen=True)
class ArmConditions:
    """What tasks of one arm are done with.

    Attributes:
        loads: what is loaded, by round: load i has round i, over and over.
        uuids: of the GPUs of every round. Those of a GPU without a UUID are left out.
        routing: the options that make the engine name routed experts. `captures`: that open captures of Nsight Systems.
        experts: of a layer, to choose from. None where routing is not counted.
    """

    loads: Sequence[Load]
    uuids: Sequence[tuple[str, ...]] = ((),)
    routing: Mapping[str, object] = field(default_factory=dict)
    captures: Mapping[str, object] = field(default_factory=dict)
    experts: int | None = None

    def load(self, number: int) -> Load:
        """What is loaded as this load, with the options that it is for."""
        load = self.loads[max(0, number) % len(self.loads)]
        added = {ROUTING_LOAD: self.routing, RECORDED_LOAD: self.captures}.get(number, {})
        return replace(load, settings=replace(load.settings, options={**load.settings.options, **added}))

    def gpus(self, number: int) -> tuple[str, ...]:
        """The UUIDs of the GPUs of this load."""
        return self.uuids[max(0, number) % len(self.uuids)]


@dataclass(frozen=True)
class Conditions:
    """What tasks are done with.

    Attributes:
        arms: by name, the reference first. `timed`: those that latency tasks are of.
        nsys: how kernels are traced by Nsight Systems. None for torch's profiler.
        workload: the file of the prompts. None where nothing is timed.
        dataset, input_len, num_chunks: of quality tasks.
        iterations, warm_ups: of a latency task.
        together: how many arms stay loaded at once, 1 where each is loaded alone.
        patience: seconds that an arm may take for one task.
    """

    arms: Mapping[str, ArmConditions]
    timed: Sequence[str]
    workload: Path | None
    shapes: Sequence[Shape]
    dataset: str
    input_len: int
    num_chunks: int
    iterations: int
    warm_ups: int
    together: int
    patience: float
    nsys: NsysSettings | None = None


@dataclass(frozen=True)
class _Meters:
    """What is read of some GPUs."""

    nvml: Nvml
    sampler: Sampler


@dataclass
class _Loaded:
    """A process and what it holds.

    Attributes:
        uuids: of its GPUs.
        warmed: warm-ups by shape. `recording`: of a load under Nsight Systems.
    """

    process: ArmProcess
    load: int
    uuids: tuple[str, ...]
    recording: Recording | None = None
    result: LoadResult | None = None
    warmed: dict[Shape, WarmUp] = field(default_factory=dict)


class Executor:
    """Does tasks in order. Use it as a context manager: no process outlives it."""

    def __init__(self, folder: RunFolder, conditions: Conditions, lock: int) -> None:
        self._folder, self._conditions, self._lock = folder, conditions, lock
        self._stack = ExitStack()
        self._loaded: dict[str, _Loaded] = {}
        self._broke: dict[str, str] = {}  # why arms broke down outside of a task of theirs
        self._recording: Recording | None = None  # the load under Nsight Systems that has not been settled
        self._before: int | None = None  # memory in use before the first of the loaded arms
        self._ended: dict[Path, LoadResult] = {}  # loads of arms beside which others are loaded still
        self._meters: dict[tuple[str, ...], _Meters] = {}

    def __enter__(self) -> Executor:
        groups = [uuids for arm in self._conditions.arms.values() for uuids in arm.uuids]
        for uuids in dict.fromkeys(groups):
            nvml = self._stack.enter_context(Nvml.open(uuids))
            self._meters[uuids] = _Meters(nvml, self._stack.enter_context(Sampler(nvml)))
        every_uuid = dict.fromkeys(uuid for uuids in groups for uuid in uuids)
        self._nvml = self._stack.enter_context(Nvml.open(list(every_uuid)))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._close_all()

    def run(self, tasks: Sequence[Task], observer: Observer) -> None:
        """Do tasks.

        A task that fails is written down with its reason and the arm's last output. The arm is loaded afresh for the
        next one. An arm that cannot be loaded fails all of its tasks of that load. One that broke down in a warm-up for
        another's turn fails its own next task.
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
            if self._recording is not None and (is_last or result is not None):
                self._settle(self._recording, observer)

    def _attempt(
        self, task: Task, remaining: Sequence[Task], hopeless: dict[tuple[str, int], str]
    ) -> TaskResult | None:
        """What a task gives. None for a capture, whose report comes when its load has ended."""
        started = time.monotonic()
        reason = hopeless.get((task.arm, task.load)) or self._broke.pop(task.arm, None)
        try:
            if reason is not None:
                raise ArmFailed(reason)
            result = self._do(task, self._ready(task, remaining, hopeless))
        except ArmFailed as error:
            self._close(task.arm, self._conditions.patience if task.load == RECORDED_LOAD else None)
            return TaskResult(Status.FAILED, str(error), self._tail(task.arm))
        return result and replace(result, seconds=round(time.monotonic() - started, 3))

    def _finish(self, task: Task, result: TaskResult, observer: Observer) -> None:
        ended = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._folder.write(task, replace(result, ended=ended))
        observer.done(task, result.error)

    def _settle(self, recording: Recording, observer: Observer) -> None:
        """End a load under Nsight Systems, and read its reports."""
        self._recording = None
        self._close(recording.arm, self._conditions.patience)
        for task, result in recording.results():
            self._finish(task, result, observer)

    def _ready(self, task: Task, remaining: Sequence[Task], hopeless: dict[tuple[str, int], str]) -> _Loaded:
        """The loaded arm of a task, beside those that take turns with it.

        All arms of a load are loaded first, so that no turn of it runs on an emptier GPU than another.
        """
        captures = sum((later.arm, later.load) == (task.arm, task.load) for later in remaining)
        try:
            arm = self._arm(task, captures)
        except ArmFailed as error:
            hopeless[task.arm, task.load] = str(error)
            raise
        for turn in remaining if self._conditions.together > 1 and task.kind == "latency" else ():
            is_beside = (turn.kind, turn.shape, turn.load) == (task.kind, task.shape, task.load)
            if not is_beside or turn.arm in self._broke or (turn.arm, turn.load) in hopeless:
                continue
            try:
                self._arm(turn)
            except ArmFailed as error:
                self._close(turn.arm)
                hopeless[turn.arm, turn.load] = str(error)
        return arm

    def _arm(self, task: Task, captures: int = 0) -> _Loaded:
        """The arm's process, loaded. Others are ended first where arms do not stay together."""
        present = self._loaded.get(task.arm)
        if present is not None and present.load == task.load:
            return present
        alone = self._conditions.together == 1 or task.load < 0
        for name, loaded in [*self._loaded.items()]:
            if alone or loaded.load != task.load:
                self._close(name)
        if not self._loaded:
            self._before = self._nvml.memory()
        try:
            arm = self._loaded[task.arm] = self._started(task, captures)
            meter = self._meters[arm.uuids].nvml
            empty = meter.used_bytes()
            labels = arm.process.load()
        except ArmDied as error:
            raise ArmFailed(self._recording.why_not_loaded(str(error))) if self._recording else error from None
        if labels.engine is not None:  # it may have been given secrets
            arguments = disk.redact(labels.engine.arguments)
            labels = replace(labels, engine=replace(labels.engine, arguments=arguments))
        used = zip(empty, meter.used_bytes(), strict=True)
        taken = max((full - before for before, full in used if full and before is not None), default=None)
        arm.result = LoadResult(labels, self._before, None, 1 if alone else self._conditions.together, taken)
        disk.write_record(self._folder.load_file(task.arm, task.load), arm.result)
        return arm

    def _started(self, task: Task, captures: int) -> _Loaded:
        """The arm's process, which has not loaded it yet, with what its load is for."""
        conditions, arm = self._conditions, self._conditions.arms[task.arm]
        recording = None
        if task.load == RECORDED_LOAD and conditions.nsys is not None:
            recording = Recording(
                conditions.nsys, self._folder, task.arm, captures, conditions.shapes, conditions.patience
            )
        self._recording = recording
        process = ArmProcess(
            arm.load(task.load),
            patience=conditions.patience,
            output=self._folder.of_arm(task.arm) / LOG,
            held=[self._lock],
            launcher=recording.command if recording else (),
        )
        return _Loaded(process, task.load, arm.gpus(task.load), recording)

    def _close(self, name: str, seconds: float | None = None) -> None:
        """End an arm's process. `seconds`: that it may take, None for as long as an engine takes to close."""
        arm = self._loaded.get(name)
        if arm is None:
            return
        has_ended = arm.process.end() if seconds is None else arm.process.end(seconds)
        if arm.recording is not None:
            arm.recording.has_ended = has_ended
        del self._loaded[name]
        if arm.result is not None:
            self._ended[self._folder.load_file(name, arm.load)] = arm.result
        if not self._loaded:  # before, nobody could tell whose memory it is that is in use
            after = self._nvml.memory_freed(self._before)
            for file, result in self._ended.items():
                disk.write_record(file, replace(result, after=after))
            self._ended.clear()

    def _close_all(self) -> None:
        try:
            for name in [*self._loaded]:
                self._close(name)
        except BaseException:  # a second Ctrl-C, or a full disk: nobody waits for the others to close their engines
            for arm in self._loaded.values():
                arm.process.kill()
            raise

    def _do(self, task: Task, arm: _Loaded) -> TaskResult | None:
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

    def _reference(self, task: Task) -> str | None:
        """The scores to compare a task's with: of the first arm that was scored before it. A noise task is a repeat."""
        earlier = itertools.takewhile(lambda name: name != task.arm, self._conditions.arms)
        names = [task.arm] if task.kind == "noise" else earlier
        scored = (name for name in names if self._folder.done(Task("quality", name)))
        return next((str(self._folder.arrays(name, "quality")) for name in scored), None)

    def _turn(self, name: str, arm: _Loaded, shape: Shape) -> TurnResult:
        """One turn of an arm, after a warm-up where its process has not had one for this shape."""
        workload = str(self._conditions.workload)
        for neighbour in [name, *self._loaded]:  # those that take turns with it are warm before it begins
            self._warm_up(neighbour, name, shape)
        samples = arm.process.ask(
            "measure",
            list[Sample],
            workload=workload,
            shape=shape,
            iterations=self._conditions.iterations,
            uuids=arm.uuids,
        )
        meters = self._meters[arm.uuids]
        return TurnResult(
            samples=tuple(samples),
            warm_up=arm.warmed[shape],
            gpus=meters.sampler.summary(samples[0].started, samples[-1].ended),
            slow_samples=tuple(meters.sampler.flagged([(sample.started, sample.ended) for sample in samples])),
            nvml=meters.sampler.lost or meters.nvml.why_not,
        )

    def _warm_up(self, name: str, turn_of: str, shape: Shape) -> None:
        """Warm an arm up for a shape, once a load. A failure is the arm's own, whosever turn it is."""
        arm = self._loaded.get(name)
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
            )
        except ArmFailed as error:
            if name == turn_of:
                raise
            self._close(name)
            self._broke[name] = f"{error}, in a warm-up before {turn_of}'s turn"

    def _tail(self, arm: str) -> tuple[str, ...]:
        """The last lines that an arm has printed."""
        file = self._folder.of_arm(arm) / LOG
        if not file.is_file():
            return ()
        with file.open("rb") as text:
            text.seek(max(0, file.stat().st_size - (1 << 14)))
            lines = text.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        return tuple(line[:500] for line in lines if line.strip())[-_TAIL:]
