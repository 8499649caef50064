"""Commands that tests of the command line start or call."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from moe_eval.cli import main
from moe_eval.machine import hardware
from moe_eval.runner import arm_process
from tests.doubles import forks


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, the folder of its records, and its output."""

    code: int
    folder: Path
    out: str
    err: str


Command = Callable[..., Ended]


def start(words: str, scratch: Path, forked: Path) -> Ended:
    """Run a command in this process, its arms in processes forked by a server, without a GPU."""
    folder, out, err = scratch / "records", scratch / "out", scratch / "err"
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_gpu(scratch)).setattr(arm_process, "subprocess", forks.arms(forked))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(out.open("w"))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(err.open("w"))))
        code = main([*shlex.split(words), "--output_dir", str(folder)])
    return Ended(code, folder, out.read_text(), err.read_text())


@contextlib.contextmanager
def without_gpu(scratch: Path) -> Iterator[pytest.MonkeyPatch]:
    """See no GPU, and log to an MLflow of one's own, which may lie there already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "gpus", lambda: ())
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{scratch / 'own.db'}")
        yield patch


def cells(out: str, table: int = 0) -> list[dict[str, str]]:
    """The rows of a printed table by the heads of its columns, of the first one or another."""
    blocks = [list(lines) for is_table, lines in groupby(out.splitlines(), lambda line: line[:1] == "|") if is_table]
    if table >= len(blocks):
        return []
    heads, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in blocks[table]]
    return [dict(zip(heads, row, strict=True)) for row in rows]
