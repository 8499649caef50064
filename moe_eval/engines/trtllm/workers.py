"""Watches the processes that TensorRT-LLM starts, and ends them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection

import psutil

from moe_eval.engines.served.output import WorkerOutput
from moe_eval.engines.served.processes import descendants, lives, processes_of
from moe_eval.errors import WorkerDied


class ResponseLost(Exception):
    """A response will never come, though the workers live. `reason` is the error for the user."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


_GRACE_SECONDS = 10
RESUME = "Repeat the command: with --use_cache it continues from the last score."
# Loading shows no life if its processes use less than this share of a CPU core and print nothing.
_IDLE_SHARE = 0.02
_LOAD_SECONDS = 900.0  # without a sign of life, by default
_AFTER_DEATH_SECONDS = 10.0  # that the library has to say itself that a worker died while it was loading


class Workers:
    """An engine's workers: processes that it started, or a thread of this process.

    Workers of a launcher (mpirun, Slurm, Ray) are not below this process. The launcher watches them.
    """

    def __init__(
        self, pids: Collection[int], loop: threading.Thread | None = None, output: WorkerOutput | None = None
    ) -> None:
        self._loop = loop
        self.output = output
        self._processes = processes_of(pids)

    @property
    def last_words(self) -> str:
        """A clause about the last lines of the workers."""
        lines = self.output.last_lines() if self.output is not None else ""
        return f"its last lines: {lines}" if lines else "its last output is above"

    def __len__(self) -> int:
        return len(self._processes)

    def check(self) -> None:
        """Check that all workers live."""
        if self._loop is not None and not self._loop.is_alive():
            raise WorkerDied(
                f"The loop of TensorRT-LLM's engine in this process has ended ({self.last_words}). {RESUME}"
            )
        for process in self._processes:
            if not lives(process):
                raise WorkerDied(
                    f"A worker process of TensorRT-LLM (process {process.pid}) has died, perhaps of too little memory "
                    f"or a CUDA error ({self.last_words}). {RESUME}"
                )

    def end(self) -> None:
        """Wait a little for the processes to end, then kill the others."""
        psutil.wait_procs(self._processes, timeout=_GRACE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the processes at once."""
        living = [process for process in self._processes if lives(process)]
        for process in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(living, timeout=_GRACE_SECONDS)


class Loading:
    """Watches what runs while the library loads: whether a worker died, or nothing at all goes on any more.

    Args:
        before: processes that were there before.
        stall_seconds: without a sign of life. None for the default.
    """

    def __init__(self, before: Collection[int], output: WorkerOutput | None, stall_seconds: float | None) -> None:
        self._before, self._output = before, output
        self._limit = _LOAD_SECONDS if stall_seconds is None else stall_seconds
        self._seen: dict[psutil.Process, str] = {}
        self._signs = self._printed = 0.0
        self._alive_at = self._whole_at = time.monotonic()

    def check(self, _waited: float) -> None:
        """Raise WorkerDied if loading cannot end."""
        started = processes_of(descendants() - frozenset(self._before))
        self._seen |= {process: _command(process) for process in started if process not in self._seen}
        time_s, signs = time.monotonic(), time.process_time() - time.thread_time() + sum(map(_cpu_seconds, started))
        printed = self._output.size if self._output is not None else 0
        if abs(signs - self._signs) > _IDLE_SHARE * (time_s - self._alive_at) or printed > self._printed:
            self._signs, self._printed, self._alive_at = signs, printed, time_s
        # compilers come and go, and so does a pool of Python processes: only of MPI's ranks all have to stay
        gone = [command for process, command in self._seen.items() if "python" in command and not lives(process)]
        if not any("mpi4py" in command for command in gone):
            self._whole_at = time_s
        limit = min(self._limit, _AFTER_DEATH_SECONDS) if gone else self._limit
        if time_s - self._alive_at <= limit and time_s - self._whole_at <= limit:
            return
        problem = "a worker process has died" if gone else f"nothing has gone on for {self._limit:g} s"
        words = Workers((), output=self._output).last_words
        raise WorkerDied(
            f"TensorRT-LLM does not come up: {problem} ({words}). Mend what these lines name, or give a larger "
            "stall_timeout."
        )

    def end(self) -> None:
        """End what was started."""
        Workers((descendants() - frozenset(self._before)) | {process.pid for process in self._seen}).kill()


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
