"""The processes that TensorRT-LLM starts: noticed when they die, and never left behind."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Collection
from typing import Any

import psutil

from moe_eval.errors import WorkerDied

# what MPI starts beside its ranks and needs until this process has left MPI: neither watched nor ended
_DAEMONS = ("orted", "prted", "prte", "hydra_pmi_proxy", "hydra_bstrap_proxy", "mpirun", "mpiexec")
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10


def descendants() -> frozenset[int]:
    """Process ids below this one, without MPI's daemons and the helper that Python's multiprocessing keeps."""
    found = set()
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if process.name() not in _DAEMONS and "resource_tracker" not in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            continue  # it ended meanwhile
    return frozenset(found)


class Workers:
    """What does an engine's work: processes that came into being while it was built, or a thread of this one.

    Workers of a launcher (mpirun, Slurm, Ray) are not below this process: they are the launcher's to watch.
    """

    def __init__(self, pids: Collection[int], loop: threading.Thread | None = None) -> None:
        """Watch processes, and the thread of an engine's loop where that is in this process."""
        self._loop = loop
        self._processes = []
        for pid in sorted(pids):
            try:
                self._processes.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue

    def __len__(self) -> int:
        return len(self._processes)

    def check(self) -> None:
        """Look whether they all live.

        Raises:
            WorkerDied: one does not.
        """
        if self._loop is not None and not self._loop.is_alive():
            raise WorkerDied(
                "The loop of TensorRT-LLM's engine in this process has ended; its last words are above. What was "
                "scored before is kept where --use_cache names a file: repeat the command to go on from there."
            )
        for process in self._processes:
            if not _lives(process):
                raise WorkerDied(
                    f"A worker process of TensorRT-LLM (process {process.pid}) has died, for want of memory, say, or "
                    "by a CUDA error; its last words are above. What was scored before is kept where --use_cache names "
                    "a file: repeat the command to go on from there."
                )

    def end(self) -> None:
        """Wait a little for them to end, then end them."""
        _, left = psutil.wait_procs(self._processes, timeout=_GRACE_SECONDS)
        self._kill(left)

    def kill(self) -> None:
        """End them at once."""
        self._kill([process for process in self._processes if _lives(process)])

    @staticmethod
    def _kill(processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=_GRACE_SECONDS)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Waiter:
    """Waits for results in a thread of its own: a result of a worker that died never comes."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="moe_eval-waiter", daemon=True).start()

    def _work(self) -> None:
        while (call := self._asked.get()) is not None:
            try:
                self._answers.put((call(), None))
            except BaseException as error:
                self._answers.put((None, error))

    def wait(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns or raise what it raises.

        Raises:
            WorkerDied: a worker died meanwhile.
        """
        self._asked.put(call)
        while True:
            try:
                answer, error = self._answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._workers.check()
                continue
            if error is not None:
                self._workers.check()  # the death of a worker explains whatever else is said of it
                raise error
            return answer

    def close(self) -> None:
        """Let the thread end once what it waits for has come."""
        self._asked.put(None)
