"""Commands of the harness run in this process, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]


def run_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("benchmark_results/*"))


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "record.json").read_text(encoding="utf-8"))
    return content


def samples(run: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"samples_{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def sentence(ended: Ended) -> str:
    """The one sentence that a command of a user's mistake ends with."""
    assert ended.code == 2, ended.err[-3000:]
    assert "Traceback" not in ended.err
    (message,) = [line for line in ended.err.splitlines() if line.startswith("moe_eval: ")]
    return message
