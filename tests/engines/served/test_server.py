"""Servers of engines: started, awaited and stopped, also where they never get ready, end or ignore what ends them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moe_eval.engines.served import server as processes
from moe_eval.engines.served.server import ServerProcess
from moe_eval.engines.serving import HOST, asked, free_port, local
from moe_eval.errors import EngineError, UsageError
from moe_eval.machine import guard
from tests.doubles import server_command
from tests.doubles.arm_process import FACTS
from tests.doubles.executed import in_a_process

COMMAND = Path(server_command.__file__)


def started(play: str) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port(None)
    return processes.start("Made up", [sys.executable, "-S", str(COMMAND), str(port), play], {}), port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def test_a_server_answers_and_leaves_neither_process_nor_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody answers
    process, port = started("serve")
    processes.await_ready("Made up", process, port, 20)
    served = ServerProcess("Made up", process, local(port, "x"), FACTS)
    served.check()
    assert asked("GET", port, "/v1/models", 5).ok
    served.close()
    assert process.poll() is not None
    assert is_free(port)


def test_one_that_never_gets_ready_is_stopped_after_its_time() -> None:
    process, port = started("never")
    with pytest.raises(EngineError, match=r"did not get ready within 0\.3 s\. .*--timeout"):
        processes.await_ready("Made up", process, port, 0.3)
    assert process.poll() is not None
    assert is_free(port)


def test_one_that_ends_before_it_is_ready_is_not_awaited() -> None:
    process, port = started("ends")
    with pytest.raises(EngineError, match="ended with code 7 before it was ready"):
        processes.await_ready("Made up", process, port, 20)


def test_one_that_ended_later_is_told_by_its_signal() -> None:
    process, port = started("serve")
    processes.await_ready("Made up", process, port, 20)
    process.kill()
    process.wait()
    with pytest.raises(EngineError, match="ended with signal SIGKILL"):
        ServerProcess("Made up", process, local(port, "x"), FACTS).check()


def test_one_that_ignores_its_end_goes_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_END_SECONDS", 0.3)
    process, port = started("stubborn")
    processes.await_ready("Made up", process, port, 20)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    processes.stop(process)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert is_free(port)


def test_a_port_in_use_is_one_sentence_and_its_fix() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as refused:
            free_port(port)
    assert str(refused.value) == f"Port {port} is in use. Give another --port, or leave it out for a free one."
    assert free_port(port) == port


def test_neither_process_nor_port_outlives_a_runner_that_is_killed() -> None:
    """The server is in the session of its arm's process, which a guard ends with the runner."""
    answers, ready = os.pipe()

    def runner() -> None:
        arm = os.fork()
        if arm == 0:
            os.setsid()
            process, port = started("serve")
            processes.await_ready("Made up", process, port, 20)
            os.write(ready, f"{process.pid} {port}".encode())
            time.sleep(60)
        guard.start(os.getpid(), arm)
        time.sleep(60)

    killed = in_a_process(runner)
    pid, port = map(int, os.read(answers, 64).split())
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert is_free(port)


def test_a_command_that_is_not_there_is_told() -> None:
    with pytest.raises(EngineError, match="cannot be started"):
        processes.start("Made up", ["/nowhere/serve"], {})
