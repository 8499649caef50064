"""Servers on loopback, and a recorded run for them to hold."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from moe_eval.records import disk
from moe_eval.records.by_arm import read
from moe_eval.report import write as report
from moe_eval.runner.folder import RunFolder
from tests.recorded_arms import arm, ppl, scores, write


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def served(folder: Path, backend: str) -> Iterator[str]:
    """`mlflow server` on loopback, which keeps artifacts as well."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            assert running.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, 15)
        running.wait(30)


def recorded_run(folder: Path) -> Path:
    """A finished run of two arms, made from records."""
    folder.mkdir()
    reference = scores()
    arms = [arm("bf16", {1: [[100.0, 101.0]] * 3, 8: [[200.0, 202.0]] * 3}),
            arm("fp8", {1: [[90.0, 91.0]] * 3, 8: [[150.0, 151.0]] * 3}, reference="bf16")]  # fmt: skip
    write(folder, arms)
    for name, other in (("bf16", reference), ("fp8", scores(0.01))):
        disk.write_json(folder / f"ppl_{name}_sm90.json", ppl(name, other, ("bf16", reference)))
    RunFolder(folder).write_run({
        "run_id": "f" * 32, "status": "finished", "error": None, "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T01:00:00+00:00", "asked": {"batch_size": "1,8"}, "skipped": [], "steps": 4,
        "evaluators": {"bf16": ["perplexity", "latency"], "fp8": ["perplexity", "latency"]}, "schedule": {"mode": "x"},
        "machine": {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}, "versions": {"mlflow": "3"}, "git": None,
    })  # fmt: skip
    report.conclude(read(folder), folder, {})
    return folder
