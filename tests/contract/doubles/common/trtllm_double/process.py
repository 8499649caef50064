"""Where the engine runs: in a process per rank behind a proxy, or in the caller's process."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from .knobs import knobs, log, own_variables

_KEPT = frozenset(("PATH", "PYTHONPATH", "HOME", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "VIRTUAL_ENV", "HF_HUB_OFFLINE"))


@functools.cache
def single_process() -> bool:
    """Read once, at the first LLM of a process."""
    return os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS") == "1"


class Executor:
    """What LLM talks to, wherever the engine is."""

    def __init__(self) -> None:
        self.pending: dict[int, Any] = {}
        self.stats: deque[dict[str, Any]] = deque(maxlen=1000)
        self.acks: queue.Queue[int] = queue.Queue()
        self.stopped = threading.Event()
        # what threads of the library failed with
        self._error_queue: queue.Queue[BaseException] = queue.Queue()

    ranks = 1

    def order(self, kind: str, what: Any = None) -> None:
        """Hand an order to the engine; each kind of executor has its own way."""

    def everywhere(self, kind: str, what: Any = None) -> None:
        """An order for every rank, until all have obeyed."""
        self.order(kind, what)
        for _ in range(self.ranks):
            self.acks.get()

    def wait(self) -> None:
        """Until the engine is up."""

    def kill(self) -> None:
        """Give up what never came up."""

    def submit(self, request: Any, output: Any) -> None:
        self.pending[request.id] = output
        self.order("request", request)

    def receive(self, kind: str, what: Any) -> None:
        """One message of the engine."""
        if kind == "response":
            output = self.pending.pop(what["id"], None) if what["final"] else self.pending.get(what["id"])
            if output is not None:
                output._push(what)
        elif kind == "failed":
            output = self.pending.pop(what[0], None)
            if output is not None:
                output._push(what[1])
        elif kind == "lost":
            self._lost(what)
        elif kind == "stats":
            self.stats.append(what)
        elif kind == "ack":
            self.acks.put(what)
        elif kind == "stopped":
            self.stopped.set()

    def _lost(self, words: str) -> None:
        """A thread of the engine's process failed over a response, which nobody gets."""

    def shutdown(self) -> None:
        """Stop and wait without limit, as for a future of an MPI pool."""
        self.order("shutdown")
        self.stopped.wait()


class GenerationExecutorWorker(Executor):
    """The engine in the caller's process, its loop in a thread of its own."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__()
        from .engine import Engine

        os.environ.update(setup["env_overrides"])
        logging.getLogger("tensorrt_llm").info("Using single process worker for TP1")
        log("worker", rank=0, env={**own_variables(), **setup["env_overrides"]})
        self.engine = Engine(setup, self.receive)
        self.engine.worker_thread = threading.Thread(target=self.engine.loop, name="engine", daemon=True)
        self.engine.worker_thread.start()

    def order(self, kind: str, what: Any = None) -> None:
        self.engine.orders.put((kind, what))

    def _lost(self, words: str) -> None:
        self._error_queue.put(RuntimeError(words))


class GenerationExecutorProxy(Executor):
    """Ranks in processes of their own. Does not look whether they live once they are up."""

    def __init__(self, setup: dict[str, Any], ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        # forked, which spares the seconds that a spawned one takes to import torch
        context = multiprocessing.get_context("fork")
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            arguments = (theirs, setup, rank, own_variables(), self._connections)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def _lost(self, words: str) -> None:
        """The error stays in the worker's own queue."""

    def wait(self) -> None:
        """Until every rank is up."""
        try:
            for connection in self._connections:
                kind, what = connection.recv()
                if kind == "error":
                    raise what
        except EOFError:
            self.kill()
            raise RuntimeError("a worker process ended before it was ready") from None
        except BaseException:
            self.kill()
            raise
        for rank, connection in enumerate(self._connections):
            threading.Thread(target=self._listen, args=(rank, connection), name=f"rank{rank}", daemon=True).start()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _listen(self, rank: int, connection: Connection) -> None:
        try:
            while True:
                kind, what = connection.recv()
                if kind != "stopped" or rank == 0:
                    self.receive(kind, what)
        except (EOFError, OSError):
            return  # nobody is told: whoever waits goes on waiting

    def order(self, kind: str, what: Any = None) -> None:
        with self._lock:
            targets = self._connections[:1] if kind in ("request", "abort") else self._connections
            for connection in targets:
                try:
                    connection.send((kind, what))
                except OSError:
                    logging.getLogger("tensorrt_llm").debug("an order reached nobody")

    def shutdown(self) -> None:
        super().shutdown()
        for process in self._processes:
            process.join()


def work(
    connection: Connection,
    setup: dict[str, Any],
    rank: int,
    forwarded: dict[str, str],
    of_caller: list[Connection],
) -> None:
    """A worker process, from its clean environment to its end."""
    for inherited in of_caller:  # else it would not see that the caller is gone
        inherited.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in set(os.environ) - _KEPT - set(setup["env_overrides"]):
        if not name.startswith(("TRTLLM", "TLLM")):
            del os.environ[name]
    os.environ.update({**forwarded, **setup["env_overrides"]})
    log("worker", rank=rank, env=dict(os.environ))
    try:
        if rank == 0:
            _compute(connection, setup)
        else:
            _idle(connection, rank)
    except (EOFError, OSError):
        os._exit(1)  # the caller is gone
    os._exit(0)  # what the caller does at its own end is not for a worker


def _compute(connection: Connection, setup: dict[str, Any]) -> None:
    lock = threading.Lock()

    def send(kind: str, what: Any) -> None:
        with lock:
            connection.send((kind, what))

    try:
        import torch
        from transformers.utils import logging as words

        from .engine import Engine

        torch.set_num_threads(1)
        words.disable_progress_bar()
        engine = Engine(setup, send)
    except Exception as error:
        if "load_error" in knobs():
            traceback.print_exc()
            send("error", RuntimeError("Executor worker returned error"))
            return
        try:
            send("error", error)
        except Exception:
            send("error", RuntimeError(f"{type(error).__name__}: {error}"))
        return

    def listen() -> None:
        try:
            while True:
                engine.orders.put(connection.recv())
        except (EOFError, OSError):
            os._exit(1)  # the caller is gone

    send("ready", None)
    threading.Thread(target=listen, daemon=True).start()
    engine.loop()


def _idle(connection: Connection, rank: int) -> None:
    """Ranks above 0 compute nothing and write their traces."""
    connection.send(("ready", None))
    profile = None
    while True:
        kind, what = connection.recv()
        if kind == "shutdown":
            connection.send(("stopped", None))
            return
        if kind in ("start_profile", "stop_profile"):
            if kind == "start_profile":
                from .engine import Profile

                profile = Profile(what, rank)
            elif profile is not None:
                profile.write()
                profile = None
            connection.send(("ack", rank))
