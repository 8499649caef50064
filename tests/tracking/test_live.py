"""What MLflow hears while a run measures, and that its trouble costs seconds in all."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from moe_eval.tracking import patience
from moe_eval.tracking.live import Live

SHAPE = "b1_i512_o257"
TURNS = [("bf16", 0), ("fp8", 0), ("fp8", 1), ("bf16", 1)]


def task(arm: str, name: str) -> Any:
    return SimpleNamespace(arm=arm, name=name)


def planned(folder: Path) -> list[Any]:
    """Quality of one arm and turns of two, with what each leaves on disk."""
    tasks = [task("bf16", "quality"), *(task(arm, f"latency_{SHAPE}_0_{turn}") for arm, turn in TURNS)]
    for entry in tasks:
        samples = [{"last": {"host": seconds}} for seconds in (0.1, 0.3, 0.2)]
        content = {"latency": {"samples": samples}} if "latency" in entry.name else {"quality": {"perplexity": 9.5}}
        file = folder / "arms" / entry.arm / f"{entry.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"status": "finished", **content}))
    return tasks


def test_figures_come_by_step_and_only_where_no_arm_waits(store: Path, tmp_path: Path) -> None:
    tasks = planned(tmp_path)
    client = mlflow.MlflowClient()
    run_id = client.create_run(client.create_experiment("moe_eval")).info.run_id
    live = Live(tmp_path, "run", run_id, tasks)
    counts = []
    for entry in tasks:
        live.done(entry, None)
        counts.append(client.get_run(run_id).data.metrics["progress/tasks_done"])
    assert counts == [1, 1, 1, 1, 5], "nothing is sent between turns"
    metrics = client.get_run(run_id).data.metrics
    assert metrics["progress/bf16/token_ppl"] == 9.5
    assert metrics[f"progress/fp8/{SHAPE}/e2e_ms"] == 200
    assert [entry.step for entry in client.get_metric_history(run_id, "progress/tasks_done")] == [1, 5]
    Live(tmp_path, "run", run_id, tasks).done(tasks[0], None)  # a run that was killed goes on
    history = client.get_metric_history(run_id, "progress/tasks_done")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1), (5, 5), (6, 6)]


def test_a_task_that_failed_or_left_nothing_readable_has_no_figure(store: Path, tmp_path: Path) -> None:
    tasks = [planned(tmp_path)[0], task("bf16", "noise")]
    (tmp_path / "arms" / "bf16" / "noise.json").write_text("{")
    client = mlflow.MlflowClient()
    run_id = client.create_run(client.create_experiment("moe_eval")).info.run_id
    live = Live(tmp_path, "run", run_id, tasks)
    live.done(tasks[0], "out of memory")
    assert client.get_run(run_id).data.metrics == {}
    live.done(tasks[1], None)
    assert client.get_run(run_id).data.metrics == {"progress/tasks_done": 1}


def test_a_server_that_never_answers_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(patience._BRIEF, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tasks = [task("bf16", f"kernels_{number}") for number in range(20)]
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        before = dict(os.environ)
        live = Live(tmp_path, "run", "0" * 32, tasks)
        began = time.monotonic()
        for entry in tasks:
            live.done(entry, None)
        assert time.monotonic() - began < 15, "20 tasks would wait 20 times"
    assert dict(os.environ) == before
    assert capfd.readouterr().err == ""
