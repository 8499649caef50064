"""How far a run is, on standard error. A terminal shows a display. A file gets one plain line for every event."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moe_eval.outside.words import one_line
from moe_eval.report.console import errors, say


class NamedTask(Protocol):
    """A piece of a plan: the arm that it measures, and its name, unique in its arm."""

    @property
    def arm(self) -> str: ...
    @property
    def name(self) -> str: ...


class TaskProgress:
    """Shows how far the tasks of a run are, by the runner's calls. A quiet one shows failures alone."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_display = sys.stderr.isatty() and not is_quiet
        self._says = not self._is_display and not is_quiet
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        # Standard output is left alone, as it may be a file. Few refreshes leave the measured process alone.
        self._display = Progress(
            TextColumn("{task.description}", markup=False),
            *columns,
            console=errors(),
            redirect_stdout=False,
            refresh_per_second=1,
            disable=not self._is_display,
        )
        self._bar = self._display.add_task("", total=None)
        self._total = self._ended = 0
        self._most = ""
        self._begun_at = time.monotonic()
        self._expected: dict[tuple[str, str], float] = {}  # seconds of the tasks that are left
        self._pace = [0.0, 0.0]  # seconds of those that have ended well, and what was expected of them

    def __enter__(self) -> TaskProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def ready(self, tasks: Sequence[NamedTask], seconds: Sequence[float] = (), *, may_end_early: bool = False) -> None:
        """The plan is made, and these tasks are left.

        Args:
            seconds: that each may take, where that is known.
            may_end_early: the run may end before it has done them all.
        """
        self._total, self._ended = len(tasks), 0
        self._most = "at most " * may_end_early
        names = [(task.arm, task.name) for task in tasks]
        self._expected = dict(zip(names, seconds, strict=False))
        self._display.start()
        self._display.update(self._bar, total=self._total)

    def begun(self, task: NamedTask) -> None:
        """A task has begun."""
        self._begun_at = time.monotonic()
        self._display.update(self._bar, description=one_line(f"{task.arm} {task.name}"))
        if self._says:
            say(f"{task.arm} {task.name} began, task {self._ended + 1} of {self._most}{self._total}.")

    def done(self, task: NamedTask, reason: str | None) -> None:
        """A task has ended. `reason` says why it failed."""
        self._ended += 1
        seconds = time.monotonic() - self._begun_at
        ending = self._remaining(task, seconds, is_well=reason is None)
        if reason is not None:
            say(f"{task.arm} {task.name} failed after {seconds:.1f} s: {reason}")
        elif self._says:
            say(f"{task.arm} {task.name} ended after {seconds:.1f} s{ending}.")
        self._display.update(self._bar, completed=self._ended)

    def _remaining(self, task: NamedTask, seconds: float, *, is_well: bool) -> str:
        """About how many minutes are left, at the pace so far, as the end of a sentence."""
        expected = self._expected.pop((task.arm, task.name), 0.0)
        if is_well:
            self._pace = [self._pace[0] + seconds, self._pace[1] + expected]
        if not self._expected or not self._pace[1]:
            return ""
        minutes = max(1, round(sum(self._expected.values()) * self._pace[0] / self._pace[1] / 60))
        return f", and {self._most}about {minutes} minute{'s are' if minutes > 1 else ' is'} left"
