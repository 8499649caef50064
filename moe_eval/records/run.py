"""The record of a run: what it was asked for, what it planned, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Machine
from moe_eval.records.labels import ArmSettings, OptionValue, Status

RUN_SCHEMA = 2
RUN_FILE = "run.json"
UNMEASURED = "the run ended before it was measured"  # the error of what a run did not come to
Mode = Literal["turns", "alternating"]
EvaluatorName = Literal["quality", "tasks", "latency", "kernels", "serving"]
EVALUATORS: tuple[EvaluatorName, ...] = ("quality", "tasks", "latency", "kernels", "serving")

LEAST_WARM_UPS = 5  # iterations, without which there is no verdict
CUT_SHORT = f"fewer than {LEAST_WARM_UPS} iterations were requested, so this is a quick look"


@frozen
class Schedule:
    """How often arms are loaded, and in which order they are timed.

    Attributes:
        mode: `turns`: all arms fit together. Load i of every arm lives at the same time, each in a process of its own,
            and they take turns of one iteration in the order A B, B A, B A, A B. `alternating`: each load lives alone,
            in the order A B, B A.
        loads: of every arm. Load i of an arm is paired with load i of another.
        per_load: iterations of a shape in one load.
        warm_ups: the least number of iterations before the first timed one of every load and shape.
        until_decided: `loads` is the most. No more are made once every pair is decided.
    """

    mode: Mode
    loads: int
    per_load: int
    warm_ups: int
    until_decided: bool = False

    @property
    def iterations(self) -> int:
        """Timed iterations of an arm and shape in all."""
        return self.loads * self.per_load

    @property
    def per_turn(self) -> int:
        """Timed iterations of an arm and shape one after the other."""
        return 1 if self.mode == "turns" else self.per_load


@frozen
class Skipped:
    """An arm, or one evaluator of it, that was left out. `evaluator` is None for all of them."""

    arm: str
    evaluator: str | None
    reason: str


@frozen
class Sweep:
    """Where the load points of users ended by themselves, and why."""

    most_users: int
    reason: str


@frozen
class RunRecord:
    """One run.

    Attributes:
        run_id: 32 hexadecimal digits; also a tag in MLflow.
        command: that began it: run, perf or ppl.
        started, ended: UTC, ISO 8601.
        options: of the command, secrets removed.
        evaluators: of every arm by name, the reference first.
        tasks: how many the plan has.
        arms: their settings by name. Empty in records of versions whose arms differed in precision alone.
        sweep: of a run that was given no numbers of users. None before it has ended.
        ended_after: loads of every arm after which a run until decided ended before its most loads. None elsewhere.
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
    ended_after: int | None = None
    sweep: Sweep | None = None
    arms: Mapping[str, ArmSettings] = field(default_factory=dict)
    schema: int = RUN_SCHEMA
