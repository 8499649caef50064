"""The exit codes of a command: 0, 1 if an engine broke down, 2 if the user has to mend something, 130 for Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moe_eval.errors import EngineError, WorkerDied


class Ended(Exception):
    """A command has printed everything and ends with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


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
    if isinstance(error, WorkerDied):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code(error))
    return code(error)


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
