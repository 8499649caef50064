"""Steps done by made-up arms: what is loaded when, what a failure costs, and that nothing is done twice or lost."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.runner import execute, steps
from moe_eval.runner.execute import Executor
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.interleave import Schedule
from moe_eval.runner.steps import EVALUATORS, Step
from tests.runner.stage import SHAPES, Stage, how, nothing


class Killed(BaseException):
    """The runner's process is gone: nothing that it would do at the end is done."""


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    monkeypatch.setattr(execute, "ArmProcess", made)
    return made


def ordered(
    mode: str = "sequential", blocks: int = 1, arms: str = "ab", evaluators: tuple[str, ...] = EVALUATORS
) -> list[Step]:
    schedule = Schedule(mode, blocks, 2, 5)  # type: ignore[arg-type]
    return steps.order(dict.fromkeys(arms, evaluators), SHAPES, SHAPES[:1], schedule, routed=list(arms))


def run(folder: RunFolder, plan: list[Step], tmp_path: Path, arms: str = "ab", **more: Any) -> dict[str, str]:
    """Do what is missing; returns why steps failed, by arm and name."""
    failed: dict[str, str] = {}

    def done(step: Step, reason: str | None) -> None:
        if reason is not None:
            failed[f"{step.arm} {step.name}"] = reason

    with folder.locked(0) as lock, Executor(folder, how(arms, tmp_path, **more), lock) as executor:
        executor.run(folder.missing(plan), nothing, done)
    return failed


def contents(folder: RunFolder) -> dict[str, Any]:
    """Every file of every arm but logs, without what is a time."""
    found = {}
    for file in sorted(folder.path.glob("arms/*/*")):
        if file.suffix == ".json":
            content = json.loads(file.read_text())
            content.pop("seconds", None)
            found[str(file.relative_to(folder.path))] = content
        elif file.name != execute.LOG:
            found[str(file.relative_to(folder.path))] = file.read_bytes()
    return found


def test_every_arm_is_loaded_once_and_no_two_at_once(stage: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert run(folder, ordered(), tmp_path) == {}
    assert stage.order("load") == ["a", "b", "a", "b"], "once for everything, and once to tell routed experts"
    assert (stage.most_alive, stage.alive) == (1, set())
    assert folder.missing(ordered()) == []
    assert sorted(stage.order("warm_up")) == ["a"] * 2 + ["b"] * 2


def test_arms_that_take_turns_stay_loaded_and_are_warm_before_the_first_turn(stage: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert run(folder, ordered("interleaved", 2), tmp_path, together=True, iterations=1) == {}
    assert stage.order("load") == ["a", "b", "a", "b"]
    assert stage.most_alive == 2
    timed = [(arm, task) for arm, task, _ in stage.asked if task in ("warm_up", "measure")]
    first_shape = timed[: len(timed) // 2]
    assert first_shape[:2] == [("a", "warm_up"), ("b", "warm_up")]
    assert "".join(arm for arm, task in first_shape if task == "measure") == "abbabaab"


def test_all_arms_are_there_before_the_first_turn_of_any(stage: Stage, tmp_path: Path) -> None:
    plan = ordered("interleaved", 1, "abc", ("latency",))
    assert run(RunFolder(tmp_path / "run"), plan, tmp_path, "abc", together=True, iterations=1) == {}
    first = [(arm, task) for arm, task, _ in stage.asked][:9]
    assert first[:6] == [(arm, task) for task in ("load", "warm_up") for arm in "abc"]
    assert first[6:] == [(arm, "measure") for arm in "abc"]


def test_an_arm_that_cannot_be_there_keeps_no_other_from_its_turns(stage: Stage, tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path / "run"), ordered("interleaved", 2, "abc", ("latency",))
    stage.fails["b", "load"] = "out of memory"
    failed = run(folder, plan, tmp_path, "abc", together=True, iterations=1)
    assert set(failed) == {f"b {step.name}" for step in plan if step.arm == "b"}
    assert set(failed.values()) == {"out of memory"}
    assert stage.order("load").count("b") == 2, "once for its turns, and once to tell routed experts"


def test_a_block_of_loads_is_repeated_whole(stage: Stage, tmp_path: Path) -> None:
    """Arms of one block that were measured on two days would bring a day's drift into its ratio."""
    folder, plan = RunFolder(tmp_path / "run"), ordered("reloaded", 2)
    stage.fails["b", "measure", SHAPES[0].name] = "out of memory"
    failed = run(folder, plan, tmp_path)
    assert set(failed) == {f"b latency_{SHAPES[0].name}_{block}_0" for block in (0, 1)}
    stage.fails.clear()
    stage.asked.clear()
    left = [(step.arm, step.shape, step.block) for step in folder.missing(plan)]
    assert left == [("a", SHAPES[0], 0), ("b", SHAPES[0], 0), ("b", SHAPES[0], 1), ("a", SHAPES[0], 1)]
    assert run(folder, plan, tmp_path) == {}
    assert stage.order("measure") == ["a", "b", "b", "a"]


def test_arms_that_are_loaded_once_are_not_timed_again_for_another_s_sake(stage: Stage, tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path / "run"), ordered("sequential")
    stage.fails["b", "measure", SHAPES[0].name] = "out of memory"
    run(folder, plan, tmp_path)
    assert [(step.arm, step.shape) for step in folder.missing(plan)] == [("b", SHAPES[0])]


def test_blocks_are_loads_of_their_own(stage: Stage, tmp_path: Path) -> None:
    run(RunFolder(tmp_path / "run"), ordered("reloaded", 3), tmp_path)
    assert "".join(stage.order("load")) == "ab" + "ba" + "ab" + "ab"


def test_a_step_that_fails_is_written_down_and_costs_no_other(stage: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    stage.fails[("a", "measure", SHAPES[0].name)] = "out of memory"
    plan = ordered()
    assert run(folder, plan, tmp_path) == {"a latency_b1_i8_o4_0_0": "out of memory"}
    failed = folder.result(next(step for step in plan if step.kind == "latency"))
    assert failed is not None
    assert (failed["status"], failed["error"]) == ("failed", "out of memory")
    assert failed["output"][0] == "arm a began"
    before = contents(folder)
    stage.fails.clear()
    stage.asked.clear()
    assert run(folder, plan, tmp_path) == {}
    assert stage.asked[0][:2] == ("a", "load")
    assert [task for _, task, _ in stage.asked] == ["load", "warm_up", "measure"], "only what is missing is repeated"
    assert {name for name, content in contents(folder).items() if before.get(name) != content} == {
        "arms/a/latency_b1_i8_o4_0_0.json"
    }


def test_an_arm_that_cannot_be_loaded_fails_its_steps_and_the_others_go_on(stage: Stage, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    stage.fails[("a", "load")] = "no such checkpoint"
    failed = run(folder, ordered(), tmp_path)
    assert len(failed) == sum(step.arm == "a" for step in ordered())
    assert set(failed.values()) == {"no such checkpoint"}
    assert stage.order("load") == ["a", "b", "a", "b"], "it is tried once a load"
    assert all(folder.done(step) for step in ordered() if step.arm == "b")


def test_an_arm_that_breaks_down_in_a_warm_up_for_another_fails_its_own_next_step(stage: Stage, tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path / "run"), ordered("interleaved", 2)
    stage.fails["b", "warm_up", SHAPES[0].name] = "its process ended with signal SIGKILL"

    def before(arm: str, task: str) -> None:
        if arm == "b" and task == "load":
            stage.fails.pop(("b", "warm_up", SHAPES[0].name), None) if stage.order("warm_up") else None

    stage.before = before
    failed = run(folder, plan, tmp_path, together=True, iterations=1)
    reason = "its process ended with signal SIGKILL, in a warm-up before a's turn"
    assert failed == {"b latency_b1_i8_o4_0_0": reason}
    step = next(each for each in plan if each.kind == "latency" and each.arm == "b")
    found = folder.result(step)
    assert found is not None
    assert (found["status"], found["error"], found["output"]) == ("failed", reason, ["arm b began"])
    assert run(folder, plan, tmp_path, together=True, iterations=1) == {}


def test_a_second_ctrl_c_leaves_no_arm_alive(stage: Stage, tmp_path: Path) -> None:
    def before(_: str, task: str) -> None:
        if task in ("measure", "end"):
            raise KeyboardInterrupt

    stage.before = before
    with pytest.raises(KeyboardInterrupt):
        run(RunFolder(tmp_path / "run"), ordered("interleaved", 2), tmp_path, together=True, iterations=1)
    assert (stage.most_alive, stage.alive) == (2, set())


@pytest.mark.parametrize("mode", ["sequential", "reloaded", "interleaved"])
def test_a_run_that_is_killed_anywhere_ends_as_an_undisturbed_one(
    stage: Stage, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = mode == "interleaved"
    plan = ordered(mode, 2 if mode != "sequential" else 1)
    more = {"together": together, "iterations": 1 if together else 2}
    whole = RunFolder(tmp_path / "whole")
    run(whole, plan, tmp_path, **more)
    answers = len(stage.asked)
    for at in [*random.Random(1).sample(range(answers), 8), 0]:
        folder = RunFolder(tmp_path / f"killed-{at}")
        left = [at]

        def before(arm: str, task: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        stage.before = before
        monkeypatch.setattr(Executor, "__exit__", lambda *_: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            run(folder, plan, tmp_path, **more)
        monkeypatch.undo()
        monkeypatch.setattr(execute, "ArmProcess", stage)
        stage.before = lambda arm, task: None
        assert run(folder, plan, tmp_path, **more) == {}
        ours, theirs = contents(folder), contents(whole)
        assert ours.keys() == theirs.keys()
        assert {name for name in ours if ours[name] != theirs[name]} <= {
            name for name in ours if name.endswith(".npz") or "load_" in name
        }


def test_half_a_round_is_repeated_whole(stage: Stage, tmp_path: Path) -> None:
    folder, plan = RunFolder(tmp_path / "run"), ordered("interleaved", 2)
    run(folder, plan, tmp_path, together=True, iterations=1)
    torn = [step for step in plan if step.kind == "latency"][5]
    folder.file(torn).unlink()
    assert [(step.shape, step.block) for step in folder.missing(plan)] == [(torn.shape, torn.block)] * 4


def test_two_runs_in_one_folder_exclude_each_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    other = RunFolder(tmp_path / "run")
    with folder.locked(0), pytest.raises(UsageError, match="Another run is at work"), other.locked(0.3):
        pass
    with folder.locked(0):
        pass
