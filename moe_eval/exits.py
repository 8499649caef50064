"""How a command ends: 0, 2 where the user has something to mend, 1 where an engine broke down, 130 for Ctrl-C."""

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
    """A command has said all that it has to say and ends with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def code(error: BaseException) -> int:
    """The exit code for an error that has a sentence."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 1 if isinstance(error, EngineError) else 2


def settle(error: BaseException) -> int:
    """The exit code, for an error whose sentence is told.

    Where a worker of an engine is gone, the engine's library would wait for it in its own exit handlers for ever: then
    this does not return and the process ends without them.
    """
    if isinstance(error, WorkerDied):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code(error))
    return code(error)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM (a batch system's, a container's) end what runs inside like Ctrl-C: nothing is left behind."""
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
