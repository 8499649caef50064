"""What a command that loads arms was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, TypedDict

from moe_eval.data.harness_tasks import TaskOptions
from moe_eval.data.served_requests import LoadPoint
from moe_eval.data.workload import Shape
from moe_eval.frozen import frozen
from moe_eval.machine.nsys import NsysSettings
from moe_eval.records.labels import OptionValue
from moe_eval.records.run import EvaluatorName
from moe_eval.records.serving import ServingLimits

Command = Literal["run", "perf", "ppl"]


class SharedSettings(TypedDict, total=False):
    """Fields of EngineSettings that are the same for all arms."""

    dtype: str
    device: str
    revision: str
    trust_remote_code: bool


@frozen
class NamedArm:
    """One arm whose settings have a name of their own.

    Attributes:
        precision: None for the one that the checkpoint holds.
        options: of its engine. `settings`: of its EngineSettings. `environment`: variables of its process.
    """

    name: str
    engine: str
    checkpoint: str
    precision: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    settings: SharedSettings = field(default_factory=SharedSettings)
    environment: Mapping[str, str] = field(default_factory=dict)


@frozen
class ArmsRequest:
    """Which arms.

    Attributes:
        precisions: by name, the reference first.
        paths: checkpoints by `model`, `fp8` and `nvfp4`. None where there is none.
        emulate: compute FP8 and NVFP4 from the one checkpoint `model`, in `scope`. None where the command cannot.
        options: of the engine, for every arm. `settings`: of every arm's EngineSettings.
        arms: by name, in place of `precisions`, the reference first. Empty for arms that differ in precision alone.
    """

    engine: str
    precisions: Sequence[str]
    paths: Mapping[str, str | None]
    emulate: bool | None = False
    scope: str = "experts"
    options: Mapping[str, object] = field(default_factory=dict)
    settings: SharedSettings = field(default_factory=SharedSettings)
    arms: Sequence[NamedArm] = ()


@frozen
class ServingRequest:
    """How servers are driven.

    Attributes:
        is_sweep: points of users are tried in order, until more users add nothing.
        lengths: a file of the requests' lengths. None for those of input_len and `output_len`.
        minimum: requests of a point.
        port: of every server, None for any that is free.
    """

    points: tuple[LoadPoint, ...]
    output_len: int
    is_sweep: bool = False
    lengths: Path | None = None
    minimum: int = 100
    limits: ServingLimits = field(default_factory=ServingLimits)
    port: int | None = None
    prefix_caching: bool = False


@frozen
class RunRequest:
    """What is measured of the arms, and where its records go.

    Attributes:
        tokenizer: the folder or hub name. None where each checkpoint has its own.
        dataset, seed: what prompts are cut from and windows are scored of. The seed is of `random` prompts.
        input_len: tokens of a window and of a prompt. `num_chunks`: windows to score, 0 for all.
        iterations, warm_ups, loads: see plan.schedule.
        most_loads: of a run until decided. None for a run of exactly `loads`. `most_minutes`: after which it makes no
            more.
        min_gain: the least gain that counts.
        repeat_reference: measure the reference a second time, as an arm of its own.
        options: of the command as a record has them, secrets removed.
        timeout_s: seconds that an arm may take for one task.
        resume: go on with the run that is in the folder.
        nsys: how Nsight Systems traces kernels. None for torch's profiler.
        tasks: of the harness. None where arms are evaluated on none.
        serving: None where no server is driven.
    """

    command: Command
    arms: ArmsRequest
    tokenizer: str | None
    evaluators: tuple[EvaluatorName, ...]
    shapes: tuple[Shape, ...]
    dataset: str
    seed: int
    input_len: int
    num_chunks: int
    iterations: int
    warm_ups: int
    loads: int
    most_loads: int | None
    most_minutes: float | None
    min_gain: float
    repeat_reference: bool
    folder: Path
    options: Mapping[str, OptionValue]
    fusion_disabled: bool
    timeout_s: float
    resume: bool
    nsys: NsysSettings | None = None
    tasks: TaskOptions | None = None
    serving: ServingRequest | None = None
