"""Whole runs of made-up arms: planned, executed and concluded as `moe-eval run` does, in milliseconds a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from moe_eval.machine.hardware import Gpu
from moe_eval.runner import arm_plan as arms
from moe_eval.runner import execute, fit
from moe_eval.runner import plan as planning
from moe_eval.runner import run as runs
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.plan import Asked
from moe_eval.runner.run import Request, Run
from tests.conftest import SHIPPED
from tests.runner.stage import SHAPES, Stage, nothing

ARMS = ("bf16", "fp32")
RATES = {"copy_bytes_per_s": 1e9, "matrix_flops_per_s": {"bfloat16": 1e9, "float32": 1e9}, "device": "made up"}


DEVICE = "cpu"


class Rates:
    """Stands in for the process that measures the machine's rates."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Rates:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, task: str, device: str) -> Mapping[str, Any]:
        """Rates of nothing that exists."""
        assert (task, device) == ("rates", DEVICE)
        return RATES


def set_up(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Put made-up arms in place of processes."""
    stage = Stage()
    monkeypatch.setattr(execute, "ArmProcess", stage)
    monkeypatch.setattr(runs, "ArmProcess", Rates)
    memory(monkeypatch, 1 << 40)
    return stage


def memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Plan as on a machine with so many bytes free."""
    monkeypatch.setattr(fit, "memory", lambda _: free)


def run(
    folder: Path,
    *,
    resume: bool = True,
    gpus: tuple[Gpu, ...] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    **shown: str,
) -> Run:
    """A run of two arms on the shipped model's shapes."""
    paths = {"model": str(SHIPPED), "fp8": None, "nvfp4": None}
    asked = Asked(
        arms=arms.Asked("transformers", ARMS, paths, False, "experts", options, {"device": DEVICE}),
        evaluators=("perplexity", "latency"),
        shapes=SHAPES,
        dataset="moe_sample",
        input_len=SHAPES[0].input_len,
        num_chunks=3,
        iterations=2,
        warm_ups=5,
        blocks=1,
    )
    request = Request(asked, None, {"blocks": "1", **shown}, folder, "cpu", False, 60, resume)
    there = RunFolder(folder)
    before = there.run() if resume and there.exists() else None
    made = Run(request, planning.make(asked, gpus, routed=True, before=before), gpus)
    made.kind = replace(made.kind, routing={"tell": True})
    return made


def execute_in(folder: Path, **more: Any) -> list[str]:
    """Do what is left of a run; returns a sentence for every step that failed."""
    return run(folder, **more).execute(nothing, nothing, lambda _: None)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but logs and scores, whose archives have the time in them."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".npz" and file.name not in (execute.LOG, ".lock")
    }


def done(folder: Path) -> int:
    """How many steps have finished."""
    return sum(RunFolder(folder).done(step) for step in run(folder).plan.steps)
