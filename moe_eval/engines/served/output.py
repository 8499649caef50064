"""Keeps what spawned workers print, so that a message can quote the last lines of one that says no more."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ECHO_SECONDS = 0.2
_TAIL_BYTES = 32 << 10
_LINES, _LINE_CHARACTERS = 3, 200
_ERROR = re.compile(r"\b\w*(Error|Exception)\b|\berror:", re.IGNORECASE)


class WorkerOutput:
    """A file that workers started inside `captured` print into. Everything goes on to this process's standard error.

    A file rather than a pipe: no worker waits for a reader, and what it printed can be read after its death.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the workers
        self._echoed = 0
        self._lock = threading.Lock()
        self._target = os.dup(2)
        threading.Thread(target=self._follow, name="moe_eval-echo", daemon=True).start()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Let processes that are started inside inherit the file as their standard output and error."""
        _flush()
        own = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in own:
            os.dup2(self._file.fileno(), number)
        try:
            yield
        finally:
            _flush()
            for number, before in own:
                os.dup2(before, number)
                os.close(before)
            self.echo()

    def _follow(self) -> None:
        pause = threading.Event()
        while not pause.wait(_ECHO_SECONDS):
            self.echo()

    def echo(self) -> None:
        """Pass on what came in since the last time."""
        with self._lock:
            while part := os.pread(self._file.fileno(), 1 << 16, self._echoed):
                self._echoed += os.write(self._target, part)

    @property
    def size(self) -> int:
        """Bytes that were printed so far."""
        return os.fstat(self._file.fileno()).st_size

    def last(self, pattern: str) -> str | None:
        """The last of the lines so far that has this pattern, from its match on."""
        matches = re.findall(pattern, self._text(self.size))
        return " ".join(matches[-1].split())[:_LINE_CHARACTERS] if matches else None

    def _text(self, size: int) -> str:
        """The last bytes of what was printed."""
        return os.pread(self._file.fileno(), size, max(0, self.size - size)).decode(errors="replace")

    def last_lines(self) -> str:
        """The last lines that name an error, or else the last ones. Empty if nothing was printed."""
        self.echo()
        lines = [line for raw in self._text(_TAIL_BYTES).splitlines() if (line := " ".join(raw.split()))]
        chosen = [line for line in lines if _ERROR.search(line) and not line.startswith("raise ")] or lines
        return " / ".join(line[:_LINE_CHARACTERS] for line in chosen[-_LINES:])


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
