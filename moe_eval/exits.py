"""The exit codes of a command: 0, 1 if an engine broke down, 2 if the user has to mend something, 130 for Ctrl-C."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

from moe_eval.errors import EngineError, WorkerDied

_GRACE_SECONDS = 8.0
_settled: list[int] = []  # codes of the errors whose messages were printed, and of calls of sys.exit
_watches: list[threading.Thread] = []
_is_over, _closing = threading.Event(), threading.Lock()


def code(error: BaseException) -> int:
    """The exit code for an error with a message."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 1 if isinstance(error, EngineError) else 2


def settle(error: BaseException) -> int:
    """The exit code for an error whose message is printed.

    If a worker of an engine is gone, this does not return: the process ends without exit handlers, since in its own the
    engine's library would wait for the worker for ever.
    """
    _settled.append(code(error))
    if isinstance(error, WorkerDied):
        end_now()
    return code(error)


def end_in_seconds(close: Callable[[], None]) -> None:
    """When the main thread is through, call `close`, and end the process some seconds later at the latest.

    A library's threads that are no daemons, and exit handlers that wait for its workers, may otherwise keep it.
    """

    def closing() -> None:
        with _closing:
            try:
                close()
            finally:
                _is_over.set()

    if not _watches:
        _watches.append(threading.Thread(target=_watch, name="moe_eval-end", daemon=True))
        _watches[0].start()
        sys.exit = partial(_exit, sys.exit)
    # atexit handlers run after all threads were joined, and one of the library's may never end. What is registered
    # last runs first.
    getattr(threading, "_register_atexit", atexit.register)(closing)


def _exit(original: Callable[..., NoReturn], status: object = None) -> NoReturn:
    """sys.exit, which Python itself remembers nowhere until the process has ended."""
    _settled.append(status & 0xFF if isinstance(status, int) else 0 if status is None else 1)
    original(status)


def _watch() -> None:
    _is_over.wait()
    time.sleep(_GRACE_SECONDS)
    with _closing:
        end_now()


def end_now() -> NoReturn:
    """End this process at once, without exit handlers."""
    import ctypes

    logging = sys.modules.get("logging")  # whoever has something to log has imported it
    for flush in (*((logging.shutdown,) if logging else ()), sys.stdout.flush, sys.stderr.flush):
        flush()
    ctypes.CDLL(None).fflush(None)  # what libraries have printed by C's own buffers
    unhandled = 1 if hasattr(sys, "last_type") else 0
    os._exit((_settled[-1] if _settled else 0) or unhandled)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM (of a batch system or a container) end a command like Ctrl-C, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
