"""Measures several arms side by side, so that what drifts over a run moves all of them alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from moe_eval.data.workload import Shape, Workload
from moe_eval.evaluators.latency import Sample
from moe_eval.machine import gpu_memory
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from moe_eval.runner.arm_process import ArmFailed, ArmProcess, Load

Mode = Literal["interleaved", "reloaded", "sequential"]


@dataclass(frozen=True)
class Schedule:
    """In which order iterations run.

    Attributes:
        mode: `interleaved`: all arms are loaded at once, each in a process of its own, and take turns of one iteration
            in the order A B B A, then B A A B; one such round is a block. `reloaded`: the arms do not fit together, so
            each is loaded again in every block, in the order A B, B A. `sequential`: each arm is loaded once, and drift
            between them is in no interval.
        blocks: how many; `per_block` are the iterations of an arm in one.
        warm_ups: the least number of iterations before the first timed one of every load and shape.
    """

    mode: Mode
    blocks: int
    per_block: int
    warm_ups: int

    @property
    def iterations(self) -> int:
        """Timed iterations of an arm and shape in all."""
        return self.blocks * self.per_block


def schedule(iterations: int, warm_ups: int, blocks: int, *, together: bool) -> Schedule:
    """The schedule for at least that many iterations.

    Args:
        blocks: how often an arm is loaded where the arms do not fit `together`.
    """
    if together:
        return Schedule("interleaved", math.ceil(iterations / 2), 2, warm_ups)
    mode: Mode = "reloaded" if blocks > 1 else "sequential"
    return Schedule(mode, blocks, math.ceil(iterations / blocks), warm_ups)


@dataclass
class ArmRun:
    """One arm and what has been measured of it so far.

    Attributes:
        name: unique among the arms; `precision` may not be.
        labels: what its process said of itself once it was loaded.
        warm_ups: by shape, of every load. `blocks`: by shape, the samples of every block; an empty one was not
            measured. `gpu`: by shape, what NVML saw during every turn; `blind` is why it does not see everything.
        memory: bytes of GPU memory in use before every load and after its process had ended, None without NVML.
        routing: see evaluators.routing; a sentence where it was not measured.
    """

    name: str
    precision: str
    load: Load
    status: Literal["running", "finished", "failed"] = "running"
    error: str | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    warm_ups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    blocks: dict[str, list[list[Sample]]] = field(default_factory=dict)
    gpu: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    blind: str | None = None
    memory: list[dict[str, int | None]] = field(default_factory=list)
    routing: dict[str, Any] | str = "not measured"

    def samples(self, shape: Shape) -> list[Sample]:
        """All samples of a shape, in order."""
        return [sample for block in self.blocks.get(shape.name, ()) for sample in block]


@dataclass
class Conductor:
    """Runs arms by a schedule.

    Attributes:
        frozen: the file of the workload, which every arm reads and holds against its digest.
        uuids: of the GPUs that the arms run on.
        kept: told an arm whenever there is more of it, so that nothing measured is lost.
        done: told how many iterations were timed.
    """

    arms: Sequence[ArmRun]
    workload: Workload
    frozen: Path
    schedule: Schedule
    uuids: Sequence[str]
    kept: Callable[[ArmRun], None]
    done: Callable[[int], None]

    def run(self) -> None:
        """Measure every arm; one that fails is left behind and the others go on.

        Whatever ends the run itself (Ctrl-C, a batch system) is in the arms' records before it goes on its way.
        """
        try:
            self._run()
        except BaseException as error:
            for arm in self._living():
                arm.status, arm.error = "failed", f"the run was ended ({type(error).__name__}) before it was complete"
                with suppress(OSError):  # a full disk is what ended it, perhaps
                    self.kept(arm)
            raise

    def _run(self) -> None:
        with Nvml.open(self.uuids) as self._nvml, Sampler(self._nvml) as self._sampler:
            if self.schedule.mode == "interleaved":
                self._interleaved()
            else:
                for block in range(self.schedule.blocks):
                    for arm in self._living(turned=block % 2 == 1):
                        self._block(arm, block)
        for arm in self._living():
            arm.status = "finished"
            self.kept(arm)

    def _living(self, *, turned: bool = False) -> list[ArmRun]:
        living = [arm for arm in self.arms if arm.status == "running"]
        return living[::-1] if turned else living

    def _interleaved(self) -> None:
        before = gpu_memory.used(self._nvml)
        with ExitStack() as stack:
            processes = {arm.name: stack.enter_context(ArmProcess(arm.load)) for arm in self.arms}
            for arm in self._living():
                with self._left_behind(arm):
                    self._load(arm, processes[arm.name])
            for shape in self.workload.shapes:
                for arm in self._living():
                    with self._left_behind(arm):
                        self._warm_up(arm, processes[arm.name], shape)
                for block in range(self.schedule.blocks):
                    for arm in self._round(block):
                        if arm.status == "running":  # it may have failed in the first half
                            with self._left_behind(arm):
                                self._turn(arm, processes[arm.name], shape, block, 1)
        # whose it is that does not come back nobody can tell
        seen = {"before": before, "after": gpu_memory.freed(self._nvml, before)}
        for arm in self.arms:
            arm.memory.append({**seen, "together": len(self.arms)})

    def _round(self, block: int) -> list[ArmRun]:
        """The arms there and back. Another one begins every round, so that each follows itself equally often."""
        living = self._living()
        first = block % max(1, len(living))
        there = living[first:] + living[:first]
        return there + there[::-1]

    def _block(self, arm: ArmRun, block: int) -> None:
        before = gpu_memory.used(self._nvml)
        with ArmProcess(arm.load) as process, self._left_behind(arm):
            self._load(arm, process)
            for shape in self.workload.shapes:
                self._warm_up(arm, process, shape)
                self._turn(arm, process, shape, block, self.schedule.per_block)
        arm.memory.append({"before": before, "after": gpu_memory.freed(self._nvml, before)})

    @contextmanager
    def _left_behind(self, arm: ArmRun) -> Iterator[None]:
        """Record an arm that fails at what is inside, and go on with the others."""
        try:
            yield
        except ArmFailed as error:
            arm.status, arm.error = "failed", str(error)
            self.kept(arm)

    def _load(self, arm: ArmRun, process: ArmProcess) -> None:
        arm.labels = process.load()

    def _warm_up(self, arm: ArmRun, process: ArmProcess, shape: Shape) -> None:
        found = process.ask("warm_up", **self._asked(shape), least=self.schedule.warm_ups)
        arm.warm_ups.setdefault(shape.name, []).append(found)

    def _turn(self, arm: ArmRun, process: ArmProcess, shape: Shape, block: int, iterations: int) -> None:
        found = process.ask("measure", **self._asked(shape), iterations=iterations, uuids=list(self.uuids))
        samples = [Sample(**each) for each in found["samples"]]
        blocks = arm.blocks.setdefault(shape.name, [[] for _ in range(self.schedule.blocks)])
        blocks[block] += samples
        seen = self._sampler.summary(samples[0].started, samples[-1].ended)
        slow = self._sampler.flagged([(each.started, each.ended) for each in samples])
        arm.gpu.setdefault(shape.name, []).append(
            {"block": block, "gpus": [asdict(each) for each in seen], "slow_samples": slow}
        )
        arm.blind = self._sampler.lost or self._nvml.why_not
        self.kept(arm)
        self.done(iterations)

    def _asked(self, shape: Shape) -> dict[str, Any]:
        return {"shape": asdict(shape), "workload": str(self.frozen)}


def route(
    arms: Iterable[ArmRun], workload: Workload, frozen: Path, *, options: Mapping[str, Any], experts: int
) -> None:
    """Find out which experts every arm's tokens go through, in a process of its own, outside the timing.

    An arm that is loaded like one before it goes the same ways and is not counted again.

    Args:
        frozen: the workload's file.
        options: with which the engine is loaded to tell (EngineKind.routing).
        experts: of a layer, to choose from.
    """
    largest = max(workload.shapes, key=lambda shape: shape.batch_size)
    counted: list[ArmRun] = []
    for arm in arms:
        alike = next((each for each in counted if each.load == arm.load), None)
        if alike is not None:
            arm.routing = alike.routing
            continue
        counted.append(arm)
        settings = arm.load.settings
        asked = replace(arm.load, settings=replace(settings, options={**settings.options, **options}))
        with ArmProcess(asked) as process:
            try:
                process.load()
                arm.routing = process.ask(
                    "routing",
                    workload=str(frozen),
                    shape=asdict(largest),
                    experts=experts,
                    batch_sizes=sorted({shape.batch_size for shape in workload.shapes}),
                )
            except ArmFailed as error:
                arm.routing = f"not measured: {error}"
