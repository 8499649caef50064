"""Plans of made-up arms that are called by letters, done by an Executor, and what they leave on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moe_eval.data.workload import Shape
from moe_eval.engines.base import EngineSettings
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records.run import EVALUATORS, EvaluatorName, Mode, Schedule
from moe_eval.runner import tasks
from moe_eval.runner.arm_process import Load
from moe_eval.runner.conditions import ArmConditions, Conditions
from moe_eval.runner.execute import Executor
from moe_eval.runner.folder import LOG, RunFolder
from moe_eval.runner.tasks import Task, TurnResult
from tests.doubles.plays import SHAPES, Quiet


def ordered(
    mode: Mode = "alternating",
    loads: int = 1,
    arms: str = "ab",
    evaluators: tuple[EvaluatorName, ...] = EVALUATORS,
    *,
    traced: Sequence[Shape] = SHAPES[:1],
    is_recorded: bool = False,
) -> list[Task]:
    """The tasks of these arms at two shapes."""
    schedule = Schedule(mode, loads, 2, 5)
    return tasks.order(
        dict.fromkeys(arms, evaluators), SHAPES, traced, schedule, routed=list(arms), is_recorded=is_recorded
    )


def run(
    folder: RunFolder,
    plan: list[Task],
    uuids: tuple[str, ...] | Mapping[str, tuple[str, ...]] = (),
    nsys: NsysSettings | None = None,
    engine: str = "transformers",
) -> dict[str, str]:
    """Do what is missing. Returns why tasks failed, by arm and name. `uuids`: of the GPUs of all arms, or by arm."""
    arms = list(dict.fromkeys(task.arm for task in plan))
    together = any(task.turn for task in plan)
    conditions = Conditions(
        arms={
            name: ArmConditions(
                [Load(engine, EngineSettings(name), name)],
                [uuids[name] if isinstance(uuids, Mapping) else uuids],
                routing={"tell": True},
                captures={"open": "captures"},
                experts=4,
            )
            for name in arms
        },
        timed=arms,
        workload=folder.path / "workload.json",
        shapes=SHAPES,
        dataset="none",
        input_len=8,
        num_chunks=0,
        iterations=1 if together else 2,
        warm_ups=5,
        together=len(arms) if together else 1,
        patience=60,
        nsys=nsys,
    )
    observer = Quiet()
    with folder.locked(0) as lock, Executor(folder, conditions, lock) as executor:
        executor.prepare(folder.missing(plan))
        executor.run(folder.missing(plan), observer)
    return observer.failed


def turn(folder: RunFolder, plan: list[Task], arm: str = "a") -> TurnResult:
    """What the first latency task of an arm has left."""
    result = folder.result(next(task for task in plan if (task.kind, task.arm) == ("latency", arm)))
    assert result is not None
    assert result.latency is not None
    return result.latency


def contents(folder: RunFolder) -> dict[str, Any]:
    """Every file of every arm but logs, without what is a time, and all scores.

    A partial file of a kill that came after the last task is there until the folder is used again.
    """
    by_name: dict[str, Any] = {}
    for file in sorted([*folder.arms.glob("*/*"), *folder.path.glob("*.npz")]):
        name = str(file.relative_to(folder.path))
        if file.suffix == ".json":
            content = json.loads(file.read_text())
            content.pop("seconds", None)
            content.pop("ended", None)
            by_name[name] = content
        elif file.name != LOG and not file.name.startswith("."):
            by_name[name] = file.read_bytes()
    return by_name


def everything(folder: RunFolder) -> dict[str, Any]:
    """The same, with scores by their content: an archive of them has the time in it."""
    by_name = contents(folder)
    for name in [name for name in by_name if name.endswith(".npz")]:
        with np.load(folder.path / name) as arrays:
            by_name[name] = {key: arrays[key].tolist() for key in arrays}
    return by_name


def in_a_process(work: Callable[[], object]) -> int:
    """Do work in a process of its own that ends without cleaning up. Returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid
