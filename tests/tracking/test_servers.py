"""A run of `moe-eval run` in real servers on loopback: MLflow over SQLite, and over PostgreSQL where it is here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from moe_eval.cli import main
from tests.doubles.harness_runs import arm_of
from tests.doubles.servers import free_port, served

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """PostgreSQL on loopback, which refuses to run as root, in a folder that its user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        as_user: Any = {}
        if os.getuid() == 0:
            Path(folder).chmod(0o755)
            shutil.chown(data, "nobody")
            as_user = {"user": "nobody"}
        with cluster(data, as_user) as uri:
            yield uri


@contextlib.contextmanager
def cluster(data: Path, as_user: Any) -> Iterator[str]:
    binaries, port = POSTGRES[-1].parent, free_port()
    options_of_data = ["-D", data, "-U", "mlflow", "-A", "trust", "--no-locale", "-E", "UTF8"]
    subprocess.run([binaries / "initdb", *options_of_data], check=True, capture_output=True, **as_user)
    options = ["-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}"]
    running = subprocess.Popen([binaries / "postgres", *options], stderr=subprocess.DEVNULL, **as_user)
    try:
        end = time.monotonic() + 60
        while subprocess.run(
            [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        running.send_signal(signal.SIGINT)  # which waits for no client
        running.wait(30)


def logged(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log the run twice and look at what the server has."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    logs = []
    for _ in range(2):
        assert main(["log", str(folder)]) == 0
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        logs.append({arm_of(run): run for run in runs})
    first, again = logs
    assert first.keys() == {"parent", "bf16", "fp8"}
    assert {run.info.run_id for run in first.values()} == {run.info.run_id for run in again.values()}
    assert {run.info.status for run in again.values()} == {"FINISHED"}
    bf16, fp8 = (again[arm].data.metrics for arm in ("bf16", "fp8"))
    assert fp8.keys() > bf16.keys()
    assert fp8["latency/b8_i512_o257/e2e_ms"] == pytest.approx(150.5)
    assert fp8["latency/b8_i512_o257/speedup"] == pytest.approx(1.336, abs=0.001)
    assert bf16["latency/b8_i512_o257/speedup"] == 1
    assert fp8["quality/ln_ppl_ratio"] == pytest.approx(0.01, abs=0.002)
    parent = again["parent"].info.run_id
    assert "report.png" in {file.path for file in client.list_artifacts(parent)}
    page = Path(client.download_artifacts(parent, "report.html", str(folder.parent))).read_text(encoding="utf-8")
    assert page == (folder / "report.html").read_text(encoding="utf-8")


def test_a_remote_server_takes_a_run_once(
    recorded: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, f"sqlite:///{store}") as uri:
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
    assert line.endswith(f"Nothing is lost: log it later with `moe-eval log {recorded}`.")
