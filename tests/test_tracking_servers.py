"""A run of `moe-eval run` in real servers on loopback: MLflow over SQLite, and over PostgreSQL where it is here."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from moe_eval import records
from moe_eval.cli import main
from moe_eval.report import write as report
from moe_eval.results import read
from moe_eval.runner.folder import RunFolder
from tests.recorded_arms import arm, ppl, scores, write

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


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


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """PostgreSQL on loopback, which refuses to run as root, in a folder that its user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        data, as_user = Path(folder) / "data", {}
        data.mkdir()
        if os.getuid() == 0:
            Path(folder).chmod(0o755)
            shutil.chown(data, "nobody")
            as_user = {"user": "nobody"}
        with cluster(data, as_user) as uri:
            yield uri


@contextlib.contextmanager
def cluster(data: Path, as_user: Any) -> Iterator[str]:
    binaries, port = POSTGRES[-1].parent, free_port()
    subprocess.run([binaries / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], check=True, capture_output=True,
                   **as_user)  # fmt: skip
    options = ["-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}"]
    running = subprocess.Popen([binaries / "postgres", *options], stderr=subprocess.DEVNULL, **as_user)
    try:
        end = time.monotonic() + 60
        while subprocess.run([binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True,
                             check=False).returncode:  # fmt: skip
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        running.terminate()
        running.wait(30)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two arms, made from records."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    folder.mkdir()
    reference = scores()
    arms = [arm("bf16", {1: [[100.0, 101.0]] * 3, 8: [[200.0, 202.0]] * 3}),
            arm("fp8", {1: [[90.0, 91.0]] * 3, 8: [[150.0, 151.0]] * 3}, reference="bf16")]  # fmt: skip
    write(folder, arms)
    for name, other in (("bf16", reference), ("fp8", scores(0.01))):
        records.write_json(folder / f"ppl_{name}_sm90.json", ppl(name, other, ("bf16", reference)))
    RunFolder(folder).write_run({
        "run_id": "f" * 32, "status": "finished", "error": None, "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T01:00:00+00:00", "asked": {"batch_size": "1,8"}, "skipped": [], "steps": 4,
        "evaluators": {"bf16": ["perplexity", "latency"], "fp8": ["perplexity", "latency"]}, "schedule": {"mode": "x"},
        "machine": {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}, "versions": {"mlflow": "3"}, "git": None,
    })  # fmt: skip
    report.conclude(read(folder), folder, {})
    return folder


def logged(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log the run twice and look at what the server has."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    found = []
    for _ in range(2):
        assert main(["log", str(folder)]) == 0
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
        found.append({each.info.run_name: each for each in runs})
    first, again = found
    assert {name: each.info.run_id for name, each in first.items()} == {
        name: each.info.run_id for name, each in again.items()
    }
    assert {name: each.info.status for name, each in again.items()} == dict.fromkeys(
        ("moe-eval run", "bf16", "fp8"), "FINISHED"
    )
    assert again["bf16"].data.metrics.keys() == again["fp8"].data.metrics.keys()
    assert again["fp8"].data.metrics["speed/b8_i512_o257/e2e_ms"] == pytest.approx(150.5)
    assert again["fp8"].data.metrics["quality/ln_ppl_ratio"] == pytest.approx(0.01, abs=0.002)
    parent = again["moe-eval run"].info.run_id
    page = Path(client.download_artifacts(parent, "report.html", str(folder.parent))).read_text(encoding="utf-8")
    assert page == (folder / "report.html").read_text(encoding="utf-8")


def test_a_remote_server_takes_a_run_once(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path, f"sqlite:///{tmp_path / 'server.db'}") as uri:
        logged(uri, recorded, monkeypatch)


@pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed here")
def test_a_server_over_postgresql_takes_a_run_once(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed here")
    with postgres() as backend, served(tmp_path, backend) as uri:
        logged(uri, recorded, monkeypatch)


def test_a_server_that_is_gone_costs_nothing_but_the_exit_code(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert main(["log", str(recorded)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"nothing is lost: log it later with `moe-eval log {recorded}`.")
