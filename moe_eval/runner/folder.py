"""A run's folder: its plan, a lock, and one file for every step that has been done."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_eval import records
from moe_eval.errors import UsageError
from moe_eval.runner.steps import Step

RUN = "run.json"
SCHEMA = 1
# arms of a run that was killed close their engines before they let go of the lock
_WAIT_SECONDS = 90.0


class RunFolder:
    """Reads and writes the files of a run; whoever runs steps holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self, wait: float = _WAIT_SECONDS) -> Iterator[int]:
        """Hold the folder's lock, whose file descriptor arms inherit: it is free when the last of them has ended.

        Raises:
            UsageError: another run has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + wait
        with (self.path / ".lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise UsageError(
                            f"Another run is at work in {self.path}; wait until it has ended, or give another "
                            "--output_dir."
                        ) from None
                    time.sleep(0.2)
            self._sweep()
            yield file.fileno()

    def _sweep(self) -> None:
        """Remove what a run that was killed was writing: files get their names when they are whole."""
        for pattern in (".*.json.*", ".report.*", "arms/*/.*.json.*"):
            for left in self.path.glob(pattern):
                left.unlink()
        for left in self.path.glob("arms/*/.trace-*"):
            shutil.rmtree(left)

    def run(self) -> dict[str, Any]:
        """What the run is.

        Raises:
            UsageError: there is no run here, or one of another schema.
        """
        file = self.path / RUN
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA:
                raise UsageError(f"{file} has schema {found['schema']}; this moe_eval reads schema {SCHEMA}.")
        except OSError:
            raise UsageError(f"{self.path} holds no {RUN}; give the folder of a run, or leave out --resume.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is not the plan of a run ({error}).") from None
        return found

    def exists(self) -> bool:
        return (self.path / RUN).exists()

    def write_run(self, content: dict[str, Any]) -> None:
        records.write_json(self.path / RUN, {"schema": SCHEMA, **content})

    def of_arm(self, arm: str) -> Path:
        """The folder of an arm."""
        found = self.path / "arms" / arm
        found.mkdir(parents=True, exist_ok=True)
        return found

    def file(self, step: Step) -> Path:
        return self.of_arm(step.arm) / f"{step.name}.json"

    def result(self, step: Step) -> dict[str, Any] | None:
        """What a step has left; None where it has not run."""
        file = self.file(step)
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def done(self, step: Step) -> bool:
        """Whether a step need not run again; one that failed has to."""
        found = self.result(step)
        return found is not None and found["status"] == "finished"

    def write(self, step: Step, content: dict[str, Any]) -> None:
        records.write_json(self.file(step), content)

    def missing(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are left, in order.

        Of a round of arms that take turns nothing is kept unless all of it is there: its halves belong together.
        """
        torn = {(step.shape, step.block) for step in steps if step.kind == "latency" and not self.done(step)}
        whole = {step.turn for step in steps} > {0}
        return [
            step
            for step in steps
            if not self.done(step) or (whole and step.kind == "latency" and (step.shape, step.block) in torn)
        ]
