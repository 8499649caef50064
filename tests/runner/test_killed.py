"""SIGKILL of the runner's process at random points: resumed, it ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moe_eval.records.run import Mode
from moe_eval.runner import loads
from moe_eval.runner.folder import RunFolder
from tests.doubles import plays
from tests.doubles.arm_process import Stage
from tests.doubles.executed import everything, in_a_process, ordered, run

POINTS = 20
# what two runs never share: names of their own, and times
_OWN = {"run_id", "started", "ended", "seconds"}


def ended(work: Callable[[], object]) -> bool:
    """Whether work in a process of its own comes through."""
    return os.waitpid(in_a_process(work), 0)[1] == 0


def kill(
    scratch: Path,
    work: Callable[[Path], object],
    is_complete: Callable[[Path], bool],
    contents: Callable[[Path], object],
) -> None:
    """Kill work at POINTS random points and resume it. What comes through is begun again from nothing."""
    work(scratch / "first")  # so that no process has anything to import
    started = time.monotonic()
    assert ended(partial(work, scratch / "whole"))
    undisturbed = time.monotonic() - started
    whole = contents(scratch / "whole")
    chance = random.Random(7)
    folder, killed, complete = scratch / "run-0", 0, 0
    while killed < POINTS:
        pid = in_a_process(partial(work, folder))
        time.sleep(chance.uniform(0, undisturbed))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        for file in folder.glob("arms/*/*.json"):
            assert file.name.startswith(".") or file.read_text().endswith("}\n"), f"{file} is torn"
        if is_complete(folder):
            assert contents(folder) == whole
            complete += 1
            folder = scratch / f"run-{complete}"
    assert ended(partial(work, folder))
    assert contents(folder) == whole


@pytest.mark.parametrize("mode", ["alternating", "turns"])
def test_twenty_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    plan = ordered(mode, 2)
    monkeypatch.setattr(loads, "ArmProcess", Stage())
    assert run(RunFolder(tmp_path / "fast"), plan) == {}
    monkeypatch.setattr(loads, "ArmProcess", Stage(before=lambda arm, task: time.sleep(0.003)))
    kill(
        tmp_path,
        lambda folder: run(RunFolder(folder), plan),
        lambda folder: folder.is_dir() and not RunFolder(folder).missing(plan),
        lambda folder: everything(RunFolder(folder)),
    )
    assert everything(RunFolder(tmp_path / "whole")) == everything(RunFolder(tmp_path / "fast"))


def plain(content: Any) -> Any:
    """Without the names and times of one run."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key not in _OWN}
    return [plain(value) for value in content] if isinstance(content, list) else content


def test_twenty_kills_leave_the_records_of_an_undisturbed_run(tmp_path: Path, stage: Stage) -> None:
    def is_complete(folder: Path) -> bool:
        run = folder / "run.json"
        return run.is_file() and json.loads(run.read_text())["status"] == "finished"

    def records(folder: Path) -> dict[str, Any]:
        return {file.name: plain(json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))}

    stage.before = lambda arm, task: time.sleep(0.003)
    kill(tmp_path, plays.execute_in, is_complete, records)
    assert {"perf_bf16_cpu.json", "perf_fp32_cpu.json", "ppl_bf16_cpu.json"} <= records(tmp_path / "whole").keys()
