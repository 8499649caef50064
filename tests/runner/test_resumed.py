"""What a run keeps of its plan when it goes on: memory may be freer or fuller than it was when it began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.records.run import Skipped
from tests.doubles import plays
from tests.doubles.arm_process import Stage

FOR_ONE = 3 << 29  # bytes of memory that hold one arm of the shipped model and not two


@pytest.fixture
def begun(tmp_path: Path, stage: Stage) -> Path:
    """A run of two arms that took turns, in want of one task."""
    assert plays.execute_in(tmp_path / "begun") == []
    (tmp_path / "begun" / "arms" / "fp32" / "quality.json").unlink()
    stage.asked.clear()
    return tmp_path / "begun"


def test_a_run_keeps_its_schedule_though_more_memory_is_free(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays.memory(monkeypatch, FOR_ONE)
    folder = tmp_path / "run"
    assert plays.execute_in(folder) == []
    before = plays.files(folder)
    assert json.loads(before["perf_fp32_cpu.json"])["schedule"]["mode"] == "sequential"
    plays.memory(monkeypatch, 1 << 40)
    (latency,) = (folder / "arms" / "fp32").glob("latency_b1_*.json")
    latency.unlink()
    assert plays.execute_in(folder) == []
    again = plays.files(folder)
    for name in ("perf_bf16_cpu.json", "perf_fp32_cpu.json"):
        assert again[name] == before[name], name


def test_a_run_begun_without_an_arm_goes_on_without_it(begun: Path, stage: Stage) -> None:
    run = json.loads((begun / "run.json").read_text())
    del run["evaluators"]["fp32"]
    plan = plays.run(begun).plan
    (begun / "run.json").write_text(json.dumps({**run, "schedule": {**run["schedule"], "mode": "sequential"}}))
    later = plays.run(begun).plan
    assert plan.skipped == ()
    assert later.skipped == (Skipped("fp32", None, "the run that goes on here began without it"),)
    assert {task.arm for task in later.tasks} == {"bf16"}
    assert later.schedule.mode == "sequential"


def test_a_run_does_not_go_on_where_its_arms_no_longer_fit_together(
    begun: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plays.files(begun)
    plays.memory(monkeypatch, FOR_ONE)
    with pytest.raises(UsageError, match=r"planned as .*mode interleaved.* free now allows .*mode sequential"):
        plays.execute_in(begun)
    assert plays.files(begun) == before
    assert stage.asked == []
    plays.memory(monkeypatch, 1 << 40)
    assert plays.execute_in(begun) == []
