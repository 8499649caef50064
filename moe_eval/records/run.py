"""The record of a run: what it was asked for, what it planned, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moe_eval.machine.hardware import Machine
from moe_eval.records.labels import OptionValue, Status

RUN_SCHEMA = 2
RUN_FILE = "run.json"
UNMEASURED = "the run ended before it was measured"  # the error of what a run did not come to
Mode = Literal["interleaved", "reloaded", "sequential"]
EvaluatorName = Literal["quality", "latency", "kernels"]
EVALUATORS: tuple[EvaluatorName, ...] = ("quality", "latency", "kernels")


@dataclass(frozen=True)
class Schedule:
    """In which order iterations run.

    Attributes:
        mode: `interleaved`: all arms are loaded at once, each in a process of its own, and take turns of one iteration
            in the order A B B A, then B A A B; one such round is a block. `reloaded`: the arms do not fit together, so
            each is loaded again in every block, in the order A B, B A. `sequential`: each arm is loaded once, and drift
            between them is in no interval.
        blocks: how many. `per_block`: iterations of an arm in one.
        warm_ups: the least number of iterations before the first timed one of every load and shape.
    """

    mode: Mode
    blocks: int
    per_block: int
    warm_ups: int

    @property
    def iterations(self) -> int:
        """Timed iterations of an arm and shape in all."""
        return self.blocks * self.per_block


@dataclass(frozen=True)
class Skipped:
    """An arm, or one evaluator of it, that was left out. `evaluator` is None for all of them."""

    arm: str
    evaluator: str | None
    reason: str


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        run_id: 32 hexadecimal digits; also a tag in MLflow.
        command: that began it: run, perf or ppl.
        started, ended: UTC, ISO 8601.
        options: of the command, secrets removed.
        evaluators: of every arm by name, the reference first.
        tasks: how many the plan has.
    """

    run_id: str
    status: Status
    started: str
    command: str
    options: Mapping[str, OptionValue]
    evaluators: Mapping[str, tuple[EvaluatorName, ...]]
    skipped: tuple[Skipped, ...]
    schedule: Schedule
    tasks: int
    machine: Machine
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    ended: str | None = None
    error: str | None = None
    schema: int = RUN_SCHEMA
