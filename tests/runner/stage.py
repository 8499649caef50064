"""Made-up arms in place of processes: they answer from their name and what they were asked, and fail on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval.data.workload import Shape
from moe_eval.engines.base import EngineSettings
from moe_eval.evaluators.perplexity import Scores
from moe_eval.evaluators.routing import Routing
from moe_eval.runner.arm_process import ArmFailed, Load
from moe_eval.runner.execute import How
from moe_eval.runner.steps import Step

SHAPES = (Shape(1, 8, 4), Shape(2, 8, 4))


def number(*parts: object) -> float:
    """A number between 0 and 1 that depends on nothing but what it is of."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


class Stage:
    """Stands in for ArmProcess.

    Attributes:
        asked: (arm, task, process) of everything that was asked. `alive`: processes that have not ended.
        fails: reasons by (arm, task), or by (arm, task, shape).
        uuids: of the GPUs that were to be metered, of every measurement.
        before: called before every answer, and with `end` before a process ends.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.alive: set[int] = set()
        self.most_alive = 0
        self.fails: dict[tuple[str, ...], str] = {}
        self.uuids: list[list[str]] = []
        self.before: Callable[[str, str], None] = lambda arm, task: None
        self.started = 0

    def __call__(self, load: Load, *, patience: float, output: Path, held: Sequence[int]) -> _Process:
        self.started += 1
        self.alive.add(self.started)
        self.most_alive = max(self.most_alive, len(self.alive))
        with output.open("a") as log:
            log.write(f"arm {load.settings.checkpoint} began\n")
        return _Process(self, load, self.started)

    def order(self, *tasks: str) -> list[str]:
        return [arm for arm, task, _ in self.asked if task in tasks]


class _Process:
    def __init__(self, stage: Stage, load: Load, number: int) -> None:
        self._stage, self._number = stage, number
        self._name = load.settings.precision or load.settings.checkpoint
        self.tells = bool(load.settings.options.get("tell"))

    def load(self) -> dict[str, Any]:
        return self.ask("load")

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        stage = self._stage
        stage.before(self._name, task)
        stage.asked.append((self._name, task, self._number))
        shape = arguments.get("shape")
        keys = [(self._name, task), (self._name, task, Shape(**shape).name if shape else "")]
        reason = next((stage.fails[key] for key in keys if key in stage.fails), None)
        if reason is not None:
            raise ArmFailed(reason)
        found: dict[str, Any] = getattr(self, f"_{task}")(arguments)
        return found

    def _load(self, _: Any) -> dict[str, Any]:
        return {"engine": {"name": "made up", "precision": self._name, "device": "cpu"}}

    def _perplexity(self, asked: Any) -> dict[str, Any]:
        nats = np.array([-number(self._name, at) for at in range(6)], np.float32)
        Scores(nats, np.array([3, 3]), np.array([0, 1]), np.zeros((6, 1), np.int32), nats[:, None], "d").save(
            Path(asked["arrays"])
        )
        figures = dict.fromkeys(("perplexity", "word_ppl", "bits_per_byte"), 1 + number(self._name))
        labels = {name: asked[name] for name in ("dataset", "input_len", "num_chunks")}
        return {**figures, **labels, "dataset_digest": "d"}

    def _warm_up(self, _: Any) -> dict[str, Any]:
        return {"seconds": [1.0] * 5, "ended": "noise below 0.5 %"}

    def _measure(self, asked: Any) -> dict[str, Any]:
        self._stage.uuids.append(asked["uuids"])
        took = {"host": 1 + number(self._name, asked["shape"]["batch_size"])}
        sample = {"started": 1.0, "ended": 2.0, "first": {"host": 0.5}, "last": took}
        return {"samples": [{**sample, "request_first": None, "energy_j": None}] * asked["iterations"]}

    def _kernels(self, asked: Any) -> dict[str, Any]:
        (Path(asked["folder"]) / f"{asked['name']}.json.gz").write_bytes(b"trace")
        return {"shape": Shape(**asked["shape"]).name, "contradiction": None}

    def _routing(self, asked: Any) -> dict[str, Any]:
        assert self.tells
        load = np.ones((1, 4), np.int64)
        return {str(size): Routing(size, 4, 2, 3, 2.0, 2.0, load, 4.0, 1.0).to_json() for size in asked["batch_sizes"]}

    def end(self) -> None:
        self._stage.before(self._name, "end")
        self.kill()

    def kill(self) -> None:
        self._stage.alive.discard(self._number)


def how(arms: str, tmp_path: Path, *, together: bool = False, iterations: int = 2) -> How:
    """Arms that are called by letters."""
    frozen = tmp_path / "workload.json"
    frozen.write_text(json.dumps({}))
    return How(
        loads={name: Load("made up", EngineSettings(name), name) for name in arms},
        timed=list(arms),
        routing={"tell": True},
        experts=4,
        workload=frozen,
        batch_sizes=[1, 2],
        shapes=SHAPES,
        quality={"dataset": "none", "input_len": 8, "num_chunks": 0},
        iterations=iterations,
        warm_ups=5,
        together=together,
        patience=60,
        uuids=[],
    )


def nothing(_: Step, __: str | None = None) -> None:
    """Take no notice."""
