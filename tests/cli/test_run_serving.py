"""`moe-eval run --evaluators serving` on the shipped model, driven by a stand-in of AIPerf's command."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from moe_eval.data.served_requests import Lengths, of_stream
from moe_eval.engines.served import server as processes
from moe_eval.engines.served.server import ServerProcess
from moe_eval.engines.serving import free_port, local
from moe_eval.errors import UsageError
from moe_eval.evaluators import load_generator
from moe_eval.runner import served_tasks
from tests.cli.commands import Command, Ended, start
from tests.conftest import SHIPPED
from tests.doubles import aiperf, server_command
from tests.doubles.arm_process import FACTS, Stage

COMMAND = ("run", "--precisions", "bf16,fp32", "--evaluators", "serving", "--dataset", "moe_sample")
SMALL = "--dataset moe_sample --input_len 8 --output_len 4 --num_requests 4 --loads 1 --concurrency 1,2 --quiet"


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def generators(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.fixture(scope="module")
def ran(empty_store: Path, forked: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A run of two arms at two points, whose servers are the shipped model's."""
    scratch = tmp_path_factory.mktemp("serving")
    shutil.copy(empty_store, scratch / "own.db")
    with pytest.MonkeyPatch.context() as patch:
        generators(patch, aiperf.install(scratch / "bin"))
        return start(f"run --precisions bf16,fp32 --evaluators serving {SMALL}", scratch, forked)


def test_both_arms_are_served_at_every_point(ran: Ended) -> None:
    assert ran.code == 0, ran.err
    records = [read(ran.folder / f"serving_{arm}_cpu.json") for arm in ("bf16", "fp32")]
    assert [record["status"] for record in records] == ["finished"] * 2
    assert len({record["workload"]["digest"] for record in records}) == 1
    assert [record["labels"]["engine"]["precision"] for record in records] == ["bf16", "fp32"]
    for record in records:
        assert [point["name"] for point in record["points"]] == ["c1_i8_o4", "c2_i8_o4"]
        for point, count in zip(record["points"], (10, 20), strict=True):
            (load,) = point["loads"]
            assert load["times"]["output_tokens"] == [4] * count
            assert load["times"]["input_tokens"] == [8] * count
            assert (ran.folder / load["folder"] / "profile_export.jsonl").is_file()
            assert point["metrics"]["tok_s_per_user"]["median"] > 0


def test_neither_a_process_nor_a_port_is_left(ran: Ended) -> None:
    names = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [name for name in names if str(ran.folder) in name]
    listening = [entry for entry in psutil.Process().net_connections() if entry.status == psutil.CONN_LISTEN]
    assert not [entry for entry in listening if entry.laddr.ip == "127.0.0.1" and entry.pid is None]


def refused(ended: Ended) -> str:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert not (ended.folder / "arms").exists(), "before a load"
    return ended.err.splitlines()[-1]


def test_a_port_in_use_is_refused_before_a_load(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generators(monkeypatch, aiperf.install(tmp_path / "bin"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refused(command("--port", str(port), "--input_len", "8", "--output_len", "4"))
    assert f"Port {port} is in use. Give another --port" in sentence


def test_what_cannot_be_driven_is_refused_before_a_load(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no load to serve" in refused(command("--concurrency", "0"))
    assert "--tpot_ms 0 is no time" in refused(command("--tpot_ms", "0"))
    assert "--ttft_ms -3 is no time" in refused(command("--ttft_ms", "-3"))
    generators(monkeypatch, aiperf.install(tmp_path / "bin"))
    assert "has 4352 tokens" in refused(command("--input_len", "4096"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "needs AIPerf, and aiperf is not on PATH. Install it" in refused(command("--input_len", "8"))


def test_an_emulated_arm_is_not_served(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generators(monkeypatch, aiperf.install(tmp_path / "bin"))
    options = ("--precisions", "bf16,fp8", "--emulate", "--input_len", "8", "--output_len", "4", "--loads", "1")
    ended = command("--concurrency", "2", "--request_rate", "9.5", *options, stage=Stage())
    assert "skipped: fp8 serving: it is emulated" in ended.out
    assert "serving: c2, r9.5; 1 load of every server, one at a time" in ended.out
    assert (ended.folder / "serving_bf16_cpu.json").is_file()
    assert not (ended.folder / "serving_fp8_cpu.json").exists()


def test_aiperf_itself_drives_the_stand_in_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stand-in of AIPerf writes is what AIPerf writes: names of options, of files and of metrics."""
    try:
        generator = load_generator.executable()
    except UsageError:
        pytest.skip("AIPerf is not installed (pipx install aiperf)")
    monkeypatch.setenv("PATH", f"{Path(generator).parent}:/usr/bin:/bin")
    port = free_port(None)
    command = [sys.executable, "-S", str(Path(server_command.__file__)), str(port), "serve"]
    process = processes.start("Made up", command, {})
    processes.await_ready("Made up", process, port, 20)
    served = ServerProcess("Made up", process, local(port, "x"), FACTS, f"http://127.0.0.1:{port}/metrics")
    requests = of_stream(range(8, 1000), [Lengths(4, 3)], 14, "counted")
    (tmp_path / "requests.json").write_bytes(msgspec.json.encode(requests))
    try:
        load = served_tasks.serving(
            served,
            None,
            order={
                "requests": str(tmp_path / "requests.json"),
                "point": {"concurrency": 2},
                "count": 12,
                "warm_up": 2,
                "tokenizer": str(SHIPPED),
            },
            folder=str(tmp_path / "raw"),
        )
    finally:
        served.close()
    assert load.times.output_tokens == (3,) * 12
    assert load.times.input_tokens == (4,) * 12
    assert load.state.running == 3.0
    assert load.generator.startswith("aiperf 0.")
