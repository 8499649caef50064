"""Processes forked from a server that has imported what they all need: run as a script, this file is the server.

A fork starts in a moment where a fresh interpreter takes ten seconds to import torch, Transformers, the harness and
MLflow. No engine's library is imported before the fork. All workers of a test session share one server.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# what a run imports sooner or later
_SHARED = (
    *("torch", "transformers", "transformers.models.qwen3_moe.modeling_qwen3_moe", "datasets", "pandas", "sklearn"),
    *("sqlitedict", "sacrebleu", "lm_eval.evaluator", "lm_eval._cli.harness", "lm_eval.models", "lm_eval.tasks"),
    *("lm_eval.loggers", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "torch._dynamo", "scipy.stats"),
    *("transformers.models.auto.tokenization_auto", "transformers.convert_slow_tokenizer"),
    *("moe_eval.engines.transformers.load", "moe_eval.harness.model"),
    *("moe_eval.harness.outcome", "moe_eval.tracking", "moe_eval.machine.hardware"),
    *("moe_eval.cli.execute", "moe_eval.runner.arm_tasks", "moe_eval.runner.served_tasks"),
    *("moe_eval.runner.arm_process", "moe_eval.runner.arm_worker"),
)
FOREIGN = ("TRTLLM", "TLLM", "OMPI_", "PMI_", "LOCAL_RANK", "MLFLOW_", "MOE_EVAL_", "CUDA_VISIBLE")
ROOT = Path(__file__).resolve().parents[2]
_NUMBER = struct.Struct("i")
_HIGH = 200  # file descriptors from here on are nobody's


class Process:
    """A process in a session of its own, with what is used of subprocess.Popen."""

    def __init__(
        self,
        server: Path,
        program: str,
        arguments: Sequence[str],
        *,
        folder: str,
        variables: Mapping[str, str],
        descriptors: Mapping[int, int],
    ) -> None:
        """Start it.

        Args:
            program: of _program.
            variables: its environment.
            descriptors: of this process, by the numbers that they shall have there.
        """
        self.returncode: int | None = None
        order = {
            "program": program,
            "arguments": list(arguments),
            "folder": folder,
            "variables": dict(variables),
            "descriptors": list(descriptors),
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(server))
        data = json.dumps(order).encode() + b"\n"
        socket.send_fds(self._connection, [data[:1]], list(descriptors.values()))
        self._connection.sendall(data[1:])
        self.pid = self._received()

    def _received(self) -> int:
        data = self._connection.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert data, "the server of forks has ended"
        return int(_NUMBER.unpack(data)[0])

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            self.returncode = self._received()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def connect(server: Path) -> socket.socket:
    """A connection to the server at this path, which is started where it does not run and ends with the last one."""
    connection = socket.socket(socket.AF_UNIX)
    with server.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(str(server))
        except OSError:
            server.unlink(missing_ok=True)
            clean = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
            subprocess.Popen(
                [sys.executable, __file__, str(server)],
                env={**clean, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=server.with_suffix(".log").open("w"),
                start_new_session=True,
            )
            end = time.monotonic() + 60
            while connection.connect_ex(str(server)):
                assert time.monotonic() < end, server.with_suffix(".log").read_text()
                time.sleep(0.05)
    return connection


def arms(server: Path) -> Any:
    """A stand-in for the module `subprocess` that forks the processes of arms. Those of a launcher it starts."""

    def start(command: Sequence[str], *, stdout: Any, stderr: Any, pass_fds: Sequence[int], **more: Any) -> Any:
        if command[:3] != [sys.executable, "-m", "moe_eval.runner.arm_worker"]:
            return subprocess.Popen(command, stdout=stdout, stderr=stderr, pass_fds=pass_fds, **more)
        streams = {0: 0, 1: stdout.fileno(), 2: 2 if stderr is None else stderr.fileno()}
        descriptors = {**streams, **{number: number for number in pass_fds}}
        return Process(
            server, "arm", command[3:], folder=str(Path.cwd()), variables=os.environ, descriptors=descriptors
        )

    return SimpleNamespace(Popen=start, TimeoutExpired=subprocess.TimeoutExpired)


_code: list[int] = []  # of a fork that is through


def _leave() -> None:
    """End a fork after all its exit handlers, without the second that it takes to take torch down."""
    if _code:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(_code[0])


def _serve(path: str) -> None:
    """Fork on request until the last connection is closed."""
    atexit.register(_leave)  # first, so that it runs last
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    for name in _SHARED:
        importlib.import_module(name)
    _few_tasks()
    gc.collect()
    gc.freeze()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    forks: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for server in (listener, woken):
            selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                connection: Any = key.fileobj
                if connection is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif connection is woken:
                    woken.recv(1 << 10)
                    _reap(forks)
                else:
                    selector.unregister(connection)
                    order, descriptors = _order(connection)
                    if order is None:
                        connection.close()
                        continue
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        theirs = [each.fileobj for each in selector.get_map().values()]
                        for open_socket in (*theirs, *forks.values(), connection, wake):
                            open_socket.close()  # type: ignore[union-attr]
                        selector.close()
                        return _become(order, descriptors, Path(path))
                    for descriptor in descriptors:
                        os.close(descriptor)
                    forks[pid] = connection
                    _tell(connection, pid)
            if len(selector.get_map()) == 2 and not forks:
                return None


def _order(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 32)
    while data and not data.endswith(b"\n"):
        data += connection.recv(1 << 16)
    return json.loads(data) if data else None, descriptors


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked was killed
        connection.sendall(_NUMBER.pack(number))


def _reap(forks: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if connection := forks.pop(pid, None):
                _tell(connection, os.waitstatus_to_exitcode(status))
                connection.close()


def _few_tasks() -> None:
    """The harness reads ten thousand task files for every command; here ours suffice."""
    from lm_eval.tasks._index import TaskIndex

    from moe_eval.harness.plugin import tasks_folder

    build, ours = TaskIndex.build, tasks_folder()
    TaskIndex.build = staticmethod(  # type: ignore[method-assign]
        lambda paths, **options: build([path for path in paths if Path(path) == ours], **options)
    )


def _become(order: Mapping[str, Any], descriptors: Sequence[int], server: Path) -> None:
    """Turn this fork into the program that was asked for."""
    os.setsid()
    os.chdir(order["folder"])
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(high, order["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["variables"])
    first = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in (*first, str(Path(__file__).parent)))]
    sys.argv = [order["program"], *order["arguments"]]
    try:
        code: Any = _program(order["program"], order["arguments"], server)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException as error:
        sys.last_type = type(error)  # as an interpreter says that it handled it
        traceback.print_exc()
        code = 1
    _code.append(code if isinstance(code, int) else int(code is not None))


def _program(name: str, arguments: Sequence[str], server: Path) -> int:
    from moe_eval.runner import arm_process

    if name == "arm":
        from moe_eval.runner.arm_worker import main as arm_worker

        return arm_worker(list(arguments))
    arm_process.subprocess = arms(server)
    if name == "moe-eval":
        from moe_eval.cli import main

        return main(list(arguments))
    if name == "python":
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    from moe_eval.harness.__main__ import main as lm_eval

    lm_eval()
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
