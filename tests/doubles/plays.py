"""Whole runs of made-up arms: planned and executed as the commands do, in milliseconds a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from moe_eval.data.workload import Shape
from moe_eval.engines import registry
from moe_eval.machine.hardware import Gpu
from moe_eval.records.labels import OptionValue
from moe_eval.records.run import EvaluatorName
from moe_eval.runner import fit, loads, machine_rates
from moe_eval.runner import plan as planning
from moe_eval.runner.folder import LOG, RunFolder
from moe_eval.runner.request import ArmsRequest, Command, RunRequest
from moe_eval.runner.run import Run
from moe_eval.runner.tasks import Task
from tests.conftest import SHIPPED
from tests.doubles.arm_process import Stage

ARMS = ("bf16", "fp32")
SHAPES = (Shape(1, 8, 4), Shape(2, 8, 4))
PATHS = {"model": str(SHIPPED), "fp8": None, "nvfp4": None}


class Quiet:
    """Hears of a run and keeps why tasks failed, by arm and name."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.may_end_early: bool | None = None

    def ready(self, tasks: Sequence[Task], seconds: Sequence[float], *, may_end_early: bool) -> None:
        """Keep whether all of them will come."""
        self.may_end_early = may_end_early

    def begun(self, task: Task) -> None:
        """Take no notice."""

    def done(self, task: Task, reason: str | None) -> None:
        """Keep the reason."""
        if reason is not None:
            self.failed[f"{task.arm} {task.name}"] = reason


def set_up(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Put made-up arms in place of processes, of an engine that has to be loaded with an option to tell its routing."""
    stage = Stage()
    monkeypatch.setattr(loads, "ArmProcess", stage)
    monkeypatch.setattr(machine_rates, "ArmProcess", stage)
    kind = replace(registry.named("transformers"), routing={"tell": True})
    monkeypatch.setitem(registry.ENGINES, "transformers", kind)
    memory(monkeypatch, 1 << 40)
    return stage


def memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Plan as on a machine with so many bytes free."""
    monkeypatch.setattr(fit, "memory", lambda _: free)


def request(
    folder: Path,
    *,
    command: Command = "run",
    precisions: Sequence[str] = ARMS,
    evaluators: tuple[EvaluatorName, ...] = ("quality", "latency"),
    iterations: int = 2,
    loads: int = 1,
    most_loads: int | None = None,
    most_minutes: float | None = None,
    repeat_reference: bool = False,
    resume: bool = True,
    engine_options: Mapping[str, object] = MappingProxyType({}),
    **options: OptionValue,
) -> RunRequest:
    """Arms of the shipped model on two shapes."""
    return RunRequest(
        command=command,
        arms=ArmsRequest("transformers", precisions, PATHS, options=engine_options, settings={"device": "cpu"}),
        tokenizer=None,
        evaluators=evaluators,
        shapes=SHAPES,
        dataset="moe_sample",
        seed=0,
        input_len=SHAPES[0].input_len,
        num_chunks=3,
        iterations=iterations,
        warm_ups=5,
        loads=loads,
        most_loads=most_loads,
        most_minutes=most_minutes,
        min_gain=0.01,
        repeat_reference=repeat_reference,
        folder=folder,
        options={"loads": 1, **options},
        fusion_disabled=False,
        timeout_s=60,
        resume=resume,
    )


def run_of(run_request: RunRequest, gpus: tuple[Gpu, ...] = ()) -> Run:
    """A run, planned."""
    folder = RunFolder(run_request.folder, run_request.command)
    before = folder.run() if run_request.resume and folder.exists() else None
    return Run(run_request, planning.make(run_request, gpus, before), gpus)


def execute_in(folder: Path, gpus: tuple[Gpu, ...] = (), **changes: object) -> list[str]:
    """Do what is left of a run. Returns a sentence for every task that failed."""
    return run_of(request(folder, **changes), gpus).execute(Quiet())  # type: ignore[arg-type]


def run(folder: Path) -> Run:
    """A run of two arms, as `execute_in` has it."""
    return run_of(request(folder))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but logs and scores, whose archives have the time in them."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".npz" and file.name not in (LOG, ".lock")
    }
