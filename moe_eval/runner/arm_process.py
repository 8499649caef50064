"""One arm in a process of its own, which loads it once and does tasks.

A fresh process gives the GPU's memory back, imports an engine's library under the arm's own environment, and leaves
the other arms alone when it breaks down. Both ends speak lines of JSON over two pipes: the standard streams belong to
the engines, which print whatever they like.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from moe_eval.engines.base import EngineSettings
from moe_eval.engines.serving import ServeSettings
from moe_eval.frozen import frozen
from moe_eval.machine import guard
from moe_eval.records.labels import ArmLabels

_LOOK_SECONDS = 0.5  # how often a silent arm is looked at
_END_SECONDS = 60  # an engine that is closed frees gigabytes and ends workers of its own


Result = TypeVar("Result")


class ArmFailed(Exception):
    """An arm could not do a task. Its process is gone or will be ended. The text is one sentence."""


class ArmDied(ArmFailed):
    """Its process ended, or was ended, without an answer, or one of its ranks did. Its load is over."""


@frozen
class Load:
    """What an arm's process loads: a checkpoint on an engine.

    Attributes:
        tokenizer: the folder or hub name. None for an endpoint, which has its own.
        environment: variables that the process has beside those of this one.
        serving: with what its engine's server is started. None for a load of the engine itself.
    """

    engine: str
    settings: EngineSettings
    tokenizer: str | None
    environment: Mapping[str, str] = field(default_factory=dict)
    serving: ServeSettings | None = None


class _Answer(msgspec.Struct):
    """What an arm's process says of a task: its result, or the reason why there is none."""

    status: str
    error: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


class ArmProcess:
    """The process of an arm, or with None one that only does tasks that need none.

    Use it as a context manager: it is ended whatever happens.
    """

    def __init__(
        self,
        load: Load | None,
        *,
        patience: float | None = None,
        output: Path | None = None,
        held: Sequence[int] = (),
        launcher: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            patience: seconds that it may take for one answer before it counts as hanging. None for ever.
            output: a file that what it prints is added to. By default that goes to standard error.
            held: file descriptors that it keeps open until it ends, such as that of a lock.
            launcher: a command that starts it, such as a profiler's, which may not hand descriptors on.

        Raises:
            ArmDied: the launcher cannot be started.
        """
        self._patience = patience
        asks, self._asks = os.pipe()
        self._answers, answers = os.pipe()
        self._unread = b""
        self._theirs: tuple[int, ...] = (asks, answers)
        ends = [f"/proc/{os.getpid()}/fd/{end}" if launcher else str(end) for end in self._theirs]
        command = [*launcher, sys.executable, "-m", "moe_eval.runner.arm_worker", *ends]
        # its own output goes beside the progress bar; in a session of its own it can be ended with all that it started,
        # and a terminal's Ctrl-C reaches it by this process alone
        with contextlib.ExitStack() as stack:
            stream: IO[bytes] | IO[str] = sys.stderr if output is None else stack.enter_context(output.open("ab"))
            try:
                self._process = subprocess.Popen(
                    command,
                    stdout=stream,
                    stderr=None if output is None else stream,
                    pass_fds=held if launcher else (asks, answers, *held),
                    start_new_session=True,
                    env={**os.environ, **load.environment} if load else None,
                )
            except OSError as error:
                for end in (asks, answers, self._asks, self._answers):
                    os.close(end)
                raise ArmDied(f"{command[0]} cannot be started ({error.strerror})") from None
        self._guard = guard.start(os.getpid(), self._process.pid)
        if not launcher:  # else it opens them later
            self._close_theirs()
        self._load, self._has_begun, self._is_importing = load, False, False

    def _close_theirs(self) -> None:
        for end in self._theirs:
            os.close(end)
        self._theirs = ()

    def begin_imports(self) -> None:
        """Let it import what its engine needs and no GPU, and do not wait for it: `end_imports` does."""
        assert self._load is not None
        self._is_importing = True
        self._send("import_ahead", {"engine": self._load.engine})

    def end_imports(self) -> None:
        """Wait until it has imported, if it was to.

        Raises:
            ArmDied: it could not, or was ended.
        """
        if self._is_importing:
            self._is_importing = False
            self._answer(type(None))

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def begin(self) -> None:
        """Let the arm begin to load, and do not wait for it: `load` does."""
        assert self._load is not None
        load, self._has_begun = self._load, True
        arguments: dict[str, object] = {
            "engine": load.engine,
            "settings": load.settings,
            "tokenizer": load.tokenizer,
        }
        if load.serving is None:
            self._send("load", arguments)
        else:
            self._send("serve", {**arguments, "serving": load.serving})

    def load(self) -> ArmLabels:
        """Load the arm and return its labels.

        Raises:
            ArmFailed: why it cannot be loaded.
        """
        if not self._has_begun:
            self.begin()
        return self._answer(ArmLabels)

    def ask(self, task: str, kind: type[Result], **arguments: object) -> Result:
        """Have the arm do one task of runner.arm_tasks or runner.served_tasks.

        Args:
            kind: of the result.

        Raises:
            ArmFailed: with the arm's own sentence, or how its process ended.
        """
        self._send(task, arguments)
        return self._answer(kind)

    def _send(self, task: str, arguments: Mapping[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either, which says more
            os.write(self._asks, msgspec.json.encode({"task": task, "arguments": arguments}) + b"\n")

    def _answer(self, kind: type[Result]) -> Result:
        line = self._line()
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            raise ArmDied(f"its process ended with {_ended(self._process.returncode)} and left no result")
        answer = msgspec.json.decode(line, type=_Answer)
        if answer.status != "finished":
            raise (ArmDied if answer.status == "died" else ArmFailed)(answer.error)
        return msgspec.json.decode(answer.result, type=kind)

    def _line(self) -> bytes | None:
        """The next line of the arm; None where its process ends without one, even if a child of it holds the pipe."""
        begun = time.monotonic()
        while b"\n" not in self._unread:
            if self._patience is not None and time.monotonic() - begun > self._patience:
                self.kill()
                raise ArmDied(f"it did not answer within {self._patience:g} s and was ended")
            ended = self._process.poll() is not None  # looked at first: what it wrote before it ended is there to read
            ready, _, _ = select.select([self._answers], [], [], 0 if ended else _LOOK_SECONDS)
            data = os.read(self._answers, 1 << 16) if ready else None
            if data == b"" or (data is None and ended):
                return None
            self._unread += data or b""
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def end(self, seconds: float = _END_SECONDS) -> bool:
        """End the process: politely, after some seconds not.

        Returns:
            Whether it ended by itself.
        """
        if self._asks < 0:
            return True
        has_ended = True
        os.close(self._asks)  # the arm closes its engine when there is nothing more to read
        self._asks = -1
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            has_ended = False
            self._process.kill()
            self._process.wait()
        except BaseException:
            self._process.kill()
            raise
        finally:
            os.close(self._answers)
            self._close_theirs()
            self.kill()  # also where it ended by itself: a rank that waits for one that died is left behind
            self._guard.kill()
            self._guard.wait()
        return has_ended

    def kill(self) -> None:
        """Kill it and what it started: workers of an engine that was killed would keep the GPU's memory."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> ArmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"code {code}"
