"""Writes the records of a run from what its tasks have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_eval.checkpoint.geometry import Geometry
from moe_eval.data.served_requests import RequestSet
from moe_eval.engines import registry
from moe_eval.evaluators import latency_record, quality, serving_record
from moe_eval.evaluators import tasks as harness
from moe_eval.evaluators.latency_record import Context, Measured
from moe_eval.evaluators.quality import Scores
from moe_eval.evaluators.serving_record import Served
from moe_eval.frozen import frozen
from moe_eval.imports import harness_samples
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.rates import Rates, slowest
from moe_eval.records import disk
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, Origin, Status
from moe_eval.records.latency import MemoryUse
from moe_eval.records.quality import NoiseFloor
from moe_eval.records.run import UNMEASURED
from moe_eval.records.samples import Turn
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.placement import Indices
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import ServingRequest
from moe_eval.runner.tasks import ROUTING_LOAD, Kind, Task, TaskResult


@frozen
class RecordWriter:
    """Makes the records of a folder.

    Attributes:
        context: of every arm, but for its settings, rates and the sizes of its model.
        geometries: these sizes by arm. None where they are not known.
        rates: of every group of GPUs, or why they are not known.
        requests, serving: what servers answer, and how. None where none is driven.
    """

    folder: RunFolder
    plan: Plan
    context: Context
    geometries: Mapping[str, Geometry | None]
    rates: Sequence[Rates] | str
    requests: RequestSet | None = None
    serving: ServingRequest | None = None

    def write(self, kind: Kind | None = None) -> None:
        """Write perf_*, ppl_*, tasks_*, serving_* and kernels_* records beside the plan.

        Args:
            kind: of a task that has just ended, whose results alone are new. None for all of them.
        """
        precisions = {arm.name: arm.precision for arm in self.plan.arms}
        for arm, precision in precisions.items():
            if kind in (None, "latency", "routing") and self._tasks(arm, "latency"):
                self._write(f"perf_{arm}", latency_record.record(self._measured(arm, precision), self._context(arm)))
            result = self.folder.result(Task("quality", arm)) if self._tasks(arm, "quality") else None
            if result is not None and kind in (None, "quality", "noise"):
                self._write_quality(arm, precision, result)
            if kind in (None, "tasks"):
                self._write_tasks(arm, precision)
            if kind in (None, "serving") and self._tasks(arm, "serving"):
                self._write_serving(arm, precision)
        if kind in (None, "kernels"):
            self._write_kernels()

    def write_skipped(self) -> None:
        """Write a record for every arm that `perf` or `ppl` was to measure and left out."""
        for entry in self.plan.skipped:
            if entry.evaluator is not None:
                continue
            if self.folder.command == "perf":
                skipped = Measured(entry.arm, entry.arm, Status.SKIPPED, entry.reason)
                self._write(f"perf_{entry.arm}", latency_record.record(skipped, self.context))
            elif self.folder.command == "ppl":
                self._write_quality(entry.arm, entry.arm, TaskResult(Status.SKIPPED, entry.reason))

    def _context(self, arm: str) -> Context:
        """What a latency record of an arm has beside what was measured."""
        where = self.plan.placement.gpus(arm)
        return replace(
            self.context,
            origin=self._origin(arm),
            geometry=self.geometries[arm],
            gpus=self._gpus(where),
            rates=self._rates(arm),
        )

    def _rates(self, arm: str) -> Rates | str:
        """What the GPUs of an arm reach: those of all its loads."""
        if isinstance(self.rates, str):
            return self.rates
        places = self.plan.placement.of_arm(arm)
        measured = [rates for rates in self.rates if rates.gpus in places]
        return slowest(measured) if measured else "the rates of its GPUs were not measured"

    def _origin(self, arm: str) -> Origin:
        settings = self._planned(arm).recorded(self.plan.placement.gpus(arm))
        return replace(self.context.origin, arm=settings)

    def _planned(self, arm: str) -> Arm:
        return next(entry for entry in self.plan.arms if entry.name == arm)

    def _gpus(self, indices: Indices) -> tuple[Gpu, ...]:
        machine = self.context.origin.machine
        return tuple(machine.gpus[index] for index in indices) if machine else ()

    def _no_routing(self, arm: str) -> str:
        """Why routing was not counted, where its engine does not tell."""
        kind = registry.named(self._planned(arm).engine)
        if kind.routing is None:
            return f"not measured: {kind.title} does not tell which experts tokens go through"
        return "not measured: the number of experts of this architecture is not known"

    def _measured(self, arm: str, precision: str) -> Measured:
        """An arm's latency tasks, put together."""
        measured = Measured(arm, precision, Status.FINISHED, labels=self._labels(arm))
        measured.memory = tuple(
            MemoryUse(load.before, load.after, load.together, load.taken) for load in self.folder.loads(arm)
        )
        measured.capacity = fit.capacity(self._planned(arm), self._gpus(self.plan.placement.gpus(arm)))
        tasks = self._tasks(arm, "latency")
        loads = 1 + max(task.load for task in tasks)
        for task in tasks:
            assert task.shape is not None
            result = self.folder.result(task)
            turn = result.latency if result else None
            if turn is None:
                measured.status = Status.FAILED
                measured.error = measured.error or (result.error if result else UNMEASURED)
                continue
            name = task.shape.name
            measured.loads.setdefault(name, [[] for _ in range(loads)])[task.load].extend(turn.samples)
            measured.turns.setdefault(name, []).append(Turn(task.load, turn.gpus, turn.slow_samples))
            warm_ups = measured.warm_ups.setdefault(name, [])
            if turn.warm_up not in warm_ups:  # turns of one load share theirs
                warm_ups.append(turn.warm_up)
            measured.nvml = measured.nvml or turn.nvml
        routed = self.folder.result(Task("routing", self.plan.routed_as[arm], ROUTING_LOAD))
        if routed is None:
            measured.no_routing = self._no_routing(arm)
        else:
            measured.routing = routed.routing
            measured.no_routing = None if routed.is_finished else f"not measured: {routed.error}"
        return measured

    def _write_quality(self, arm: str, precision: str, result: TaskResult) -> None:
        record = quality.record(
            arm,
            precision,
            result.status,
            result.error,
            origin=self.context.origin if result.status is Status.SKIPPED else self._origin(arm),
            labels=self._labels(arm),
            figures=result.quality,
            noise_floor=self._noise_floor(arm) if result.is_finished else None,
            fusion_disabled=self.context.fusion_disabled,
        )
        self._write(f"ppl_{arm}", record)

    def _write_tasks(self, arm: str, precision: str) -> None:
        results = [self.folder.result(task) for task in self._tasks(arm, "tasks")]
        if not any(results):
            return
        failed = [result.error if result else UNMEASURED for result in results if not (result and result.is_finished)]
        are_some = any(result and result.is_finished for result in results)
        record = harness.record(
            arm,
            precision,
            Status.FAILED if failed else Status.FINISHED,
            failed[0] if failed else None,
            origin=self._origin(arm),
            labels=self._labels(arm),
            results=harness_samples.read(self.folder.harness_results(arm)) if are_some else None,
        )
        self._write(f"tasks_{arm}", record)

    def _write_serving(self, arm: str, precision: str) -> None:
        """What an arm's server did at every point. Nothing before the first one has been tried."""
        results = {task: self.folder.result(task) for task in self._tasks(arm, "serving")}
        if not any(results.values()) or self.requests is None or self.serving is None:
            return
        loads = {
            point: [result.serving if result else None for task, result in results.items() if task.point == point]
            for point in self.plan.points
        }
        errors = {
            point: [result.error if result else UNMEASURED for task, result in results.items() if task.point == point]
            for point in self.plan.points
        }
        first = self.folder.served(arm)
        served = Served(
            arm=arm,
            precision=precision,
            loads=loads,
            errors=errors,
            requests=self.requests,
            minimum=self.serving.minimum,
            is_mixed=self.serving.lengths is not None,
            limits=self.serving.limits,
            prefix_caching=None if self._planned(arm).is_endpoint else self.serving.prefix_caching,
            labels=first.labels if first else ArmLabels(),
            gpus=self._gpus(self.plan.placement.gpus(arm)),
        )
        self._write(f"serving_{arm}", serving_record.record(served, self._origin(arm)))

    def _noise_floor(self, arm: str) -> NoiseFloor | None:
        tasks = self._tasks(arm, "noise")
        if not tasks or not all(map(self.folder.done, tasks)):
            return None
        scores, alone = (Scores.load(self.folder.arrays(arm, kind)) for kind in ("quality", "noise"))
        return quality.noise_floor(scores, alone, 1)

    def _write_kernels(self) -> None:
        for task in self.plan.tasks:
            if task.kind != "kernels":
                continue
            name = task.shape.name if task.shape else self._point_name(task)
            result = self.folder.result(task) or TaskResult(Status.FAILED, UNMEASURED)
            record = replace(result.kernels or KernelsRecord(), shape=name)
            record = replace(
                record, arm=task.arm, status=result.status, error=result.error, origin=self._origin(task.arm)
            )
            self._write(f"kernels_{task.arm}", record, f"_{name}")

    def _point_name(self, task: Task) -> str:
        assert task.point is not None
        assert self.requests is not None
        assert self.serving is not None
        return serving_record.name_of(task.point, self.requests, is_mixed=self.serving.lengths is not None)

    def _tasks(self, arm: str, kind: Kind) -> list[Task]:
        return [task for task in self.plan.tasks if task.arm == arm and task.kind == kind]

    def _labels(self, arm: str) -> ArmLabels:
        loads = self.folder.loads(arm)
        return loads[0].labels if loads else ArmLabels()

    def _write(self, name: str, record: object, suffix: str = "") -> None:
        disk.write_record(self.folder.path / f"{name}_{self.folder.where}{suffix}.json", record)
