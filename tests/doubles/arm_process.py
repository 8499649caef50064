"""Made-up arms in place of processes: they answer from their name and their task, and fail on demand."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from moe_eval.data.served_requests import LoadPoint
from moe_eval.data.workload import Shape
from moe_eval.evaluators.kernels import CapturedRun
from moe_eval.evaluators.quality import Scores
from moe_eval.machine.rates import Rates
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, EngineFacts
from moe_eval.records.quality import QualityFigures
from moe_eval.records.samples import Sample, WarmUp
from moe_eval.records.serving import ServedLoad
from moe_eval.records.shape_latency import Routing
from moe_eval.records.tasks import EvaluatedSuite
from moe_eval.runner.arm_process import ArmFailed, Load
from tests.doubles import harness_results, nsys, served
from tests.doubles.nvml import Card

Result = TypeVar("Result")
MACHINE = "machine"  # the name of a process without an arm
FACTS = EngineFacts(
    name="made up",
    version="1",
    checkpoint="x",
    fingerprint="0",
    architecture="X",
    vocabulary=100,
    precision="bf16",
    emulated=False,
    dtype="bfloat16",
    device="cpu",
    device_name="cpu",
    max_length=64,
    worker="in_process",
    attention_backend=None,
    moe_backend_requested=None,
    moe_backend_observed=None,
    kv_cache_dtype=None,
    cuda_graph_batch_sizes=None,
    scores_from="nothing",
)


def number(*parts: object) -> float:
    """A number between 0 and 1 that depends on nothing but what it is of."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


def routing(batch_size: int) -> Routing:
    """A batch of which every token goes through all of four experts."""
    return Routing(batch_size, 4, 2, 3, 2.0, 2.0, ((1, 1, 1, 1),), 4.0, 1.0)


@dataclass(frozen=True)
class Request:
    """A task that an arm was to do, in which process. `load` is None where the process has no arm."""

    arm: str
    task: str
    process: int
    load: Load | None
    arguments: Mapping[str, Any]


@dataclass
class Stage:
    """Stands in for ArmProcess. An arm is called by its precision, or by the last part of its checkpoint's path.

    Attributes:
        fails: what to fail with by (arm, task), (arm, task, shape or point) or (arm, task, how often it works before).
        card, memory: a loaded arm takes so many bytes of this GPU.
        pause: seconds that a measurement lasts. Without it all of them are of one made-up second.
        has_ended: whether processes end by themselves.
        seconds: that an iteration takes by its record, by arm and batch size.
        routing: of arms by name, in place of `routing` above.
        before: called before every answer, and with `end` before a process ends.
        asked: everything that arms were to do. `events`: (arm, task) of what they did, ends included.
        launchers: what started each process.
        alive: processes that have not ended. `most_alive`: of them at once.
    """

    fails: dict[tuple[str | int, ...], str | BaseException] = field(default_factory=dict)
    card: Card | None = None
    memory: int = 0
    pause: float = 0.0
    seconds: Callable[[str, int], float] = lambda arm, batch_size: 1 + number(arm, batch_size)
    routing: dict[str, dict[int, Routing]] = field(default_factory=dict)
    before: Callable[[str, str], object] = lambda arm, task: None
    asked: list[Request] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    launchers: list[tuple[str, ...]] = field(default_factory=list)
    alive: set[int] = field(default_factory=set)
    most_alive: int = 0
    started: int = 0
    has_ended: bool = True

    def __call__(
        self,
        load: Load | None,
        *,
        patience: float | None = None,
        output: Path | None = None,
        held: Sequence[int] = (),
        launcher: Sequence[str] = (),
    ) -> Process:
        self.started += 1
        self.launchers.append(tuple(launcher))
        self.alive.add(self.started)
        self.most_alive = max(self.most_alive, len(self.alive))
        if load is not None and output is not None:
            with output.open("a") as log:
                log.write(f"arm {load.settings.checkpoint} began\n")
        return Process(self, load, self.started, tuple(launcher))

    def order(self, *tasks: str) -> list[str]:
        """The arms in the order in which they were to do one of these tasks."""
        return [request.arm for request in self.asked if request.task in tasks]


class Process:
    """One made-up process."""

    def __init__(self, stage: Stage, load: Load | None, identity: int, launcher: tuple[str, ...] = ()) -> None:
        self._stage, self._load, self._identity = stage, load, identity
        settings = load.settings if load else None
        self.name = settings.precision or settings.checkpoint.rpartition("/")[2] if settings else MACHINE
        self._is_loaded, self.is_alive = False, True
        self.launcher, self.captures = launcher, 0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin_imports(self) -> None:
        """As ArmProcess.begin_imports."""
        self._stage.events.append((self.name, "import"))

    def end_imports(self) -> None:
        """As ArmProcess.end_imports. It fails once for each time that it is to."""
        failure = self._stage.fails.pop((self.name, "import"), None)
        if failure is not None:
            self.is_alive = False
            raise failure if isinstance(failure, BaseException) else ArmFailed(failure)
        self._stage.events.append((self.name, "imported"))

    def begin(self) -> None:
        """As ArmProcess.begin."""
        self._stage.events.append((self.name, "begin"))

    def load(self) -> ArmLabels:
        """As ArmProcess.load."""
        labels = self.ask("load", ArmLabels)
        self._is_loaded = True
        if self._stage.card:
            self._stage.card.used += self._stage.memory
        return labels

    def ask(self, task: str, kind: type[Result], **arguments: object) -> Result:
        """As ArmProcess.ask."""
        stage, plain = self._stage, msgspec.json.decode(msgspec.json.encode(arguments))
        stage.before(self.name, task)
        stage.asked.append(Request(self.name, task, self._identity, self._load, plain))
        shape = Shape(**plain["shape"]).name if "shape" in plain else ""
        shape = LoadPoint(**plain["order"]["point"]).name if "order" in plain else shape
        works = Counter(stage.events)[self.name, task]
        keys: list[tuple[str | int, ...]] = [(self.name, task), (self.name, task, shape), (self.name, task, works)]
        failure = next((stage.fails[key] for key in keys if key in stage.fails), None)
        if failure is not None:
            raise failure if isinstance(failure, BaseException) else ArmFailed(failure)
        stage.events.append((self.name, task))
        return msgspec.json.decode(msgspec.json.encode(getattr(self, f"_do_{task}")(plain)), type=kind)

    def _do_load(self, _: Mapping[str, Any]) -> ArmLabels:
        return ArmLabels(replace(FACTS, precision=self.name), 0, "made up")

    def _do_quality(self, arguments: Mapping[str, Any]) -> QualityFigures:
        nats = np.array([-number(self.name, index) for index in range(6)], np.float32)
        Scores(nats, np.array([3, 3]), np.array([0, 1]), np.zeros((6, 1), np.int32), nats[:, None], "d").save(
            Path(arguments["arrays"])
        )
        figure, windows = 1 + number(self.name), arguments["num_chunks"]
        return QualityFigures(
            dataset=arguments["dataset"],
            dataset_digest="d",
            input_len=arguments["input_len"],
            num_chunks=windows,
            of_chunks=windows,
            perplexity=figure,
            per_chunk_ppls=(figure,) * windows,
            tokens=6,
            documents=2,
            whole_documents=2,
            words=4,
            bytes=20,
            word_ppl=figure,
            byte_ppl=figure,
            bits_per_byte=figure,
        )

    def _do_tasks(self, arguments: Mapping[str, Any]) -> EvaluatedSuite:
        """Ten documents, right or wrong by the arm, the suite and the repeat."""
        suite, repeat = Path(arguments["spec"]).stem, arguments["repeat"]
        scores = [float(number(self.name, suite, repeat, document) < 0.5) for document in range(10)]
        minute = sum(task == "tasks" for name, task in self._stage.events if name == self.name)
        date = f"2026-01-02T03-{minute:02}-05.678901"
        harness_results.write(Path(arguments["folder"]), {suite: scores}, date=date, config={"random_seed": repeat})
        return EvaluatedSuite(f"results_{date}.json", len(scores), 0)

    def _do_warm_up(self, arguments: Mapping[str, Any]) -> WarmUp:
        return WarmUp((1.0,) * arguments["minimum"], "noise below 0.5 %")

    def _do_measure(self, arguments: Mapping[str, Any]) -> list[Sample]:
        started, ended = 1.0, 2.0
        if self._stage.pause:
            started = time.perf_counter()
            time.sleep(self._stage.pause)
            ended = time.perf_counter()
        seconds = self._stage.seconds(self.name, arguments["shape"]["batch_size"])
        return [Sample(started, ended, {"host": 0.25}, {"host": seconds})] * arguments["iterations"]

    def _do_serving(self, arguments: Mapping[str, Any]) -> ServedLoad:
        users, count = arguments["order"]["point"]["concurrency"] or 1, arguments["order"]["count"]
        return served.load(count, users, tpot_ms=10 * self._stage.seconds(self.name, users))

    def _do_serving_trace(self, arguments: Mapping[str, Any]) -> KernelsRecord:
        (Path(arguments["trace_folder"]) / f"{arguments['name']}.json.gz").write_bytes(b"trace")
        return KernelsRecord(trace=f"{arguments['name']}.json.gz")

    def _do_kernels(self, arguments: Mapping[str, Any]) -> KernelsRecord:
        (Path(arguments["folder"]) / f"{arguments['name']}.json.gz").write_bytes(b"trace")
        return KernelsRecord(trace=f"{arguments['name']}.json.gz", shape=Shape(**arguments["shape"]).name)

    def _do_capture(self, _: Mapping[str, Any]) -> CapturedRun:
        self.captures += 1
        return CapturedRun(self.name, (500.0, 750.0, 625.0), 750.0)

    def _do_routing(self, arguments: Mapping[str, Any]) -> dict[int, Routing]:
        return self._stage.routing.get(self.name) or {size: routing(size) for size in arguments["batch_sizes"]}

    def _do_rates(self, arguments: Mapping[str, Any]) -> list[Rates]:
        """Every GPU copies a gigabyte a second more than the one before it."""
        flops, device = {"bfloat16": 1e9, "float32": 1e9}, f"made up {arguments['device']}"
        groups = [(tuple(gpus), counts) for gpus, counts in arguments["groups"]] or [((), ())]
        return [
            Rates(1e9 * (1 + min(gpus, default=0)), flops, device, gpus, dict.fromkeys(counts, 1e9))
            for gpus, counts in groups
        ]

    def end(self, seconds: float = 60) -> bool:
        """As ArmProcess.end. Under nsys, that writes its reports now."""
        nsys.finish(self.launcher, self.captures)
        self.launcher = ()
        self._stage.before(self.name, "end")
        self._stage.events.append((self.name, "end"))
        if self._is_loaded and self._stage.card and self._identity in self._stage.alive:
            self._stage.card.used -= self._stage.memory
        self.kill()
        return self._stage.has_ended

    def kill(self) -> None:
        """As ArmProcess.kill."""
        self._stage.alive.discard(self._identity)
