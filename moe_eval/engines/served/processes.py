"""Processes that a served engine's library starts: found, watched, and never waited for without end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import psutil

# MPI starts these beside its ranks and needs them until this process has left MPI: neither watched nor ended
_DAEMONS = ("orted", "prted", "prte", "hydra_pmi_proxy", "hydra_bstrap_proxy", "mpirun", "mpiexec")
_POLL_SECONDS = 0.5


def descendants() -> frozenset[int]:
    """Process ids below this one, without MPI's daemons and the resource tracker of Python's multiprocessing."""
    pids = set()
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if process.name() not in _DAEMONS and "resource_tracker" not in " ".join(process.cmdline()):
                pids.add(process.pid)
    return frozenset(pids)


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of(pids: Collection[int]) -> list[psutil.Process]:
    """The processes of these ids that are there, by id."""
    processes = []
    for pid in sorted(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    return processes


class Waiter:
    """Calls the library in a thread of its own, because what it waits for may never come.

    Args:
        check: is called with the seconds waited so far, twice a second, and raises if waiting has no sense.
    """

    def __init__(self, check: Callable[[float], None]) -> None:
        self._check = check
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="moe_eval-waiter", daemon=True).start()

    def _work(self) -> None:
        # the library may look for an event loop, which only the main thread has by itself
        asyncio.set_event_loop(asyncio.new_event_loop())
        while (call := self._calls.get()) is not None:
            try:
                self._answers.put((call(), None))
            except BaseException as error:
                self._answers.put((None, error))

    def wait(self, call: Callable[[], Any]) -> Any:
        """Run `call` and return its result, or raise its error or that of `check`."""
        began = time.monotonic()
        self._calls.put(call)
        while True:
            try:
                answer, error = self._answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._check(time.monotonic() - began)
                continue
            if error is not None:
                raise error
            return answer

    def close(self) -> None:
        """Let the thread end after its current call."""
        self._calls.put(None)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of `call`, or a TimeoutError if it takes longer. What it started goes on."""

    def check(waited: float) -> None:
        if waited >= seconds:
            raise TimeoutError(f"no answer within {seconds:g} s")

    waiter = Waiter(check)
    try:
        return waiter.wait(call)
    finally:
        waiter.close()
