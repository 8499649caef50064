"""Nsight Systems around a command, and the one iteration that it records."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_eval.errors import UsageError

SESSION = "NSYS_PROFILING_SESSION_ID"  # nsys sets it for what it profiles


@dataclass(frozen=True)
class NsysCommand:
    """A command under Nsight Systems.

    Attributes:
        environment: variables to add to the environment of this process.
        arguments: the program and its arguments.
        report: the .nsys-rep file it writes.
    """

    environment: dict[str, str]
    arguments: tuple[str, ...]
    report: Path

    def __str__(self) -> str:
        """The command as a shell takes it."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


def arguments(program: Sequence[str], report: Path) -> tuple[str, ...]:
    """`nsys profile` with its options around a program that opens and closes the capture range itself."""
    return (
        "nsys",
        "profile",
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",  # kernels inside CUDA graphs one by one, or a decode step would be a single row
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--trace-fork-before-exec=true",
        "--force-overwrite=true",
        f"--output={report.with_suffix('')}",
        *program,
    )


def inside(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs under Nsight Systems."""
    return bool(environment.get(SESSION))


def check_gpu() -> None:
    """Refuse to record without a GPU.

    Raises:
        UsageError: there is no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise UsageError("Nsight Systems records kernels of a GPU and there is none here. Run it where one is.")


def record_once(name: str, iteration: Callable[[], object]) -> None:
    """Run one iteration between the profiler's start and stop, in an NVTX range of this name.

    Raises:
        UsageError: there is no GPU to record.
    """
    import torch

    check_gpu()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.nvtx.range(name):
            iteration()
            torch.cuda.synchronize()
    finally:
        torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
