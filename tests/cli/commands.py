"""Commands that tests of the command line start or call."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_eval.cli import execute

PROGRAM = "import sys; from moe_eval.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, the folder of its records, and its output."""

    code: int
    folder: Path
    out: str
    err: str


def start(words: str, scratch: Path) -> Ended:
    """Run a command as a process without a GPU, and wait for it."""
    folder = scratch / "records"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *shlex.split(words), "--output_dir", str(folder)],
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'own.db'}",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Ended(done.returncode, folder, done.stdout, done.stderr)


def cells(out: str) -> list[dict[str, str]]:
    """The rows of a printed table by the heads of its columns."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in out.splitlines() if line[:1] == "|"]
    heads, _, *rows = lines or [[], []]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def quiet_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log to no MLflow."""
    logged = SimpleNamespace(describe=lambda: "run 0 of no store")
    store = SimpleNamespace(open_run=lambda *_: logged, log=lambda *_: logged)
    monkeypatch.setattr(execute, "plan_run", store)
