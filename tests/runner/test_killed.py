"""SIGKILL of the runner's process at random points of a plan: resumed, it ends as one that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moe_eval.records.run import Mode
from moe_eval.runner import execute
from moe_eval.runner.folder import RunFolder
from tests.doubles.arm_process import Stage
from tests.doubles.executed import everything, in_a_process, ordered, run

POINTS = 20


@pytest.mark.parametrize("mode", ["sequential", "interleaved"])
def test_twenty_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    together = mode == "interleaved"
    plan = ordered(mode, 2 if together else 1)
    conditions: dict[str, Any] = {"together": together, "iterations": 1 if together else 2}
    monkeypatch.setattr(execute, "ArmProcess", Stage())
    whole = RunFolder(tmp_path / "whole")
    assert run(whole, plan, tmp_path, **conditions) == {}

    slow = Stage()
    slow.before = lambda arm, task: time.sleep(0.01)
    monkeypatch.setattr(execute, "ArmProcess", slow)
    started = time.monotonic()
    assert os.waitpid(in_a_process(lambda: run(RunFolder(tmp_path / "timed"), plan, tmp_path, **conditions)), 0)[1] == 0
    undisturbed = time.monotonic() - started

    chance = random.Random(7)
    folder, killed, complete = RunFolder(tmp_path / "run-0"), 0, 0
    while killed < POINTS:
        pid = in_a_process(partial(run, folder, plan, tmp_path, **conditions))
        time.sleep(chance.uniform(0, undisturbed))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        for file in folder.path.glob("arms/*/*.json"):
            assert file.name.startswith(".") or file.read_text().endswith("}\n"), f"{file} is torn"
        if folder.path.is_dir() and not folder.missing(plan):  # it came through: again from nothing
            assert everything(folder) == everything(whole)
            complete += 1
            folder = RunFolder(tmp_path / f"run-{complete}")
    assert os.waitpid(in_a_process(lambda: run(folder, plan, tmp_path, **conditions)), 0)[1] == 0
    assert everything(folder) == everything(whole)
