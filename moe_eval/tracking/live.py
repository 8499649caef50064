"""Tells MLflow how far a run is while it measures: between tasks, for seconds in all, and never while an arm waits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from moe_eval.frozen import frozen
from moe_eval.records.run_files import prefix
from moe_eval.tracking import patience, store

_MOST_SECONDS = 20.0  # in all calls of a run together
_COUNT = "progress/tasks_done"


class NamedTask(Protocol):
    """A piece of a plan: the arm that it measures, and its name, unique in its arm."""

    @property
    def arm(self) -> str: ...
    @property
    def name(self) -> str: ...


@frozen
class _Sample:
    last: Mapping[str, float]


@frozen
class _Turn:
    samples: tuple[_Sample, ...]


@frozen
class _Quality:
    perplexity: float | None = None


@frozen
class _Step:
    """What is read of a task's file."""

    latency: _Turn | None = None
    quality: _Quality | None = None


class Live:
    """The open run of MLflow. Its first trouble, or a server that is too slow, ends the telling and nothing else."""

    def __init__(self, folder: Path, command: str, run_id: str, tasks: Sequence[NamedTask]) -> None:
        """`tasks`: that are left, in order."""
        self._arms, self._run_id = folder / f"{prefix(command)}arms", run_id
        self._planned = [(task.arm, task.name) for task in tasks]
        self._ended: list[tuple[str, str]] = []
        self._count = 0
        self._before: int | None = None  # tasks that had ended when the run was killed
        self._seconds = _MOST_SECONDS

    def done(self, task: NamedTask, reason: str | None) -> None:
        """A task has ended. `reason` says why it failed."""
        place = self._planned.index((task.arm, task.name))
        following = self._planned[place + 1 : place + 2]
        if reason is None:
            self._count += 1
            self._ended.append((task.arm, task.name))
        # loaded arms that take turns at a shape would cool down meanwhile
        is_waited_for = any(name.startswith("latency_") and _load(name) == _load(task.name) for _, name in following)
        if self._ended and not is_waited_for and self._seconds > 0:
            begun = time.monotonic()
            self._seconds = self._seconds if self._log() else 0.0
            self._seconds -= time.monotonic() - begun

    def _log(self) -> bool:
        """Send what has ended. False where MLflow does not take it."""
        milliseconds = int(time.time() * 1000)
        metrics: dict[str, float] = {}
        for arm, name in self._ended:
            metrics |= dict(self._figures(arm, name))
        self._ended.clear()

        def send() -> None:
            import mlflow
            from mlflow.entities import Metric

            client = mlflow.MlflowClient()
            if self._before is None:
                self._before = int(client.get_run(self._run_id).data.metrics.get(_COUNT, 0))
            step = self._before + self._count
            values = {_COUNT: float(step), **metrics}
            client.log_batch(self._run_id, [Metric(key, value, milliseconds, step) for key, value in values.items()])

        try:
            with store.quiet():
                patience.brief(send, self._seconds)
        # MLflow and what lies under it raise whatever they like, and the measurement goes on
        except Exception:
            return False
        return True

    def _figures(self, arm: str, name: str) -> Iterator[tuple[str, float]]:
        try:
            step = msgspec.json.decode((self._arms / arm / f"{name}.json").read_bytes(), type=_Step)
        except (OSError, msgspec.MsgspecError):
            return
        if step.latency is not None and step.latency.samples:
            _, shape = _load(name).rpartition("_")[0].split("_", 1)
            milliseconds = [1000 * sample.last["host"] for sample in step.latency.samples]
            yield f"progress/{arm}/{shape}/e2e_ms", statistics.median(milliseconds)
        if name == "quality" and step.quality is not None and step.quality.perplexity is not None:
            yield f"progress/{arm}/token_ppl", step.quality.perplexity


def _load(name: str) -> str:
    """The name of a latency task without its turn: those of one load and shape share it."""
    return name.rpartition("_")[0]
