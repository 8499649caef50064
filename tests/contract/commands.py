"""Commands in processes of their own, which start in a moment since they are forked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.doubles import forks


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code, negative for the signal that killed it.
        at: time.time() when it was found to have ended.
        events: what the double logged.
        left: processes that it left behind.
    """

    code: int
    out: str
    err: str
    at: float
    log: Path
    events: list[dict[str, Any]]
    left: list[psutil.Process]

    def sentence(self, program: str = "moe_eval: ") -> str:
        """The one sentence that a command ends with where it fails."""
        assert "Traceback" not in self.err, self.err[-3000:]
        told = [line for line in self.err.splitlines() if line.startswith(program)]
        assert len(told) == 1, self.err[-3000:]
        return told[0]

    def scored(self) -> int:
        """Requests for scores of a document; those of the self-test are shorter."""
        return sum(event["event"] == "request" and event["prompt_len"] > 100 for event in self.events)


class Running:
    """A command that was started."""

    def __init__(self, process: forks.Process, folder: Path) -> None:
        self.process, self.folder = process, folder

    @property
    def events(self) -> list[dict[str, Any]]:
        file = self.folder / "double.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def await_requests(self, number: int) -> None:
        """Until the double has had this many requests."""
        limit = time.monotonic() + 180
        while sum(event["event"] == "request" for event in self.events) < number:
            assert time.monotonic() < limit, (self.folder / "stderr").read_text()[-3000:]
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 300) -> Ended:
        """Until it ends; where it does not, it is killed and the test fails."""
        try:
            code: int | None = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            self.process.kill()
        at = time.time()
        limit = time.monotonic() + 3
        while (left := self._left()) and time.monotonic() < limit:
            time.sleep(0.05)
        for process in left:
            process.kill()
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        assert code is not None, f"still running after {seconds} s: {err[-3000:]}"
        return Ended(code, out, err, at, self.folder / "double.log", self.events, left)

    def arms(self) -> list[psutil.Process]:
        """Its arms, which a server forks: processes in its folder that are not of its session."""
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                is_own = os.getsid(process.pid) == self.process.pid
                if not is_own and process.cwd() == str(self.folder):
                    processes.append(process)
        return processes

    def _left(self) -> list[psutil.Process]:
        """Living processes of the command's session."""
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
        return processes


class Commands:
    """Starts `lm_eval`, `moe-eval` and scripts with a double of tensorrt_llm, or none, on the path."""

    def __init__(self, server: Path) -> None:
        self.server = server

    def start(
        self,
        *arguments: str,
        folder: Path,
        double: Path | None,
        program: str = "lm_eval",
        variables: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command in `folder`, which its output goes to as well."""
        log = folder / "double.log"
        log.unlink(missing_ok=True)
        path = os.pathsep.join(map(str, (double, forks.ROOT) if double else (forks.ROOT,)))
        clean = {key: value for key, value in os.environ.items() if not key.startswith(forks.FOREIGN)}
        settings = {"PYTHONPATH": path, "TRTLLM_DOUBLE_LOG": str(log)}
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(file.open(mode))
                for file, mode in ((Path(os.devnull), "r"), (folder / "stdout", "w"), (folder / "stderr", "w"))
            ]
            process = forks.Process(
                self.server,
                program,
                arguments,
                folder=str(folder),
                variables={**clean, **settings, **(variables or {})},
                descriptors={number: file.fileno() for number, file in enumerate(files)},
            )
        return Running(process, folder)

    def run(self, *arguments: str, **options: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(*arguments, **options).wait()
