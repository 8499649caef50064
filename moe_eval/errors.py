"""Errors whose message names the problem and the fix."""

from __future__ import annotations

TYPE_CHECKING = False  # as in moe_eval: no command that succeeds needs what is imported here
if TYPE_CHECKING:
    from collections.abc import Iterable


class UsageError(Exception):
    """The user can mend it. Commands print the message and exit with code 2."""


class EngineError(Exception):
    """An engine broke down while it worked. Commands print the message and exit with code 1."""


class WorkerDied(EngineError):
    """A worker process of an engine is gone, and its library waits for it. Commands end the process at once."""


class TrackingError(Exception):
    """A run could not be logged to MLflow. Its records are on disk and can be logged later."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that was meant: the same in other letters or signs, one that begins so, or nearly the same.

    None where no name is near, or several begin so.
    """
    import difflib

    spelled = {_folded(candidate): candidate for candidate in names}
    begun = [candidate for folded, candidate in spelled.items() if len(name) > 1 and folded.startswith(_folded(name))]
    close = [spelled[folded] for folded in difflib.get_close_matches(_folded(name), spelled, n=1)]
    return begun[0] if len(begun) == 1 else next(iter(close), None)


def mended(name: str, names: Iterable[str], fix: str) -> str:
    """The sentence that mends a wrong name: with the one that was meant, or else `fix`."""
    meant = nearest(name, names)
    return fix if meant is None else f"Did you mean {meant}?"


def no_such(kind: str, name: str, names: Iterable[str], fix: str) -> str:
    """The message for a name that does not exist, with the one that was meant, or else a way to mend it."""
    return f"There is no {kind} {name}. {mended(name, names, fix)}"


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
