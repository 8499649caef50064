"""A run's folder: its plan, a lock, and one file for every task that has been done."""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import msgspec

from moe_eval.errors import UsageError
from moe_eval.evaluators.quality import Scores
from moe_eval.machine.hardware import Gpu
from moe_eval.outside.words import one_line
from moe_eval.records import disk
from moe_eval.records.by_arm import EARLIER
from moe_eval.records.run import RUN_FILE, RUN_SCHEMA, RunRecord
from moe_eval.runner.request import Command
from moe_eval.runner.tasks import (
    RECORDED_LOAD,
    ROUTING_LOAD,
    TRACED_LOAD,
    Kind,
    LoadResult,
    Task,
    TaskResult,
    is_served,
    round_of,
    served_load,
)

LOG = "log.txt"
# arms of a run that was killed close their engines before they let go of the lock
_WAIT_SECONDS = 90.0
_QUIET_SECONDS = 2.0  # of waiting that need no word
Result = TypeVar("Result", TaskResult, LoadResult)


def say(sentence: str) -> None:
    """Print a sentence to standard error."""
    print(f"moe-eval: {one_line(sentence)}", file=sys.stderr, flush=True)


def place(gpus: Sequence[Gpu]) -> str:
    """The end of a record's file name: the first GPU's compute capability, or `cpu`."""
    return f"sm{gpus[0].sm}" if gpus else "cpu"


class RunFolder:
    """Reads and writes the files of a run. Whoever runs tasks holds its lock, which all commands share.

    Attributes:
        where: the end of record names, see `place`.
    """

    def __init__(self, path: Path, command: Command = "run", where: str = "cpu") -> None:
        self.path, self.command, self.where = path, command, where
        prefix = _prefix(command)
        self.run_file = path / f"{prefix}{RUN_FILE}"
        self.arms = path / f"{prefix}arms"
        self.reports = path / "nsys"  # raw ones, which are never logged
        self.rates_file = path / f"{prefix}rates.json"
        self.comparison_file = path / f"{prefix}comparison.json"
        self.page_file = path / f"{prefix}report.html"
        self.text_file = path / f"{prefix}report.md"

    @contextmanager
    def locked(self, wait: float = _WAIT_SECONDS) -> Iterator[int]:
        """Hold the folder's lock, whose file descriptor arms inherit: it is free when the last of them has ended.

        Raises:
            UsageError: another run has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            self._wait(file.fileno(), wait)
            self._sweep()
            yield file.fileno()

    def _wait(self, lock: int, seconds: float) -> None:
        begun, announced = time.monotonic(), False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited = time.monotonic() - begun
            if waited > seconds:
                raise UsageError(
                    f"Another run is at work in {self.path}. Wait until it has ended, or give another --output_dir."
                )
            if waited > _QUIET_SECONDS and not announced:
                say(f"Another run is at work in {self.path}. Waiting up to {seconds:.0f} s for its end.")
                announced = True
            time.sleep(0.2)

    def _sweep(self) -> None:
        """Remove what a run that was killed was writing: files get their names when they are whole."""
        arms = [f"{_prefix(command)}arms" for command in ("run", "perf", "ppl")]
        for pattern in (".*.json.*", ".*report.*", *(f"{folder}/*/.*.json.*" for folder in arms)):
            for partial in self.path.glob(pattern):
                partial.unlink()
        for folder in arms:
            for partial in self.path.glob(f"{folder}/*/.trace-*"):
                shutil.rmtree(partial)

    def set_aside(self, records: Collection[str]) -> None:
        """Move the files of an earlier command of this kind to earlier/TIME.

        Args:
            records: names without suffixes that this command will write, beside the files of the run itself.
        """
        of_run = [self.run_file, self.arms, self.rates_file, self.comparison_file, self.page_file, self.text_file]
        files = [file for file in of_run if file.exists()]
        files += [file for file in self.path.glob("*.*") if file.name.startswith(tuple(f"{name}." for name in records))]
        if not files:
            return
        latest = max(file.stat().st_mtime for file in files)
        target = self.path / EARLIER / f"{datetime.fromtimestamp(latest, timezone.utc):%Y%m%dT%H%M%S%f}"
        target.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.rename(target / file.name)
        say(f"{len(files)} files of an earlier command were moved to {target}.")

    def run(self) -> RunRecord:
        """The run that is here.

        Raises:
            UsageError: there is none, or it cannot be gone on with.
        """
        if not self.exists():
            raise UsageError(
                f"{self.path} holds no {self.run_file.name}. Give the folder of a run, or leave out --resume."
            )
        maker = f"moe-eval {self.command}"
        return disk.read_record(self.run_file, RunRecord, schemas=(RUN_SCHEMA,), maker=maker)

    def exists(self) -> bool:
        return self.run_file.exists()

    def of_arm(self, arm: str) -> Path:
        """The folder of an arm."""
        folder = self.arms / arm
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def file(self, task: Task) -> Path:
        return self.of_arm(task.arm) / f"{task.name}.json"

    def load_file(self, arm: str, load: int) -> Path:
        """What a load of an arm has said of itself, and the memory that it took."""
        names = {ROUTING_LOAD: "routing", RECORDED_LOAD: "recorded"}
        if is_served(load):
            return self.of_arm(arm) / f"served_{'traced' if load == TRACED_LOAD else round_of(load)}.json"
        return self.of_arm(arm) / f"load_{names.get(load, load)}.json"

    def loads(self, arm: str) -> list[LoadResult]:
        """Its loads in order, without the one that routing was counted in."""
        files = sorted((self.arms / arm).glob("load_[0-9]*.json"), key=lambda file: int(file.stem.partition("_")[2]))
        results = [read_or_none(file, LoadResult) for file in files]
        return [result for result in results if result is not None]

    def served(self, arm: str) -> LoadResult | None:
        """What the first of its servers has said of itself. None where none got ready."""
        return read_or_none(self.load_file(arm, served_load(0)), LoadResult)

    def generated(self, task: Task) -> Path:
        """The folder of what a load generator has written in a serving task."""
        return self.of_arm(task.arm) / task.name

    def arrays(self, arm: str, kind: Kind) -> Path:
        """The scores that a task of this kind leaves. A noise task scores windows in batches of one."""
        return self.path / f"ppl_{arm}_{self.where}{'.batch1' if kind == 'noise' else ''}.npz"

    def harness_results(self, arm: str) -> Path:
        """The folder of the harness's results and samples of an arm."""
        return self.of_arm(arm) / "tasks"

    def answers(self, task: Task) -> Path:
        """What a model has answered in a tasks task."""
        return self.of_arm(task.arm) / f"{task.name}.answers.jsonl"

    def result(self, task: Task) -> TaskResult | None:
        """What a task has left. None where it has not run, or its file is damaged."""
        result = read_or_none(self.file(task), TaskResult)
        return result if result is not None and result.fits(task.kind) else None

    def mend(self, tasks: Sequence[Task]) -> list[str]:
        """Forget the tasks whose files cannot be read, so that they are done again.

        A finished task needs what its load has said of itself, and a quality task its scores.

        Returns:
            A sentence for every task that is forgotten.
        """
        for file in (*self.arms.glob("*/load_*.json"), *self.arms.glob("*/served_*.json")):
            if read_or_none(file, LoadResult) is None:
                file.unlink()
        return [
            f"{file} is missing or damaged, so {task.arm} {task.name} is measured again."
            for task, file in self._lost(tasks)
        ]

    def _lost(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Path]]:
        for task in tasks:
            file, result = self.file(task), self.result(task)
            damaged = file if file.exists() and result is None else None
            if result is not None and result.is_finished:
                load, arrays = self.load_file(task.arm, task.load), self.arrays(task.arm, task.kind)
                if not load.exists():
                    damaged = load
                elif task.kind in ("quality", "noise") and not _opens(arrays):
                    damaged = arrays
                elif result.tasks and not (results := self.harness_results(task.arm) / result.tasks.file).is_file():
                    damaged = results
            if damaged is not None:
                file.unlink()
                yield task, damaged

    def done(self, task: Task) -> bool:
        """Whether a task need not run again. One that failed has to."""
        result = self.result(task)
        return result is not None and result.is_finished

    def write(self, task: Task, result: TaskResult) -> None:
        disk.write_record(self.file(task), result)

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks that are left, in order.

        Of a load's times at a shape nothing is kept unless they are there of all arms: their ratio is free of drift
        only if they were measured one after the other.
        """
        done = {task for task in tasks if self.done(task)}
        torn = {(task.shape, task.load) for task in tasks if task.kind == "latency" and task not in done}
        return [
            task for task in tasks if task not in done or (task.kind == "latency" and (task.shape, task.load) in torn)
        ]


def _prefix(command: str) -> str:
    return "" if command == "run" else f"{command}_"


def read_or_none(file: Path, kind: type[Result]) -> Result | None:
    """What a file of a run holds. None where the file is not there or does not fit."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def _opens(arrays: Path) -> bool:
    try:
        Scores.load(arrays)
    except UsageError:
        return False
    return True
