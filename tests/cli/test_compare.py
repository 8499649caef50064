"""`moe-eval compare` on recorded arms: what is one measurement, what may be written where, and how it ends."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.cli import main
from moe_eval.records import disk
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.labels import Status
from moe_eval.records.run import RUN_FILE, Skipped
from moe_eval.runner.folder import RunFolder
from tests.doubles import recorded_arms as made

MS = {1: [[100.0, 101.0], [100.0, 99.0]] * 2}
FASTER = {1: [[80.0, 81.0], [80.0, 79.0]] * 2}


def folder(path: Path, *arms: Any) -> Path:
    path.mkdir()
    made.write(path, arms)
    return path


@pytest.fixture
def ran(recorded: Path, tmp_path: Path) -> Path:
    """A finished run of bf16 and fp8, which a test may change."""
    return Path(shutil.copytree(recorded, tmp_path / "ran"))


def compared(tmp_path: Path, *words: str | Path) -> int:
    return main(["compare", *map(str, words), "--output_dir", str(tmp_path / "out")])


def test_a_measurement_is_not_compared_with_itself(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ran, tmp_path / "copied")
    monkeypatch.chdir(tmp_path)
    for words in ((ran, ran), ("ran", "./ran/"), (ran, tmp_path / "copied")):
        assert compared(tmp_path, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "bf16 comes twice" in line
        assert "Give each source once." in line
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_command_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "one", made.arm("bf16", MS))
    two = folder(tmp_path / "two", made.arm("bf16", MS, run_id="f" * 32))
    assert compared(tmp_path, one, two) == 0
    assert "bf16@two" in capsys.readouterr().out


def test_a_run_s_own_comparison_is_kept(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder(tmp_path / "other", made.arm("nvfp4", FASTER, run_id="f" * 32))
    before = {name: (ran / name).read_bytes() for name in ("comparison.json", "report.html", "report.md")}
    monkeypatch.chdir(ran)
    for words in ((".", str(other)), (str(other), ".")):
        assert main(["compare", *words]) == 2
        assert "is the folder of a run" in capsys.readouterr().err
    assert {name: (ran / name).read_bytes() for name in before} == before
    assert main(["compare", str(ran)]) == 0  # all of this run and nothing else


@pytest.mark.parametrize("text", ["", "speed>1", "kld<=1_0"])
def test_what_is_no_gate_is_refused_before_anything_is_made(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert compared(tmp_path, ran, "--gate", text) == 2
    assert capsys.readouterr().err.startswith(("moe-eval: --gate has ", "moe-eval: --gate is empty."))
    assert not (tmp_path / "out").exists()


def test_a_gate_does_not_hold_on_half_an_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = made.arm("fp8", FASTER, status=Status.FAILED)
    both = folder(tmp_path / "both", made.arm("bf16", MS), half)
    assert compared(tmp_path, both, "--gate", "speed[b1]>=0.1") == 2
    assert "fp8 failed (out of memory), so the gate cannot hold" in capsys.readouterr().out
    assert compared(tmp_path, both, "--gate", "speed[b1]>=9") == 1


def test_a_gate_does_not_hold_where_a_run_left_an_arm_out(
    ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(ran).run()
    skipped = (Skipped("nvfp4", None, "there is no checkpoint"), Skipped("fp8", "kernels", "it is emulated"))
    disk.write_record(ran / RUN_FILE, replace(run, skipped=skipped))
    assert compared(tmp_path, ran, "--gate", "speed>=0.5") == 2
    assert "nvfp4 was left out (there is no checkpoint), so the gate cannot hold" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "- nvfp4 was left out (there is no checkpoint)." in report
    assert "there is no checkpoint" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    # another source has the arm
    times = {1: [[80.0, 81.0]] * 3, 8: [[100.0, 101.0]] * 3}
    other = folder(tmp_path / "other", made.arm("nvfp4", times, run_id="f" * 32))
    assert compared(tmp_path, ran, other, "--gate", "speed>=0.5") == 0
    # a run that was killed before it came to an arm
    disk.write_record(ran / RUN_FILE, replace(run, evaluators={**run.evaluators, "nvfp4": ("latency",)}))
    assert compared(tmp_path, ran, "--gate", "speed>=0.5") == 2


def test_a_gate_is_told_where_nothing_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = folder(tmp_path / "both", made.arm("bf16", MS), made.arm("fp8", FASTER, gpu="another"))
    assert compared(tmp_path, both, "--gate", "speed>=1") == 2
    assert "speed>=1 not decided for fp8 against bf16: not comparable" in capsys.readouterr().out
    assert compared(tmp_path, both) == 2


def test_the_verdict_of_an_arm_without_speed_has_its_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = made.scores()
    records = [made.quality("bf16", scores), made.quality("fp8", scores, emulated=True)]
    arms = [ArmRecords(record.arm, record.precision, quality=record) for record in records]
    assert compared(tmp_path, folder(tmp_path / "both", *arms)) == 0
    assert "\nfp8: Quality only, the speed of fp8 is open. " in capsys.readouterr().out


def test_one_arm_in_two_folders_pays_nothing_against_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "one", made.arm("bf16", MS))
    two = folder(tmp_path / "two", made.arm("bf16", FASTER, run_id="f" * 32))
    assert compared(tmp_path, one, two) == 0
    said = capsys.readouterr().out
    assert "pays" not in said.replace("does not pay", "")
    assert "bf16@two is bf16 measured a second time" in said
    assert "so something changed between the two runs, or something disturbed the measurement" in said


@pytest.mark.parametrize(("bound", "code"), [("speed>=0.9", 0), ("speed>=1.5", 1)])
def test_a_gate_holds_a_change_against_the_run_before_it(tmp_path: Path, bound: str, code: int) -> None:
    one = folder(tmp_path / "one", made.arm("bf16", MS))
    two = folder(tmp_path / "two", made.arm("bf16", FASTER, run_id="f" * 32))
    assert compared(tmp_path, one, two, "--gate", bound) == code


def test_one_precision_on_two_backends_may_pay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "one", made.arm("bf16", MS))
    two = folder(tmp_path / "two", made.arm("bf16", FASTER, run_id="f" * 32, moe_backend_observed="CUTLASS"))
    assert compared(tmp_path, one, two) == 0
    assert "bf16@two pays" in capsys.readouterr().out
