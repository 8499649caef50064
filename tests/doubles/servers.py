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
from dataclasses import replace
from pathlib import Path

from moe_eval.comparison import pairs
from moe_eval.records import by_arm, disk
from moe_eval.records.comparison import COMPARISON_FILE
from moe_eval.report import write as report
from tests.doubles.recorded_arms import RUN, arm, quality, run, scores, write


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def served(folder: Path, backend: str) -> Iterator[str]:
    """`mlflow server` on loopback, which keeps artifacts as well."""
    port = free_port()
    where = f"--host 127.0.0.1 --port {port} --workers 1".split()
    stores = ["--backend-store-uri", backend, "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *where, *stores]
    # else it starts processes for jobs that nobody submits, each of which imports MLflow
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=variables)
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
    """A finished run of two arms with its comparison and report, made from records."""
    folder.mkdir()
    speeds = {"bf16": ([[100.0, 101.0]] * 3, [[200.0, 202.0]] * 3), "fp8": ([[90.0, 91.0]] * 3, [[150.0, 151.0]] * 3)}
    arms = []
    for name, worse in (("bf16", 0.0), ("fp8", 0.01)):
        small, large = speeds[name]
        of = scores(worse)
        of.save(folder / f"ppl_{name}_sm90.npz")
        arms.append(replace(arm(name, {1: small, 8: large}), quality=quality(name, of)))
    record = run([recorded.name for recorded in arms], ("quality", "latency"), run_id=RUN)
    write(folder, arms, record=record)
    comparison = pairs.compare(by_arm.read(folder))
    disk.write_record(folder / COMPARISON_FILE, comparison)
    report.write(comparison, folder, "report.html", "report.md", record)
    return folder
