"""The records of a run, made from what its steps have left: the same as `moe-eval perf` and `moe-eval ppl` write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_eval.evaluators import quality_record
from moe_eval.evaluators.latency import Sample
from moe_eval.records import disk
from moe_eval.runner import speed_record
from moe_eval.runner.arm_process import Load
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.interleave import ArmRun
from moe_eval.runner.speed_record import Context
from moe_eval.runner.steps import ROUTING_LOAD, Kind, Step

_SPEED: tuple[Kind, ...] = ("latency", "routing")
_QUALITY: tuple[Kind, ...] = ("perplexity", "noise")
UNMEASURED = "the run ended before it was measured"


@dataclass(frozen=True)
class Views:
    """Makes records of a folder.

    Attributes:
        precisions: of every arm by name, the reference first. `loads`: what they load.
        where: the end of the records' names, such as sm90.
        unrouted: why routing was not counted, where no arm's engine tells.
    """

    folder: RunFolder
    steps: Sequence[Step]
    precisions: Mapping[str, str]
    loads: Mapping[str, Load]
    context: Context
    asked: Mapping[str, Any]
    where: str
    unrouted: str

    def write(self, kind: Kind | None = None) -> None:
        """Write perf_*, ppl_* and kernels_* records beside the plan, the first finished arm being the reference.

        Args:
            kind: of a step that has just ended, whose results alone are new; None for all of them.
        """
        if kind in (None, *_SPEED):
            self._speed()
        if kind in (None, *_QUALITY):
            self._quality()
        if kind in (None, "kernels"):
            self._kernels()

    def _kernels(self) -> None:
        for step in (each for each in self.steps if each.kind == "kernels"):
            assert step.shape is not None
            found = self.folder.result(step) or {"status": "failed", "error": UNMEASURED}
            content = found.get("result") or {"shape": step.shape.name}
            content |= {"run_id": self.context.run_id, "status": found["status"], "error": found.get("error")}
            self._write(f"kernels_{step.arm}_{self.where}_{step.shape.name}", content)

    def _speed(self) -> None:
        runs = [self._run(arm) for arm in self.precisions if self._of(arm, "latency")]
        reference = next((run for run in runs if run.status == "finished"), None)
        for run in runs:
            content = speed_record.record(run, self.context, None if run is reference else reference)
            self._write(f"perf_{run.name}_{self.where}", content)

    def _run(self, arm: str) -> ArmRun:
        """An arm's latency steps as the record of a speed run has them."""
        run = ArmRun(arm, self.precisions[arm], self.loads[arm], labels=self._labels(arm))
        run.status = "finished"
        for step in self._of(arm, "latency"):
            assert step.shape is not None
            found = self.folder.result(step)
            if found is None or found["status"] != "finished":
                run.status = "failed"
                run.error = run.error or (found["error"] if found else UNMEASURED)
                continue
            result = found["result"]
            blocks = run.blocks.setdefault(step.shape.name, [[] for _ in range(self.context.schedule.blocks)])
            blocks[step.block] += [Sample(**each) for each in result["samples"]]
            seen = {"block": step.block, "gpus": result["gpus"], "slow_samples": result["slow_samples"]}
            run.gpu.setdefault(step.shape.name, []).append(seen)
            warm_ups = run.warm_ups.setdefault(step.shape.name, [])
            if result["warm_up"] not in warm_ups:  # turns of one load share theirs
                warm_ups.append(result["warm_up"])
            run.blind = run.blind or result["nvml"]
        run.memory = self._memory(arm)
        routing = self.folder.result(Step("routing", arm, ROUTING_LOAD))
        if routing is None:
            run.routing = self.unrouted
        else:
            run.routing = routing.get("result") or f"not measured: {routing['error']}"
        return run

    def _quality(self) -> None:
        finished = [arm for arm in self.precisions if self._finished(arm, "perplexity")]
        floor = None
        if finished and self._finished(finished[0], "noise"):
            floor = quality_record.noise(*(self.folder.arrays(finished[0], kind) for kind in _QUALITY))
        for arm in self.precisions:
            found = self.folder.result(Step("perplexity", arm)) if self._of(arm, "perplexity") else None
            if found is None:
                continue
            content = quality_record.record(
                self.precisions[arm],
                found["status"],
                found.get("error"),
                run_id=self.context.run_id,
                labels=self._labels(arm),
                figures=found.get("result", {}),
                asked=self.asked,
                fusion_disabled=self.context.fusion_disabled,
            )
            if arm in finished:
                arrays = [self.folder.arrays(each, "perplexity") for each in (finished[0], arm)]
                content |= {
                    "reference": self.precisions[finished[0]],
                    "noise_floor": floor,
                    **quality_record.compared(arrays[0], arrays[1], floor),
                }
            self._write(f"ppl_{arm}_{self.where}", content)

    def _of(self, arm: str, kind: str) -> list[Step]:
        return [step for step in self.steps if step.arm == arm and step.kind == kind]

    def _finished(self, arm: str, kind: str) -> bool:
        steps = self._of(arm, kind)
        return bool(steps) and all(self.folder.done(step) for step in steps)

    def _labels(self, arm: str) -> dict[str, Any]:
        files = sorted(self.folder.of_arm(arm).glob("load_[0-9]*.json"))
        found: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))["labels"] if files else {}
        return found

    def _memory(self, arm: str) -> list[dict[str, int | None]]:
        files = sorted(self.folder.of_arm(arm).glob("load_*.json"))
        loads = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return [{"before": each["before"], "after": each["after"]} for each in loads]

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        disk.write_json(self.folder.path / f"{name}.json", content)
