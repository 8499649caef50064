"""The server of a served engine: its own command, in a process beside this one, which ends with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from moe_eval.engines.endpoint.server import Server
from moe_eval.engines.serving import asked
from moe_eval.errors import EngineError, UsageError
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import EngineSteps

_LOOK_SECONDS, _ASK_SECONDS = 0.1, 5.0
_END_SECONDS = 30.0  # that a server may take to close its engine


@dataclass
class ServerProcess:
    """A server that was started, as engines.serving.Served has it. It prints where this process does.

    Attributes:
        title: of the engine. `process`: of its command.
        read_steps: what it says of its steps. `count`: requests in its steps now.
        reset: empties its prefix cache.
        profiler: starts and ends its profiler. None where it has none.
    """

    title: str
    process: subprocess.Popen[bytes]
    server: Server
    facts: EngineFacts
    metrics_url: str | None = None
    read_steps: Callable[[], EngineSteps | None] = lambda: None
    count: Callable[[], float | None] = lambda: None
    reset: Callable[[], None] = lambda: None
    profiler: Callable[[Path], AbstractContextManager[None]] | None = None

    def check(self) -> None:
        code = self.process.poll()
        if code is not None:
            raise EngineError(f"The server of {self.title} ended with {_ended(code)}. Read the end of the arm's log.")

    def forget(self) -> None:
        self.reset()

    def steps(self) -> EngineSteps | None:
        return self.read_steps()

    def running(self) -> float | None:
        return self.count()

    def profiled(self, target: Path) -> AbstractContextManager[None]:
        if self.profiler is None:
            raise UsageError(f"The server of {self.title} is not traced here. Leave kernels out of --evaluators.")
        return self.profiler(target)

    def close(self) -> None:
        stop(self.process)


def start(title: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server in the session and process group of this process, whose guard ends it with this process."""
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **environment})
    except OSError as error:
        raise EngineError(f"The server of {title} cannot be started ({error.strerror}): {command[0]}.") from None


def await_ready(title: str, process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    """Wait until a server answers /health.

    Raises:
        EngineError: it ended, or did not get ready in time. It is stopped.
    """
    limit = time.monotonic() + seconds
    try:
        while True:
            if (code := process.poll()) is not None:
                raise EngineError(
                    f"The server of {title} ended with {_ended(code)} before it was ready. Read the end of the arm's "
                    "log."
                )
            try:
                if asked("GET", port, "/health", _ASK_SECONDS).ok:
                    return
            except requests.RequestException:
                pass  # it does not listen yet
            if time.monotonic() > limit:
                raise EngineError(
                    f"The server of {title} did not get ready within {seconds:g} s. Read the end of the arm's log, or "
                    "give a longer --timeout."
                )
            time.sleep(_LOOK_SECONDS)
    except BaseException:
        stop(process)
        raise


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and what it has started: politely, after some seconds not."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.Error:
        tree = []
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    _, alive = psutil.wait_procs(tree, timeout=_LOOK_SECONDS)
    for entry in alive:
        entry.kill()
    psutil.wait_procs(alive, timeout=_END_SECONDS)
    process.wait()


def _ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
