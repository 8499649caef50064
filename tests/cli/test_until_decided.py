"""Runs until decided, on made-up arms: how often they load, and that a resumed one ends where it did."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from moe_eval.records import disk
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.verdicts import Verdict
from moe_eval.runner import fit
from tests.cli.commands import Command, Ended
from tests.doubles.arm_process import Stage, number

COMMAND = [
    *("perf", "--dataset", "moe_sample", "--input_len", "16", "--output_len", "4", "--num_iterations", "4"),
    *("--precisions", "bf16,fp16", "--until", "decided"),
]
FAR = {"bf16": 1.5, "fp16": 1.0}
FOR_ONE = int(1.5 * 2**30)  # bytes of memory that hold one arm of the shipped model and not two


def far_apart() -> Stage:
    """Arms of which one is 1.5 times as fast. Loads scatter by less than 0.3 %."""
    stage = Stage()
    stage.seconds = lambda arm, _: FAR[arm] * (1 + 0.003 * number(arm, len(stage.order("load"))))
    return stage


def alike() -> Stage:
    """Arms of one speed, whose loads scatter by more than any of them could show."""
    stage = Stage()
    stage.seconds = lambda arm, _: 1 + 0.2 * number(arm, len(stage.order("load")))
    return stage


def loads(stage: Stage) -> int:
    """How often the first arm was loaded to be timed."""
    return len({request.process for request in stage.asked if (request.task, request.arm) == ("measure", "bf16")})


def run_of(ended: Ended) -> dict[str, Any]:
    return dict(json.loads((ended.folder / "perf_run.json").read_text()))


def records_of(ended: Ended) -> list[LatencyRecord]:
    files = sorted(ended.folder.glob("perf_*_cpu.json"))
    return [disk.read_record(file, LatencyRecord, schemas=(2,), maker="moe-eval perf") for file in files]


def verdict_of(ended: Ended) -> Verdict:
    file = ended.folder / "perf_comparison.json"
    (pair,) = disk.read_record(file, ComparisonRecord, schemas=(2,), maker="moe-eval perf").pairs
    return pair.verdict


@pytest.mark.parametrize("free", [1 << 40, FOR_ONE])
def test_arms_that_are_far_apart_are_loaded_three_times(
    command: Command, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(fit, "memory", lambda _: free)
    stage = far_apart()
    ended = command(stage=stage)
    assert (ended.code, loads(stage), verdict_of(ended)) == (0, 3, Verdict.PAYS)
    assert stage.most_alive == (2 if free > FOR_ONE else 1)
    run = run_of(ended)
    assert (run["status"], run["ended_after"], run["schedule"]["loads"]) == ("finished", 3, 8)
    for record in records_of(ended):
        assert (record.status, record.error) == (Status.FINISHED, None)
        assert [[len(load) for load in row.loads] for row in record.shapes] == [[1, 1, 1]]


def test_arms_that_are_alike_are_loaded_as_often_as_is_allowed(command: Command) -> None:
    stage = alike()
    ended = command("--max_loads", "5", stage=stage)
    assert (ended.code, loads(stage), verdict_of(ended)) == (0, 5, Verdict.OPEN)
    assert (run_of(ended)["status"], run_of(ended)["ended_after"]) == ("finished", None)
    assert [record.status for record in records_of(ended)] == [Status.FINISHED] * 2


def test_a_smaller_gain_that_has_to_be_shown_takes_more_loads(command: Command) -> None:
    """1.5 times as fast is 1.2 times as fast sooner than it is 1.499 times as fast."""
    few, many = far_apart(), far_apart()
    assert verdict_of(command("--min_gain", "0.2", stage=few)) is Verdict.PAYS
    command("--min_gain", "0.499", stage=many)
    assert loads(few) == 3 < loads(many)


def test_a_run_that_ended_early_has_nothing_left_to_do(command: Command) -> None:
    before = command(stage=far_apart())
    files = {file: file.read_bytes() for file in before.folder.glob("perf_*.json")}
    stage = alike()
    ended = command("--resume", stage=stage)
    assert (ended.code, stage.asked, verdict_of(ended)) == (0, [], Verdict.PAYS)
    assert {file: file.read_bytes() for file in files} == files


def test_a_run_that_ended_early_measures_again_what_is_torn_and_loads_no_more(command: Command) -> None:
    folder = command(stage=far_apart()).folder
    (folder / "perf_arms" / "fp16" / "latency_b1_i16_o4_2_0.json").unlink()
    stage = far_apart()
    ended = command("--resume", stage=stage)
    assert (ended.code, loads(stage), run_of(ended)["ended_after"]) == (0, 1, 3)
    assert stage.order("measure") == ["bf16", "fp16"]
    assert [record.status for record in records_of(ended)] == [Status.FINISHED] * 2


def test_a_run_that_was_stopped_goes_on_until_it_is_decided(command: Command) -> None:
    stage = alike()
    stage.fails["fp16", "measure", 3] = KeyboardInterrupt()
    ended = command("--max_loads", "5", stage=stage)
    assert (ended.code, run_of(ended)["status"]) == (130, "killed")
    stage = alike()
    ended = command("--max_loads", "5", "--resume", stage=stage)
    assert (ended.code, loads(stage)) == (0, 2), "the fourth and the fifth"
    assert [len(row.loads) for record in records_of(ended) for row in record.shapes] == [5, 5]


def test_no_load_begins_after_the_minutes_that_are_allowed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, clock = alike(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def before(arm: str, task: str) -> None:
        clock[0] += 20 * (task == "load")

    stage.before = before
    ended = command("--max_minutes", "3", stage=stage)
    # 2 arms, to be timed and once to tell routing: 160 s after three loads, 200 s after four
    assert (ended.code, loads(stage), run_of(ended)["ended_after"]) == (0, 4, 4)
    assert verdict_of(ended) is Verdict.OPEN
    assert [record.status for record in records_of(ended)] == [Status.FINISHED] * 2


def test_an_arm_that_always_fails_ends_no_run_and_no_load_decides(command: Command) -> None:
    stage = far_apart()
    stage.fails["fp16", "load"] = "out of memory"
    ended = command("--max_loads", "4", stage=stage)
    assert (ended.code, loads(stage)) == (1, 3), "no pair is open, so no further load would decide anything"
    assert [record.status for record in records_of(ended)] == [Status.FINISHED, Status.FAILED]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max_minutes", "5"], "--max_minutes is for --until decided. Give both, or leave --max_minutes out."),
        (["--gate", "fp9:speed>=1"], "moe-eval: --gate has 'fp9:speed>=1', and the arms are bf16, fp16."),
        (["--gate", "fp9:energy>=1.1"], "moe-eval: --gate has 'fp9:energy>=1.1', and the arms are bf16, fp16."),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setattr("tests.cli.test_until_decided.COMMAND", COMMAND[:-2])
    stage = Stage()
    ended = command(*arguments, stage=stage)
    assert (ended.code, stage.asked, ended.folder.exists()) == (2, [], False)
    assert sentence in ended.err.splitlines()[-1]
