"""Watches the processes that TensorRT-LLM starts, and ends them."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Collection
from typing import Any

import psutil

from moe_eval.errors import WorkerDied

# MPI starts these beside its ranks and needs them until this process has left MPI: neither watched nor ended
_DAEMONS = ("orted", "prted", "prte", "hydra_pmi_proxy", "hydra_bstrap_proxy", "mpirun", "mpiexec")
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10
_RESUME = "Repeat the command: with --use_cache it continues from the last score."


def descendants() -> frozenset[int]:
    """Process ids below this one, without MPI's daemons and the resource tracker of Python's multiprocessing."""
    pids = set()
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if process.name() not in _DAEMONS and "resource_tracker" not in " ".join(process.cmdline()):
                pids.add(process.pid)
    return frozenset(pids)


class Workers:
    """An engine's workers: processes that it started, or a thread of this process.

    Workers of a launcher (mpirun, Slurm, Ray) are not below this process. The launcher watches them.
    """

    def __init__(self, pids: Collection[int], loop: threading.Thread | None = None) -> None:
        self._loop = loop
        self._processes = []
        for pid in sorted(pids):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes.append(psutil.Process(pid))

    def __len__(self) -> int:
        return len(self._processes)

    def check(self) -> None:
        """Check that all workers live."""
        if self._loop is not None and not self._loop.is_alive():
            raise WorkerDied(
                f"The loop of TensorRT-LLM's engine in this process has ended. Its last output is above. {_RESUME}"
            )
        for process in self._processes:
            if not _lives(process):
                raise WorkerDied(
                    f"A worker process of TensorRT-LLM (process {process.pid}) has died, perhaps of too little memory "
                    f"or a CUDA error. Its last output is above. {_RESUME}"
                )

    def end(self) -> None:
        """Wait a little for the processes to end, then kill the others."""
        psutil.wait_procs(self._processes, timeout=_GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the processes at once."""
        living = [process for process in self._processes if _lives(process)]
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(living, timeout=_GRACE_SECONDS)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Waiter:
    """Waits for results in its own thread, because the result of a dead worker never comes."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="moe_eval-waiter", daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._answers.put((call(), None))
            except BaseException as error:
                self._answers.put((None, error))

    def wait(self, call: Callable[[], Any]) -> Any:
        """Run `call` and return its result."""
        self._calls.put(call)
        while True:
            try:
                answer, error = self._answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._workers.check()
                continue
            if error is not None:
                self._workers.check()  # the death of a worker explains any other error
                raise error
            return answer

    def close(self) -> None:
        """Let the thread end after its current call."""
        self._calls.put(None)
