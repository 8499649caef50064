"""What tasks are done with: what arms load, their GPUs, and the sizes of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.data.workload import Shape
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.serving import ServeSettings
from moe_eval.frozen import frozen
from moe_eval.machine.nsys import NsysSettings
from moe_eval.runner.arm_process import Load
from moe_eval.runner.tasks import RECORDED_LOAD, ROUTING_LOAD, TRACED_LOAD, is_served, round_of


@frozen
class ArmConditions:
    """What tasks of one arm are done with.

    Attributes:
        loads: what is loaded, by round: load i has round i, over and over.
        uuids: of the GPUs of every round. Those of a GPU without a UUID are left out.
        routing: the options that make the engine name routed experts. `captures`: that open captures of Nsight Systems.
        experts: of a layer, to choose from. None where routing is not counted.
        serving: with what its server is started. None where it is not served.
        trace_folder: of its server's profiler.
    """

    loads: Sequence[Load]
    uuids: Sequence[tuple[str, ...]] = ((),)
    routing: Mapping[str, object] = field(default_factory=dict)
    captures: Mapping[str, object] = field(default_factory=dict)
    experts: int | None = None
    serving: ServeSettings | None = None
    trace_folder: str | None = None

    def load(self, number: int) -> Load:
        """What is loaded as this load, with the options that it is for."""
        load = self.loads[round_of(number) % len(self.loads)]
        if is_served(number):
            serving = self.serving
            if serving is not None:  # a folder is for the load alone whose profiler runs
                folder = self.trace_folder if number == TRACED_LOAD else None
                serving = replace(serving, trace_folder=folder)
            return replace(load, settings=unbounded(load.settings), serving=serving)
        added = {ROUTING_LOAD: self.routing, RECORDED_LOAD: self.captures}.get(number, {})
        return replace(load, settings=replace(load.settings, options={**load.settings.options, **added}))

    def gpus(self, number: int) -> tuple[str, ...]:
        """The UUIDs of the GPUs of this load."""
        return self.uuids[round_of(number) % len(self.uuids)]


def unbounded(settings: EngineSettings) -> EngineSettings:
    """Settings without what was fitted to shapes: a server takes as many requests as it has room for."""
    return replace(settings, max_length=None, batch_size=None, kv_tokens=None, heaviest_bytes=None)


@frozen
class ServingTask:
    """With what serving tasks are done.

    Attributes:
        requests: the file of the requests.
        minimum: requests of a point.
        tokenizer: the folder or hub name that the load generator gets.
    """

    requests: Path
    minimum: int
    tokenizer: str


@frozen
class Conditions:
    """What tasks are done with.

    Attributes:
        arms: by name, the reference first. `timed`: those that latency tasks are of.
        nsys: how kernels are traced by Nsight Systems. None for torch's profiler.
        workload: the file of the prompts. None where nothing is timed.
        dataset, input_len, num_chunks: of quality tasks.
        iterations, warm_ups: of a latency task.
        together: how many arms stay loaded at once, 1 where each is loaded alone.
        patience: seconds that an arm may take for one task.
        tasks: how arms are evaluated on tasks of the harness. `suites`: what --tasks names, by the names of suites.
        window: tokens in which tasks are scored, None for those of each model.
        serving: None where nothing is served.
    """

    arms: Mapping[str, ArmConditions]
    timed: Sequence[str]
    workload: Path | None
    shapes: Sequence[Shape]
    dataset: str
    input_len: int
    num_chunks: int
    iterations: int
    warm_ups: int
    together: int
    patience: float
    nsys: NsysSettings | None = None
    tasks: TaskOptions | None = None
    suites: Mapping[str, str] = field(default_factory=dict)
    window: int | None = None
    serving: ServingTask | None = None
