"""A run's folder: its plan, a lock, and one file for every step that has been done."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError
from moe_eval.evaluators.perplexity import Scores
from moe_eval.records import disk
from moe_eval.runner.steps import ROUTING_LOAD, Step

RUN = "run.json"
SCHEMA = 1
# arms of a run that was killed close their engines before they let go of the lock
_WAIT_SECONDS = 90.0
_QUIET_SECONDS = 2.0  # of waiting that need no word
_NEEDED = ("run_id", "status", "started", "asked", "evaluators", "skipped", "schedule", "machine", "versions", "git")


def say(sentence: str) -> None:
    """Tell the user on standard error, above a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(f"moe-eval: {sentence}", file=sys.stderr)


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
        begun, told = time.monotonic(), False
        with (self.path / ".lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waited = time.monotonic() - begun
                    if waited > wait:
                        raise UsageError(
                            f"Another run is at work in {self.path}; wait until it has ended, or give another "
                            "--output_dir."
                        ) from None
                    if waited > _QUIET_SECONDS and not told:
                        say(f"Another run is at work in {self.path}; waiting up to {wait:.0f} s for its end.")
                        told = True
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
            missing = [key for key in _NEEDED if key not in found]
            if missing:
                raise KeyError(*missing[:1])
            if not isinstance(found["evaluators"], dict) or "mode" not in found["schedule"]:
                raise ValueError("evaluators or schedule")
        except OSError:
            raise UsageError(f"{self.path} holds no {RUN}; give the folder of a run, or leave out --resume.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{file} is not the plan of a run ({type(error).__name__}: {error}); give another --output_dir."
            ) from None
        return found

    def exists(self) -> bool:
        return (self.path / RUN).exists()

    def write_run(self, content: dict[str, Any]) -> None:
        disk.write_json(self.path / RUN, {"schema": SCHEMA, **content})

    def of_arm(self, arm: str) -> Path:
        """The folder of an arm."""
        found = self.path / "arms" / arm
        found.mkdir(parents=True, exist_ok=True)
        return found

    def file(self, step: Step) -> Path:
        return self.of_arm(step.arm) / f"{step.name}.json"

    def load_file(self, arm: str, load: int) -> Path:
        """What a load of an arm has said of itself, and the memory that it took."""
        return self.of_arm(arm) / ("load_routing.json" if load == ROUTING_LOAD else f"load_{load}.json")

    def arrays(self, arm: str, kind: str) -> Path:
        """The scores that a step of this kind has left."""
        return self.of_arm(arm) / f"{kind}.npz"

    def result(self, step: Step) -> dict[str, Any] | None:
        """What a step has left; None where it has not run, or its file is damaged."""
        found = _object(self.file(step), "status")
        if found is None:
            return None
        whole = isinstance(found.get("result"), dict) if found["status"] == "finished" else "error" in found
        return found if whole else None

    def mend(self, steps: Sequence[Step]) -> list[str]:
        """Forget the steps whose files cannot be read, so that they are done again.

        A step that has finished needs what its load has said of itself, and a perplexity its scores.

        Returns:
            A sentence for every step that is forgotten.
        """
        for file in self.path.glob("arms/*/load_*.json"):
            if not isinstance((_object(file, "before", "after", "labels") or {}).get("labels"), dict):
                file.unlink()
        return [
            f"{file} is missing or damaged, so {step.arm} {step.name} is measured again."
            for step, file in self._lost(steps)
        ]

    def _lost(self, steps: Sequence[Step]) -> Iterator[tuple[Step, Path]]:
        for step in steps:
            file, found = self.file(step), self.result(step)
            damaged = file if file.exists() and found is None else None
            if found is not None and found["status"] == "finished":
                load, arrays = self.load_file(step.arm, step.load), self.arrays(step.arm, step.kind)
                if not load.exists():
                    damaged = load
                elif step.kind in ("perplexity", "noise") and not _opens(arrays):
                    damaged = arrays
            if damaged is not None:
                file.unlink()
                yield step, damaged

    def done(self, step: Step) -> bool:
        """Whether a step need not run again; one that failed has to."""
        found = self.result(step)
        return found is not None and found["status"] == "finished"

    def write(self, step: Step, content: dict[str, Any]) -> None:
        disk.write_json(self.file(step), content)

    def missing(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are left, in order.

        Of a block nothing is kept unless it is there of all arms, where there are several: its ratio is free of drift
        only if they were measured one after the other.
        """
        torn = {(step.shape, step.block) for step in steps if step.kind == "latency" and not self.done(step)}
        whole = {(step.block, step.turn) for step in steps} > {(0, 0)}
        return [
            step
            for step in steps
            if not self.done(step) or (whole and step.kind == "latency" and (step.shape, step.block) in torn)
        ]


def _object(file: Path, *keys: str) -> dict[str, Any] | None:
    """A JSON object with these keys; None where the file holds no such thing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(keys) else None


def _opens(arrays: Path) -> bool:
    try:
        Scores.load(arrays)
    except Exception:  # zipfile, zlib and NumPy raise whatever they like at a damaged archive
        return False
    return True
