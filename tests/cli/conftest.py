"""A command of run, perf or ppl on arms that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_eval.cli import execute, main
from moe_eval.engines import registry
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.tracking import Logged
from tests.cli.commands import Command, Ended
from tests.doubles import plays
from tests.doubles.arm_process import Stage


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None) -> None:
    """What a chart shows is no matter of this room."""


@pytest.fixture
def command(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run the module's COMMAND in this process on a stage of arms named by their precision, and log to no MLflow."""
    logged = Logged("no store", "moe_eval", "0", "0")
    monkeypatch.setattr(execute, "Live", lambda *_: SimpleNamespace(done=lambda *_: None))
    monkeypatch.setattr(execute, "plan_run", SimpleNamespace(open_run=lambda *_: logged, log=lambda *_: logged))
    plays.set_up(monkeypatch)
    monkeypatch.setattr(registry, "check", registry.named)
    folder = tmp_path / "out"

    def run(
        *arguments: str, stage: Stage | None = None, gpus: tuple[Gpu, ...] = (), defaults: Sequence[str] = ()
    ) -> Ended:
        for place in ("loads", "machine_rates"):
            monkeypatch.setattr(f"moe_eval.runner.{place}.ArmProcess", stage or Stage())
        monkeypatch.setattr(hardware, "gpus", lambda: gpus)
        code = main([*(defaults or request.module.COMMAND), "--output_dir", str(folder), *arguments])
        return Ended(code, folder, *capsys.readouterr())

    return run
