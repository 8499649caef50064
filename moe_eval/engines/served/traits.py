"""The differences between served engines, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_MEMORY = ("out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
_NO_GPU = (
    "Found no NVIDIA driver",
    "No CUDA GPUs are available",
    "no CUDA-capable device",
    "libcuda.so",
    "Failed to infer device type",
)


@dataclass(frozen=True)
class KnownFailure:
    """A failure that the user can mend.

    Attributes:
        markers: texts of the library, one of which its message holds.
        message: a format string over `title`, `task`, `checkpoint` and `detail`, the library's own message.
    """

    markers: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class Traits:
    """What the shared code has to know of a served engine.

    Attributes:
        name: in the registry.
        title: as its makers write it.
        package: what is imported.
        requirements: what its installation depends on.
        versions: the versions that moe_eval knows.
        readable: the checkpoints to give in place of an unreadable one.
        parallel_sizes: options whose product is the number of GPUs.
        cluster_option: the option that spreads a model over several machines.
        cluster_fix: how to use more GPUs than this machine has.
        memory_fix: what to change where the GPU's memory runs out.
        online: precisions that 16-bit weights are quantised to while they load, and the library's name for each.
        failures: failures of this library alone.
        fatal_errors: error classes that say that the engine's process has ended.
    """

    name: str
    title: str
    package: str
    requirements: str
    versions: str
    readable: str
    parallel_sizes: tuple[str, ...]
    cluster_option: str
    cluster_fix: str
    memory_fix: str
    online: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[KnownFailure, ...] = ()
    fatal_errors: tuple[str, ...] = ()

    @property
    def known_failures(self) -> tuple[KnownFailure, ...]:
        """This library's failures, then those of every served engine."""
        memory = f"The GPU's memory does not suffice for {{task}} {{checkpoint}}. {self.memory_fix}"
        no_gpu = "{title} finds no NVIDIA GPU here. Run it where nvidia-smi shows one, or give engine=transformers."
        return (*self.failures, KnownFailure(_MEMORY, memory), KnownFailure(_NO_GPU, no_gpu))
