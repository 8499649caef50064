"""Executes steps: loads arms as they are needed, writes what each step found, and goes on where one breaks down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_eval.data.workload import Shape
from moe_eval.machine import gpu_memory
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from moe_eval.records import disk
from moe_eval.runner.arm_process import ArmFailed, ArmProcess, Load
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.steps import ROUTING_LOAD, Step

LOG = "log.txt"
_TAIL = 20  # lines of an arm's output that a failed step keeps


@dataclass(frozen=True)
class How:
    """What steps are done with.

    Attributes:
        loads: of every arm by name. `timed`: those that latency steps are of.
        routing: the options that make the engine tell routed experts.
        experts: of a layer, to choose from; None where routing is not counted.
        workload: the file of the prompts; None where nothing is timed.
        quality: arguments of tasks.perplexity beside `arrays`.
        iterations, warm_ups: of a latency step.
        together: whether all arms stay loaded at once.
        patience: seconds that an arm may take for one step.
        uuids: of the GPUs that arms run on.
    """

    loads: Mapping[str, Load]
    timed: Sequence[str]
    routing: Mapping[str, Any]
    experts: int | None
    workload: Path | None
    batch_sizes: Sequence[int]
    shapes: Sequence[Shape]
    quality: Mapping[str, Any]
    iterations: int
    warm_ups: int
    together: bool
    patience: float
    uuids: Sequence[str]


class Executor:
    """Does steps in order. Use it as a context manager: no process outlives it."""

    def __init__(self, folder: RunFolder, how: How, lock: int) -> None:
        self._folder, self._how, self._lock = folder, how, lock
        self._stack = ExitStack()
        self._loaded: dict[str, _Loaded] = {}
        self._broke: dict[str, str] = {}  # why arms broke down outside of a step of theirs

    def __enter__(self) -> Executor:
        self._nvml = self._stack.enter_context(Nvml.open(self._how.uuids))
        self._sampler = self._stack.enter_context(Sampler(self._nvml))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._close_all()

    def run(
        self, steps: Sequence[Step], begun: Callable[[Step], None], done: Callable[[Step, str | None], None]
    ) -> None:
        """Do steps.

        A step that fails is written down with its reason and the arm's last output; the arm is loaded afresh for the
        next one. One that cannot be loaded fails all of its steps of that load, and one that broke down in a warm-up
        for another's turn fails its own next step.

        Args:
            begun: told every step before it begins; `done` after it ended, with the reason where it failed.
        """
        hopeless: dict[tuple[str, int], str] = {}
        for at, step in enumerate(steps):
            begun(step)
            reason = hopeless.get((step.arm, step.load)) or self._broke.pop(step.arm, None)
            started = time.monotonic()
            try:
                if reason is not None:
                    raise ArmFailed(reason)
                try:
                    arm = self._arm(step)
                except ArmFailed as error:
                    hopeless[step.arm, step.load] = str(error)
                    raise
                if self._how.together and step.kind == "latency":
                    self._gather([each for each in steps[at:] if each.kind == "latency"], hopeless)
                result = self._do(step, arm)
            except ArmFailed as error:
                self._close(step.arm)
                reason = str(error)
                self._folder.write(step, {"status": "failed", "error": reason, "output": self._tail(step.arm)})
            else:
                seconds = round(time.monotonic() - started, 3)
                self._folder.write(step, {"status": "finished", "seconds": seconds, "result": result})
            done(step, reason)

    def _gather(self, steps: Sequence[Step], hopeless: dict[tuple[str, int], str]) -> None:
        """Load all arms of the first step's block, so that no turn of it runs on an emptier GPU than another."""
        for step in steps:
            of_block = (step.shape, step.block) == (steps[0].shape, steps[0].block)
            if not of_block or step.arm in self._broke or (step.arm, step.load) in hopeless:
                continue
            try:
                self._arm(step)
            except ArmFailed as error:
                self._close(step.arm)
                hopeless[step.arm, step.load] = str(error)

    def _arm(self, step: Step) -> _Loaded:
        """The arm's process, loaded; others are ended first where arms do not stay together."""
        found = self._loaded.get(step.arm)
        if found is not None and found.load == step.load:
            return found
        alone = not self._how.together or step.load == ROUTING_LOAD
        for name in [*self._loaded] if alone else [step.arm] if found else []:
            self._close(name)
        before = gpu_memory.used(self._nvml)
        load = self._how.loads[step.arm]
        if step.load == ROUTING_LOAD:
            settings = load.settings
            load = replace(load, settings=replace(settings, options={**settings.options, **self._how.routing}))
        log = self._folder.of_arm(step.arm) / LOG
        process = ArmProcess(load, patience=self._how.patience, output=log, held=[self._lock])
        made = _Loaded(process, step.load, before)
        self._loaded[step.arm] = made
        labels = process.load()
        content = {"labels": disk.redact(labels), "before": before, "after": None}
        disk.write_json(self._folder.load_file(step.arm, step.load), content)
        made.content = content
        return made

    def _close(self, name: str) -> None:
        arm = self._loaded.get(name)
        if arm is None:
            return
        arm.process.end()
        del self._loaded[name]
        if arm.content is not None:
            # what other arms hold is not this one's to give back
            after = gpu_memory.freed(self._nvml, arm.before) if not self._loaded else None
            disk.write_json(self._folder.load_file(name, arm.load), {**arm.content, "after": after})

    def _close_all(self) -> None:
        try:
            for name in [*self._loaded]:
                self._close(name)
        except BaseException:  # a second Ctrl-C, or a full disk: nobody waits for the others to close their engines
            for arm in self._loaded.values():
                arm.process.kill()
            raise

    def _do(self, step: Step, arm: _Loaded) -> dict[str, Any]:
        how, folder = self._how, self._folder.of_arm(step.arm)
        if step.kind in ("perplexity", "noise"):
            arrays = str(self._folder.arrays(step.arm, step.kind))
            return arm.process.ask("perplexity", arrays=arrays, alone=step.kind == "noise", **how.quality)
        if step.kind == "routing":
            largest = max(how.shapes, key=lambda shape: shape.batch_size)
            sizes = list(how.batch_sizes)
            asked = {"workload": str(how.workload), "shape": asdict(largest)}
            return arm.process.ask("routing", **asked, experts=how.experts, batch_sizes=sizes)
        assert step.shape is not None
        timed: dict[str, Any] = {"workload": str(how.workload), "shape": asdict(step.shape)}
        if step.kind == "kernels":
            return arm.process.ask("kernels", **timed, folder=str(folder), name=f"trace_{step.shape.name}")
        return self._time(step, arm, timed)

    def _time(self, step: Step, arm: _Loaded, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One turn of an arm, after a warm-up where its process has not had one for this shape."""
        assert step.shape is not None
        for name in [step.arm, *self._loaded]:  # those that take turns with it are warm before it begins
            other = self._loaded.get(name)
            if other is None or name not in self._how.timed or step.shape in other.warmed:
                continue
            try:
                other.warmed[step.shape] = other.process.ask("warm_up", **asked, least=self._how.warm_ups)
            except ArmFailed as error:
                if other is arm:
                    raise
                self._close(name)
                self._broke[name] = f"{error}, in a warm-up before {step.arm}'s turn"
        uuids = list(self._how.uuids)
        found = arm.process.ask("measure", **asked, iterations=self._how.iterations, uuids=uuids)
        samples = found["samples"]
        seen = self._sampler.summary(samples[0]["started"], samples[-1]["ended"])
        return {
            "samples": samples,
            "warm_up": arm.warmed[step.shape],
            "gpus": [asdict(each) for each in seen],
            "slow_samples": self._sampler.flagged([(each["started"], each["ended"]) for each in samples]),
            "nvml": self._sampler.lost or self._nvml.why_not,
        }

    def _tail(self, arm: str) -> list[str]:
        """The last lines that an arm has printed."""
        file = self._folder.of_arm(arm) / LOG
        if not file.is_file():
            return []
        with file.open("rb") as text:
            text.seek(max(0, file.stat().st_size - (1 << 14)))
            lines = text.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        return [line[:500] for line in lines if line.strip()][-_TAIL:]


@dataclass
class _Loaded:
    """A process and what it holds. `warmed`: warm-ups by shape."""

    process: ArmProcess
    load: int
    before: int | None
    content: dict[str, Any] | None = None
    warmed: dict[Shape, dict[str, Any]] = field(default_factory=dict)
