"""What the tasks of a run are done with: its prompts, the requests of its servers, and what every arm loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import msgspec

from moe_eval.checkpoint import contents, geometry
from moe_eval.data.served_requests import RequestSet
from moe_eval.data.workload import Workload
from moe_eval.engines import registry
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records import disk
from moe_eval.runner import fit, placement, served, suites
from moe_eval.runner import plan as planning
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.arm_process import Load
from moe_eval.runner.conditions import ArmConditions, Conditions, ServingTask
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.placement import Placement
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import RunRequest


class Setup:
    """Of one run in its folder. How many loads and points it has may still change, its arms do not."""

    def __init__(self, request: RunRequest, plan: Plan, gpus: Sequence[Gpu], folder: RunFolder) -> None:
        self._request, self._arms, self._evaluators = request, plan.arms, plan.evaluators
        self._gpus, self._folder = tuple(gpus), folder

    @cached_property
    def workload(self) -> Workload | None:
        """The prompts. None where nothing is timed or traced."""
        arms = [arm for arm in self._arms if {"latency", "kernels"} & set(self._evaluators[arm.name])]
        return planning.workload(self._request, arms) if arms else None

    @cached_property
    def requests(self) -> RequestSet | None:
        """What servers answer. None where none is driven."""
        return served.requests(self._request, self.served) if self.served else None

    @property
    def served(self) -> list[Arm]:
        """The arms whose servers are driven."""
        return [arm for arm in self._arms if "serving" in self._evaluators[arm.name]]

    @cached_property
    def geometries(self) -> dict[str, geometry.Geometry | None]:
        """The sizes of every arm's model."""
        return {
            arm.name: None if arm.is_endpoint else geometry.read(contents.read_config(fit.folder(arm)))
            for arm in self._arms
        }

    def write(self) -> None:
        """Freeze prompts and requests beside the plan."""
        if self.workload:
            disk.write_json(self._workload_file(self.workload), self.workload.to_json())
        if self.requests:
            disk.write_json(self._requests_file(self.requests), msgspec.to_builtins(self.requests))

    def _workload_file(self, workload: Workload) -> Path:
        return self._folder.path / f"workload_{workload.digest}.json"

    def _requests_file(self, requests: RequestSet) -> Path:
        return self._folder.path / f"requests_{requests.digest}.json"

    def conditions(self, plan: Plan) -> Conditions:
        """With what the tasks of a plan are done."""
        request = self._request
        return Conditions(
            arms={arm.name: self._of_arm(arm, plan.placement) for arm in plan.arms},
            timed=plan.timed,
            workload=self._workload_file(self.workload) if self.workload else None,
            shapes=plan.shapes,
            dataset=request.dataset,
            input_len=request.input_len,
            num_chunks=request.num_chunks,
            iterations=plan.schedule.per_turn,
            warm_ups=request.warm_ups,
            together=len(plan.arms) if plan.schedule.mode == "turns" else 1,
            patience=request.timeout_s,
            nsys=request.nsys,
            tasks=request.tasks,
            suites={suite.name: suite.spec for suite in plan.suites},
            window=suites.common_window(plan.arms, plan.suites),
            serving=self._serving_task(),
        )

    def _serving_task(self) -> ServingTask | None:
        serving = self._request.serving
        if serving is None or self.requests is None:
            return None
        tokenizer = served.tokenizer_name(self._request, self.served)
        return ServingTask(self._requests_file(self.requests), serving.minimum, tokenizer)

    def _of_arm(self, arm: Arm, places: Placement) -> ArmConditions:
        kind, sizes = registry.named(arm.engine), self.geometries[arm.name]
        rounds = places.of_arm(arm.name)
        tokenizer = None if arm.is_endpoint else self._request.tokenizer or arm.settings.checkpoint
        first = hardware.first_index(arm.settings.device)
        loads = []
        for gpus in rounds:
            load = Load(arm.engine, arm.settings, tokenizer, arm.environment)
            if gpus and (first or len(self._gpus) > 1):  # it sees its own GPUs alone, from index 0 on
                device = arm.settings.device and arm.settings.device.partition(":")[0]
                environment = {**arm.environment, placement.VISIBLE: placement.visible(gpus, first)}
                load = replace(load, settings=replace(arm.settings, device=device), environment=environment)
            loads.append(load)
        return ArmConditions(
            loads=loads,
            uuids=[tuple(uuid for index in gpus if (uuid := self._gpus[index].uuid)) for gpus in rounds],
            routing=kind.routing or {},
            captures=kind.captures,
            experts=sizes.experts if sizes else None,
            serving=served.settings(self._request, self.requests) if self.requests else None,
            trace_folder=str(self._folder.of_arm(arm.name).resolve() / "profiler"),
        )
