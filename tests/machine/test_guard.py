"""No process outlives the one that started it, however that one ends, and nobody else's process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moe_eval.machine import guard

# a leader with a child, one of a session of its own that a third one started, and one of before
_PROGRAM = '''
import os, signal, subprocess, sys, time
from moe_eval.machine import guard
sleep = ["sleep", "300"]
before = subprocess.Popen(sleep)
nested = f"""if True:
    import subprocess, time
    print(subprocess.Popen({sleep}, start_new_session=True).pid, flush=True)
    time.sleep(300)"""
def begin():
    return subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE, text=True)
if sys.argv[1] == "session":
    arm = subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE, text=True, start_new_session=True)
    guard.start(os.getpid(), arm.pid)
    begun = [arm.pid, int(arm.stdout.readline())]
else:
    with guard.started_meanwhile():
        fork = os.fork()
        if not fork:
            time.sleep(300)
        arm = begin()
        begun = [arm.pid, int(arm.stdout.readline()), fork]
        time.sleep(0.6)
    time.sleep(0.6)
after = subprocess.Popen(sleep)
print(*begun, before.pid, after.pid, flush=True)
time.sleep(300)
'''


def _wait(processes: list[psutil.Process]) -> None:
    end = time.monotonic() + 20
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["session", "children"])
def test_all_that_is_guarded_ends_with_a_process_that_is_killed_and_nothing_else(tmp_path: Path, kind: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(Path(guard.__file__).parents[2])}
    command = [sys.executable, "-c", _PROGRAM, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as running:
        assert running.stdout is not None
        *guarded, before, after = [psutil.Process(int(pid)) for pid in running.stdout.readline().split()]
        children = psutil.Process(running.pid).children()
        running.send_signal(signal.SIGKILL)
    (of_guard,) = [child for child in children if child not in (*guarded, before, after)]
    _wait([*guarded, of_guard])
    assert before.is_running()
    assert after.is_running()
    for process in (before, after):
        process.kill()


def test_a_guard_ends_with_what_it_guards() -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as leader:
        running = guard.start(os.getpid(), leader.pid)
        time.sleep(0.5)
        assert running.poll() is None
        leader.kill()
    assert running.wait(10) == 0
    with guard.started_meanwhile():
        running = guard._guards[-1]
    assert running.wait(10) == 0
