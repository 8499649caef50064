"""Arms in processes of their own: loaded for a task, beside others or alone, and ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from moe_eval.data.workload import Shape
from moe_eval.engines import registry
from moe_eval.frozen import frozen
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from moe_eval.records import disk
from moe_eval.records.samples import WarmUp
from moe_eval.runner.arm_process import ArmDied, ArmFailed, ArmProcess
from moe_eval.runner.conditions import Conditions
from moe_eval.runner.folder import LOG, RunFolder
from moe_eval.runner.recording import Recording
from moe_eval.runner.tasks import RECORDED_LOAD, LoadResult, Task, is_served


@frozen
class Meters:
    """What is read of some GPUs."""

    nvml: Nvml
    sampler: Sampler


@dataclass
class Loaded:
    """A process and what it holds.

    Attributes:
        uuids: of its GPUs.
        empty: bytes in use on each of its GPUs before it was loaded. `begun`: when, in seconds of time.monotonic.
        warmed: warm-ups by shape. `recording`: of a load under Nsight Systems.
        result: None until it is loaded.
    """

    process: ArmProcess
    load: int
    uuids: tuple[str, ...]
    recording: Recording | None = None
    empty: tuple[int | None, ...] = ()
    begun: float = field(default_factory=time.monotonic)
    result: LoadResult | None = None
    warmed: dict[Shape, WarmUp] = field(default_factory=dict)


class Loads:
    """Loads arms and ends them. Use it as a context manager: no process outlives it.

    Attributes:
        loaded: by the arm's name.
        recording: the load under Nsight Systems that has not been settled.
    """

    def __init__(self, folder: RunFolder, conditions: Conditions, lock: int) -> None:
        self._folder, self._conditions, self._lock = folder, conditions, lock
        self._stack = ExitStack()
        self.loaded: dict[str, Loaded] = {}
        self.recording: Recording | None = None
        self._before: int | None = None  # memory in use before the first of the loaded arms
        self._ended: dict[Path, LoadResult] = {}  # loads of arms beside which others are loaded still
        self._meters: dict[tuple[str, ...], Meters] = {}
        self._ahead: tuple[str, int, ArmProcess] | None = None  # a process of a later load, with its arm and load

    def __enter__(self) -> Loads:
        groups = [uuids for arm in self._conditions.arms.values() for uuids in arm.uuids]
        for uuids in dict.fromkeys(groups):
            nvml = self._stack.enter_context(Nvml.open(uuids))
            self._meters[uuids] = Meters(nvml, self._stack.enter_context(Sampler(nvml)))
        every_uuid = dict.fromkeys(uuid for uuids in groups for uuid in uuids)
        self._nvml = self._stack.enter_context(Nvml.open(list(every_uuid)))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._close_all()

    def meters(self, arm: Loaded) -> Meters:
        """What reads the GPUs of a loaded arm."""
        return self._meters[arm.uuids]

    def begin(self, tasks: Sequence[Task]) -> None:
        """Begin to load the arms of one load that share no GPU, so that `arm` waits for all of them at once.

        Nothing is measured while it waits. An arm that cannot even be started fails where `arm` tries again.
        """
        taken: set[str] = set()
        for task in tasks:
            uuids = {*self._conditions.arms[task.arm].gpus(task.load)}
            if uuids and not uuids & taken and not self._is_present(task):
                with suppress(ArmFailed):
                    self._begin(task)
                taken |= uuids

    def arm(self, task: Task, captures: int = 0, later: Sequence[Task] = ()) -> Loaded:
        """The arm's process, loaded. Others are ended first where arms do not stay together.

        Args:
            later: tasks, of which the next load's process imports its engine meanwhile. Nothing is measured then.
        """
        if not self._is_present(task):
            self._begin(task, captures)
        arm = self.loaded[task.arm]
        if arm.result is not None:
            return arm
        self.begin_ahead(next((task for task in later if not self._is_present(task)), None))
        try:
            labels = arm.process.load()
        except ArmDied as error:
            raise ArmFailed(self.recording.why_not_loaded(str(error))) if self.recording else error from None
        if labels.engine is not None:  # it may have been given secrets
            arguments = disk.redact(labels.engine.arguments)
            labels = replace(labels, engine=replace(labels.engine, arguments=arguments))
        used = zip(arm.empty, self._meters[arm.uuids].nvml.used_bytes(), strict=True)
        taken = max((full - before for before, full in used if full and before is not None), default=None)
        together = 1 if self._is_alone(task) else self._conditions.together
        seconds = round(time.monotonic() - arm.begun, 3)
        arm.result = LoadResult(labels, self._before, None, together, taken, seconds)
        disk.write_record(self._folder.load_file(task.arm, task.load), arm.result)
        self._await_ahead()
        return arm

    def _is_present(self, task: Task) -> bool:
        arm = self.loaded.get(task.arm)
        return arm is not None and arm.load == task.load

    def _is_alone(self, task: Task) -> bool:
        return self._conditions.together == 1 or task.load < 0

    def _begin(self, task: Task, captures: int = 0) -> None:
        """Start the arm's process and let it load, after those that may not stay beside it have ended."""
        for name, loaded in [*self.loaded.items()]:
            if self._is_alone(task) or loaded.load != task.load:
                self.close(name)
        if not self.loaded:
            self._before = self._nvml.memory()
        try:
            arm = self._started(task, captures)
        except ArmDied as error:
            raise ArmFailed(self.recording.why_not_loaded(str(error))) if self.recording else error from None
        self.loaded[task.arm] = replace(arm, empty=self._meters[arm.uuids].nvml.used_bytes())
        arm.process.begin()

    def _started(self, task: Task, captures: int) -> Loaded:
        """The arm's process, which has not loaded it yet, with what its load is for."""
        conditions, arm = self._conditions, self._conditions.arms[task.arm]
        recording = None
        if task.load == RECORDED_LOAD and conditions.nsys is not None:
            recording = Recording(
                conditions.nsys, self._folder, task.arm, captures, conditions.shapes, conditions.patience
            )
        self.recording = recording
        process = self._taken_ahead(task) or self._process(task, recording.command if recording else ())
        return Loaded(process, task.load, arm.gpus(task.load), recording)

    def _process(self, task: Task, launcher: Sequence[str] = ()) -> ArmProcess:
        return ArmProcess(
            self._conditions.arms[task.arm].load(task.load),
            patience=self._conditions.patience,
            output=self._folder.of_arm(task.arm) / LOG,
            held=[self._lock],
            launcher=launcher,
        )

    def begin_ahead(self, task: Task | None) -> None:
        """Start the process of the next load and let it import, where its engine takes long to import."""
        if task is not None and self._is_ahead(task):
            return
        self._end_ahead()  # of a load that was not tried
        if task is None or task.load == RECORDED_LOAD or is_served(task.load):
            return
        if registry.named(self._conditions.arms[task.arm].load(task.load).engine).imports_ahead:
            with suppress(ArmDied):
                self._ahead = (task.arm, task.load, self._process(task))
                self._ahead[2].begin_imports()

    def _await_ahead(self) -> None:
        """Wait until the next load's process has imported: nothing is measured beside it."""
        if self._ahead is not None:
            try:
                self._ahead[2].end_imports()
            except ArmFailed:
                self._end_ahead()

    def _is_ahead(self, task: Task) -> bool:
        return self._ahead is not None and self._ahead[:2] == (task.arm, task.load)

    def _taken_ahead(self, task: Task) -> ArmProcess | None:
        """The process of this load, if it has been started and lives."""
        self._await_ahead()
        if self._ahead is None or not self._is_ahead(task) or not self._ahead[2].is_alive:
            return None
        process, self._ahead = self._ahead[2], None
        return process

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead[2].end()
            self._ahead = None

    def close(self, name: str, seconds: float | None = None) -> None:
        """End an arm's process. `seconds`: that it may take, None for as long as an engine takes to close."""
        arm = self.loaded.get(name)
        if arm is None:
            return
        has_ended = arm.process.end() if seconds is None else arm.process.end(seconds)
        if arm.recording is not None:
            arm.recording.has_ended = has_ended
        del self.loaded[name]
        if arm.result is not None:
            self._ended[self._folder.load_file(name, arm.load)] = arm.result
        if not self.loaded:  # before, nobody could tell whose memory it is that is in use
            after = self._nvml.memory_freed(self._before)
            for file, result in self._ended.items():
                disk.write_record(file, replace(result, after=after))
            self._ended.clear()

    def _close_all(self) -> None:
        try:
            for name in [*self.loaded]:
                self.close(name)
            self._end_ahead()
        except BaseException:  # a second Ctrl-C, or a full disk: nobody waits for the others to close their engines
            for process in [*(arm.process for arm in self.loaded.values()), *(self._ahead or ())[2:]]:
                process.kill()
            raise
