"""SIGKILL of whole runs at random points: resumed, they end with the records of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import plays
from tests.doubles.executed import in_a_process

POINTS = 20

# what two runs never share: names of their own, and times
_OWN = {"run_id", "started", "ended", "seconds"}


def records(folder: Path) -> dict[str, Any]:
    """All records of a run, without its own name and times."""
    return {file.name: plain(json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))}


def plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key not in _OWN}
    return [plain(value) for value in content] if isinstance(content, list) else content


def test_twenty_kills_leave_the_records_of_an_undisturbed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = plays.set_up(monkeypatch)
    stage.before = lambda arm, task: time.sleep(0.01)
    started = time.monotonic()
    assert os.waitpid(in_a_process(partial(plays.execute_in, tmp_path / "whole")), 0)[1] == 0
    undisturbed = time.monotonic() - started
    whole = records(tmp_path / "whole")
    assert {"perf_bf16_cpu.json", "perf_fp32_cpu.json", "ppl_bf16_cpu.json"} <= whole.keys()

    chance = random.Random(7)
    folder, killed, complete = tmp_path / "run-0", 0, 0
    while killed < POINTS:
        pid = in_a_process(partial(plays.execute_in, folder))
        time.sleep(chance.uniform(0, undisturbed))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        run = folder / "run.json"
        if run.is_file() and json.loads(run.read_text())["status"] == "finished":  # it came through: again from nothing
            assert records(folder) == whole
            complete += 1
            folder = tmp_path / f"run-{complete}"
    assert os.waitpid(in_a_process(partial(plays.execute_in, folder)), 0)[1] == 0
    assert records(folder) == whole
