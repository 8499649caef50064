"""What tasks and loads leave on disk: the results from which records are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_eval.machine.sampler import GpuSummary
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, Status
from moe_eval.records.latency import Routing, Sample, WarmUp
from moe_eval.records.quality import QualityFigures
from moe_eval.runner.tasks import Kind


@dataclass(frozen=True)
class TurnResult:
    """One turn of an arm: its iterations, the warm-up of its load, and what NVML saw. `nvml`: why it did not."""

    samples: tuple[Sample, ...]
    warm_up: WarmUp
    gpus: tuple[GpuSummary, ...]
    slow_samples: tuple[bool | None, ...]
    nvml: str | None


@dataclass(frozen=True)
class TaskResult:
    """How a task ended, and the result of its kind.

    Attributes:
        error: why it failed. `output`: the last lines that the arm printed before.
        quality: of a quality or noise task, which leave their scores in a file of their own.
    """

    status: Status
    error: str | None = None
    output: tuple[str, ...] = ()
    seconds: float | None = None
    quality: QualityFigures | None = None
    latency: TurnResult | None = None
    kernels: KernelsRecord | None = None
    routing: Mapping[int, Routing] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the task need not run again."""
        return self.status is Status.FINISHED

    def fits(self, kind: Kind) -> bool:
        """Whether a task of this kind can have left it."""
        if not self.is_finished:
            return self.error is not None
        results = {
            "quality": self.quality,
            "noise": self.quality,
            "latency": self.latency,
            "kernels": self.kernels,
            "routing": self.routing,
        }
        return results[kind] is not None


@dataclass(frozen=True)
class LoadResult:
    """What a load of an arm said of itself.

    Attributes:
        before, after: bytes of GPU memory in use before the load, and when its process had ended. None without NVML.
        together: how many arms were loaded at once. Then `before` and `after` are of all of them.
    """

    labels: ArmLabels
    before: int | None
    after: int | None
    together: int
