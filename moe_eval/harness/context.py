"""What goes on around the harness: the folder of the current run, and what its command reports when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from moe_eval.harness.untyped import Results


@dataclass
class Ending:
    """The runs of one command.

    Attributes:
        lines: where their records and MLflow runs are.
        tracking_failed: whether a run could not be logged to MLflow.
        contradictions: a sentence for each arm whose kernels are not those of its precision.
        tasks: the names of all tasks that there are. Empty until the harness has looked.
    """

    lines: list[str] = field(default_factory=list)
    tracking_failed: bool = False
    contradictions: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)


@dataclass
class Run:
    """A recorded run.

    Attributes:
        folder: where our tasks keep files.
        finished: the results of the tasks that had finished when it failed.
    """

    folder: Path
    finished: Results = field(default_factory=dict)


_ending: ContextVar[Ending | None] = ContextVar("ending", default=None)
_run: ContextVar[Run | None] = ContextVar("run", default=None)


@contextmanager
def collected() -> Iterator[Ending]:
    """Collect the ending of the runs inside."""
    ending = Ending()
    token = _ending.set(ending)
    try:
        yield ending
    finally:
        _ending.reset(token)


def current() -> Ending:
    """The ending to add to. Outside of a command nobody reads it."""
    return _ending.get() or Ending()


@contextmanager
def running(folder: Path) -> Iterator[Run]:
    """Keep the files of the tasks inside in a folder, and what had finished when the run fails."""
    run = Run(folder)
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)


def folder() -> Path | None:
    """The folder of the current run, in which our tasks keep files. None if this process records no run."""
    run = _run.get()
    return None if run is None else run.folder


def keep(finished: Results) -> None:
    """Keep the results of the tasks that have finished in a run that fails."""
    run = _run.get()
    if run is not None:
        run.finished = finished
