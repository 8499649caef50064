"""`moe-eval run --gate`: it ends with the gate's code, whatever else goes wrong, and never holds on half of what was
asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.cli import execute as command
from moe_eval.cli import main
from moe_eval.records import disk
from moe_eval.records.run import RUN_FILE
from moe_eval.runner.folder import RunFolder
from tests.doubles.servers import free_port

OPTIONS = [
    *("run", "--dataset", "moe_sample", "--input_len", "64", "--num_chunks", "2"),
    *("--evaluators", "quality"),
]
HOLDS, FAILS = "speed>=1.05,ln_ppl<=0.1", "speed>=9"
Ran = Callable[..., int]


@pytest.fixture
def ran(recorded: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """The command where tasks are replaced by what a recorded run of bf16 and fp8 has left."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, tmp_path / 'own.db')}")

    def run(*options: str, failed: int = 0) -> int:
        class Recorded:
            def __init__(self, request: Any, plan: Any, gpus: Any) -> None:
                self.request, self.folder, self.plan = request, request.folder, plan

            def check(self) -> None:
                """Everything recorded can be measured."""

            def execute(self, progress: Any, is_decided: Any) -> list[str]:
                shutil.copytree(recorded, self.folder, dirs_exist_ok=True)
                run = RunFolder(self.folder).run()
                disk.write_record(self.folder / RUN_FILE, replace(run, skipped=self.plan.skipped))
                progress.ready([])
                return ["a task failed"] * failed

        monkeypatch.setattr(command, "Run", Recorded)
        return main([*OPTIONS, "--output_dir", str(tmp_path / "out"), *options])

    return run


def test_the_exit_code_is_the_gate_s(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    precisions = ("--precisions", "bf16,fp8")
    assert ran(*precisions, "--gate", HOLDS) == 0
    assert ran(*precisions, "--gate", FAILS) == 1
    assert "speed>=9 fails for fp8 against bf16" in capsys.readouterr().out


def test_an_arm_that_was_skipped_keeps_the_gate_from_holding(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precisions = ("--precisions", "bf16,fp8,nvfp4")
    assert ran(*precisions, "--gate", HOLDS) == 2
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.endswith("so the gate cannot hold.")]
    assert line.startswith("nvfp4 was left out (")
    reason = line.removeprefix("nvfp4 was left out (").partition("), so")[0]
    for name in ("report.md", "comparison.json"):
        assert reason.split(";")[0] in (tmp_path / "out" / name).read_text(encoding="utf-8").replace("\\", "")
    assert ran(*precisions, "--gate", FAILS) == 1
    assert ran(*precisions) == 0


def test_a_gate_without_an_arm_that_runs_is_not_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--precisions", "nvfp4", "--dataset", "moe_sample", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--gate", "speed>=1.2"]) == 2
    shown = capsys.readouterr()
    assert "nvfp4 was left out (" in shown.out
    assert "No precision was left to run" in shown.err
    assert not (tmp_path / "out").exists()


def test_mlflow_s_trouble_does_not_swallow_the_gate(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    precisions = ("--precisions", "bf16,fp8")
    for gate, code in ((HOLDS, 0), (FAILS, 1)):
        assert ran(*precisions, "--gate", gate) == code
        shown = capsys.readouterr()
        assert f"{gate.split(',', maxsplit=1)[0]} {'fails' if code else 'holds'} for fp8 against bf16" in shown.out
        assert "log it later with `moe-eval log" in shown.err
    assert ran(*precisions) == 2


def test_tasks_that_failed_keep_the_gate_from_holding(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    precisions = ("--precisions", "bf16,fp8")
    for gate, code in ((HOLDS, 2), (FAILS, 1)):
        assert ran(*precisions, "--gate", gate, failed=1) == code
        shown = capsys.readouterr()
        assert "1 task of the run failed, so the gate cannot hold" in shown.out
        assert "--resume tries them again" in shown.err
    assert ran(*precisions, failed=1) == 1


@pytest.mark.parametrize("options", [["--gate", ""], ["--gate", "top1>=50"], ["--gate", "kld<=1_0", "--dry_run"]])
def test_what_is_no_gate_is_refused_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main([*OPTIONS, *options, "--output_dir", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(("moe-eval: --gate has ", "moe-eval: --gate is empty."))
    assert shown.out == ""
    assert not (tmp_path / "out").exists()
