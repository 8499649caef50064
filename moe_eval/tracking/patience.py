"""Bounds what MLflow may take: a command waits for it up to a limit in all, whatever a server does."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from moe_eval.errors import UsageError
from moe_eval.exits import end_in_seconds

VARIABLE = "MOE_EVAL_MLFLOW_SECONDS"
_SECONDS = 120.0
# MLflow retries a server that does not answer for minutes; after hours of measuring, seconds are enough to tell.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one bar a file
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print a password in the URL
}
_BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
Result = TypeVar("Result")
_spent = [0.0]  # seconds of the present command


class NoAnswer(Exception):
    """MLflow took longer than it may. The text is a clause after its name, with the fix."""


def begin() -> None:
    """Count anew: a command begins.

    Raises:
        UsageError: the variable of the limit holds no time.
    """
    limit()
    _spent[0] = 0.0


def limit() -> float:
    """Seconds that a command may wait for MLflow in all."""
    value = os.environ.get(VARIABLE) or _SECONDS
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise UsageError(f"{VARIABLE} is {value!r}. Give seconds from above 0 up to 86400, or leave it out.")
    return seconds


def within(call: Callable[[], Result], share: float = 1.0) -> Result:
    """The result of a call that talks to MLflow, with its retries bounded unless the user has set them.

    The call has a thread of its own, since neither a driver in C nor a server that sends a byte a second lets go.

    Args:
        share: of the limit that this call may take at most. The rest is left for later ones.

    Raises:
        NoAnswer: it does not come in what is left of the limit. What the call does then goes on unheard.
    """
    seconds = min(share * limit(), limit() - _spent[0])
    refusal = f"did not answer within {share * limit():g} s{' in all' * (share == 1)} (give it longer in {VARIABLE})"
    if seconds <= 0:
        raise NoAnswer(refusal)
    attempt, begun = _Attempt(call), time.monotonic()
    # a short limit is not spent on one attempt
    with environment({key: value for key, value in _PATIENCE.items() if key not in os.environ}):
        thread = threading.Thread(target=attempt.run, name="moe_eval-mlflow", daemon=True)
        thread.start()
        thread.join(seconds)
    _spent[0] += time.monotonic() - begun
    if thread.is_alive():
        end_in_seconds(lambda: None)  # a pool of MLflow's may wait for it at the process's end
        raise NoAnswer(refusal)
    if attempt.error is not None:
        raise attempt.error
    if share == 1:
        _spent[0] = 0.0  # it answers
    return attempt.results[0]


class _Attempt(Generic[Result]):
    """A call and what came of it."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self.results: list[Result] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.results.append(self._call())
        except BaseException as error:  # raised where the result is waited for
            self.error = error


def brief(call: Callable[[], Result], seconds: float) -> Result:
    """The same for what is told between measurements, in some seconds at the most."""
    with environment(_PATIENCE | _BRIEF):
        return within(call, seconds / limit())


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
