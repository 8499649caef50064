"""The processes of vLLM's ranks, watched while something is awaited of them.

vLLM's client waits for ever if the process of its engine core is killed (SyncMPClient.get_output of
vllm/v1/engine/core_client.py, 0.22), and vLLM takes up to 13 s to end the other ranks of one that is killed.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import psutil

from moe_eval.engines.served.processes import Waiter, lives, processes_of
from moe_eval.errors import WorkerDied

Result = TypeVar("Result")
_END_SECONDS = 2.0  # that a killed process takes at most, unless a driver holds it


class Ranks:
    """The processes of the ranks below this one, and that of the engine core which started them.

    The first of them that ends is known at once: vLLM ends the others of a rank that died within a moment.
    """

    def __init__(self, pids: Collection[int] = ()) -> None:
        """`pids`: of the ranks, in order. None for an engine in this process."""
        below = {process.pid for process in psutil.Process(os.getpid()).children(recursive=True)}
        self._names = {pid: f"Rank {number}" for number, pid in enumerate(pids) if pid in below}
        for process in processes_of(self._names):
            parent = process.ppid()
            if parent in below:
                self._names.setdefault(parent, "The engine core")
        self._processes = processes_of(self._names)
        self._first: int | None = None
        self._waiter = Waiter(lambda _: self._check()) if self._processes else None
        if self._waiter is not None:
            threading.Thread(target=self._watch, name="moe_eval-ranks", daemon=True).start()

    def _watch(self) -> None:
        """Wait for the first process that ends. A process that its parent has not asked for has ended, too."""
        poll, pids = select.poll(), dict[int, int]()
        for process in self._processes:
            try:
                pids[descriptor := os.pidfd_open(process.pid)] = process.pid
            except ProcessLookupError:
                self._first = process.pid
                break
            poll.register(descriptor, select.POLLIN)
        else:
            self._first = pids[poll.poll()[0][0]]
        for descriptor in pids:
            os.close(descriptor)

    def wait(self, call: Callable[[], Result]) -> Result:
        """The result of a call.

        Raises:
            WorkerDied: a process has ended. The others are ended, for they wait for it.
        """
        if self._waiter is None:
            return call()
        try:
            result: Any = self._waiter.wait(call)
        except Exception:  # vLLM may tell before the thread that watches has had its turn
            ended = {process.pid for process in self._processes if not lives(process)}
            for pid in self._names:  # a rank before the engine core, which ends with it
                if pid in ended and self._first is None:
                    self._first = pid
            self._check()
            raise
        return result  # type: ignore[no-any-return]

    def _check(self) -> None:
        if self._first is None:
            return
        for process in filter(lives, self._processes):
            process.kill()
        psutil.wait_procs(self._processes, timeout=_END_SECONDS)
        raise WorkerDied(
            f"{self._names[self._first]} of vLLM (process {self._first}) has died, perhaps of too little memory or a "
            "CUDA error. Look for the reason in what it printed, and repeat the command."
        )

    def close(self) -> None:
        """Watch no longer: they are to end."""
        if self._waiter is not None:
            self._waiter.close()
