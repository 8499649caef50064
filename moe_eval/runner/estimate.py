"""How long a plan takes: what is known of loads, and what its tasks do."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moe_eval.checkpoint import contents, geometry
from moe_eval.engines import registry
from moe_eval.evaluators import floors
from moe_eval.frozen import frozen
from moe_eval.machine.hardware import Gpu
from moe_eval.records.run import LEAST_WARM_UPS
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.folder import read_or_none
from moe_eval.runner.plan import Plan
from moe_eval.runner.request import RunRequest
from moe_eval.runner.tasks import ROUTING_LOAD, LoadResult, Task, is_served, round_of

# by whether there is a GPU: seconds of a load, of a step beside reading weights, and bytes a second. Loads of
# Qwen3-30B-A3B's shape through vLLM 0.22 took 74 to 103 s with compilation and 7 to 23 s without on two H100s. Before
# arms shared what Triton compiles, they took up to 124 and 36 s on others, on H200s 128 and 69 s, and servers on an
# H100 157 and 73 s.
_LOAD_SECONDS = {True: 25.0, False: 10.0}
_COMPILE_SECONDS = 65.0  # beside, where an engine compiles a model for the first time
_STEP_SECONDS = {True: 3e-3, False: 10e-3}
_BYTES_PER_SECOND = {True: 2.5e12, False: 5e9}
_WARM_UP_SECONDS = {True: 15.0, False: 0.5}  # of a load's first shape, until a GPU's temperature is flat
_CALM_CALLS = 8  # of a later shape, until noise is low or steady: 5 to 14 on an H100
_TASK_SECONDS = {True: 1.0, False: 0.0}  # what a shape's first call compiles
_TRACE_SECONDS = {True: 5.0, False: 1.0}
_GENERATOR_SECONDS = 6.0  # of a load generator that starts and ends
_WINDOWS = 600  # about as many as wikitext has
_MOST_LOADS = 50  # of earlier runs, the newest ones


@frozen
class LoadSeconds:
    """Seconds of a load: of the first one of an arm, which compiles, and of a later one.

    Attributes:
        are_measured: whether earlier runs of this machine have taken them.
    """

    first: float
    later: float
    are_measured: bool = False


def sentence(plan: Plan, request: RunRequest, gpus: Sequence[Gpu]) -> str:
    """About how many minutes, in all and for a load, and on which assumptions."""
    seconds = sum(of_tasks(plan, request, gpus).values())
    loads = {(task.arm, task.load) for task in plan.tasks}
    minutes = max(1, round(seconds / 60))
    count = f"{'up to ' * plan.schedule.until_decided}{len(loads)} load{'s' * (len(loads) != 1)}"
    of_load = load_seconds(plan.arms[0].engine, request.folder, gpus) if plan.arms else LoadSeconds(0.0, 0.0)
    first = f", {of_load.first:.0f} s where it compiles" if of_load.first > of_load.later else ""
    source = " (as earlier on this machine)" if of_load.are_measured else ""
    of_one = seconds / 60 / max(1, len(loads))
    qualifier = "at most " * bool(request.serving and request.serving.is_sweep)
    return (
        f"{qualifier}about {minutes} minute{'s' * (minutes != 1)} for {count} ({of_one:.1f} a load), if "
        f"loading takes {of_load.later:.0f} s{first}{source} and weights are read at "
        f"{_BYTES_PER_SECOND[bool(gpus)] / 1e9:,.0f} GB/s"
        f"{'; tasks of lm-eval take their time besides' * bool(plan.suites)}"
    )


def of_tasks(plan: Plan, request: RunRequest, gpus: Sequence[Gpu]) -> dict[Task, float]:
    """Seconds of every task. The first task of a load has those of the load."""
    arms = {arm.name: arm for arm in plan.arms}
    engines = {arm.engine: load_seconds(arm.engine, request.folder, gpus) for arm in plan.arms}
    works = {arm.name: _Work(arm, plan, request, gpus) for arm in plan.arms}
    is_loaded: set[tuple[str, int]] = set()
    expected: dict[Task, float] = {}
    for task in plan.tasks:
        beside = [task.arm]
        if plan.schedule.mode == "turns" and task.kind == "latency":  # all of them are loaded before the first turn
            beside = list(plan.timed)
        missing = [name for name in beside if (name, task.load) not in is_loaded]
        loads = {name: _load(arms[name], task.load, engines[arms[name].engine]) for name in missing}
        is_loaded.update((name, task.load) for name in missing)
        places = {name: plan.placement.gpus(name, round_of(task.load)) for name in missing}
        expected[task] = works[task.arm].seconds(task) + _at_once(loads, places)
    return expected


def load_seconds(engine: str, folder: Path, gpus: Sequence[Gpu]) -> LoadSeconds:
    """Seconds of loads on an engine: medians of earlier runs in a folder and those beside it, else what is assumed."""
    patterns = (f"{folder.name}/earlier/*/*arms/*/load_*.json", "*/*arms/*/load_*.json")
    files = [file for pattern in patterns for file in folder.resolve().parent.glob(pattern)]
    newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[:_MOST_LOADS]
    device = gpus[0].name if gpus else "cpu"
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for file in newest:
        result = read_or_none(file, LoadResult)
        facts = result.labels.engine if result else None
        if result and facts and result.seconds and facts.name == engine and facts.device_name.endswith(device):
            seconds[file.stem == "load_0"].append(result.seconds)
    is_compiling = bool(gpus) and registry.named(engine).traits is not None
    later = statistics.median(seconds[False]) if seconds[False] else _LOAD_SECONDS[bool(gpus)]
    first = statistics.median(seconds[True]) if seconds[True] else later + _COMPILE_SECONDS * is_compiling
    return LoadSeconds(first, later, bool(seconds[True] or seconds[False]))


def _load(arm: Arm, load: int, seconds: LoadSeconds) -> float:
    """Seconds of one load. A server compiles for other lengths than the engine itself."""
    if arm.is_endpoint:
        return 0.0
    compiles = load == 0 or (is_served(load) and round_of(load) == 0)
    is_eager = load == ROUTING_LOAD or bool(arm.settings.options.get("enforce_eager"))
    return seconds.first if compiles and not is_eager else seconds.later


def _at_once(loads: Mapping[str, float], places: Mapping[str, Iterable[int]]) -> float:
    """Seconds of loads by arm: those that share no GPU load at the same time, the others one after the other."""
    taken: set[int] = set()
    together, alone = [0.0], 0.0
    for name, seconds in loads.items():
        gpus = {*places[name]}
        if gpus and not gpus & taken:
            together.append(seconds)
            taken |= gpus
        else:
            alone += seconds
    return max(together) + alone


class _Work:
    """What the tasks of an arm take once it is loaded."""

    def __init__(self, arm: Arm, plan: Plan, request: RunRequest, gpus: Sequence[Gpu]) -> None:
        self._plan, self._request, self._gpu = plan, request, bool(gpus)
        self._sizes = None if arm.is_endpoint else geometry.read(contents.read_config(fit.folder(arm)))
        self._weights = fit.need_of(arm, plan.shapes, gpus).weights or 0

    def seconds(self, task: Task) -> float:
        """Seconds of one task."""
        if task.kind in ("quality", "noise"):
            return (self._request.num_chunks or _WINDOWS) * self._step(None)
        if task.kind == "kernels":
            return _TRACE_SECONDS[self._gpu]
        if task.point is not None:
            return self._point(task)
        if task.shape is None:
            return 0.0
        schedule = self._plan.schedule
        iteration = task.shape.output_len * self._step(task.shape.batch_size)
        warm_up = 0.0
        if task.turn == 0:
            calls = schedule.warm_ups
            settles = _WARM_UP_SECONDS[self._gpu] if calls >= LEAST_WARM_UPS else 0.0
            if settles and self._gpu and task.shape != self._plan.shapes[0]:
                calls, settles = max(calls, _CALM_CALLS), 0.0
            warm_up = _TASK_SECONDS[self._gpu] + max(settles, iteration * calls)
        return warm_up + iteration * schedule.per_turn

    def _step(self, batch_size: int | None) -> float:
        """Seconds of a step of so many sequences, or of one that reads all weights."""
        share = 1.0
        if self._sizes is not None and batch_size is not None:
            distinct = floors.expected_distinct(self._sizes.experts, self._sizes.top_k, batch_size)
            share = distinct / self._sizes.experts
        return self._weights * share / _BYTES_PER_SECOND[self._gpu] + _STEP_SECONDS[self._gpu]

    def _point(self, task: Task) -> float:
        """Seconds of a server at a point: so many requests of users who wait, or that come at a rate."""
        point, serving = task.point, self._request.serving
        if point is None or serving is None:
            return 0.0
        requests = point.requests(serving.minimum) + point.warm_up
        if point.request_rate is not None:
            return _GENERATOR_SECONDS + requests / point.request_rate
        users = point.concurrency or 1
        return _GENERATOR_SECONDS + requests / users * serving.output_len * self._step(users)
