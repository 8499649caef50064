"""What goes on around the harness: the folder of the current run, and what its command reports when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


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


_ending: ContextVar[Ending | None] = ContextVar("ending", default=None)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


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
def files_in(folder: Path) -> Iterator[None]:
    """Keep the files of the tasks inside in a folder."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def folder() -> Path | None:
    """The folder of the current run, in which our tasks keep files. None if this process records no run."""
    return _folder.get()
