"""Nsight Systems around a command, and the ranges that it records."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

SESSION = "NSYS_PROFILING_SESSION_ID"  # nsys sets it for what it profiles
NO_GPU = "Nsight Systems records kernels of a GPU and there is none here."
# Source: NVIDIA's TensorRT-LLM (py_executor.py, parser_utils.py), srt-slurm issue 418 and NeMo-RL issue 4090
EMPTY_CAPTURE = (
    "Three reasons are likely. First, no step ran inside the capture: its range opened in a process without GPU, or "
    "TLLM_PROFILE_START_STOP names iterations that did not run. Second, another profiler held CUPTI, or the driver was "
    "in CUDA's forward-compatibility mode. Third, --trace=cuda or --cuda-graph-trace=node records nothing on this GPU, "
    "as is told of GB200: give other ones with --nsys_args."
)
_LONG = {
    "-t": "--trace",
    "-s": "--sample",
    "-c": "--capture-range",
    "-f": "--force-overwrite",
    "-o": "--output",
    "-e": "--env-var",
}


@frozen
class NsysSettings:
    """How arms are traced by Nsight Systems.

    Attributes:
        options: the user's own ones of `nsys profile`.
        keep_report: keep the raw report beside the trace, which holds the environment of the traced process.
    """

    options: tuple[str, ...] = ()
    keep_report: bool = False


@frozen
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


def arguments(
    program: Sequence[str], report: Path, *, captures: int = 1, options: Sequence[str] = ()
) -> tuple[str, ...]:
    """`nsys profile` with its options around a program that opens and closes the capture range itself.

    Args:
        report: of one capture. Several have their number before the suffix, as in NAME.1.nsys-rep.
        options: further ones. One that is among ours takes its place, since nsys may refuse an option given twice.
    """
    defaults = (
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",  # kernels inside CUDA graphs one by one, or a decode step would be a single row
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",
        f"--capture-range-end={'stop' if captures == 1 else 'repeat'}",
        "--trace-fork-before-exec=true",
        "--force-overwrite=true",
    )
    overridden = {_name(word) for word in options}
    remaining = [option for option in defaults if _name(option) not in overridden]
    return ("nsys", "profile", *remaining, f"--output={report.with_suffix('')}", *options, *program)


def options_of(text: str) -> tuple[str, ...]:
    """The user's options of `nsys profile`, as a shell splits them.

    Raises:
        UsageError: they cannot be split, do not begin with an option, or name the report.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--nsys_args cannot be read ({error}). Close every quote.") from None
    if words and not words[0].startswith("-"):
        raise UsageError("--nsys_args begins with no option. Give options of nsys profile, such as --trace=cuda.")
    names = set(map(_name, words))
    if "--output" in names:
        raise UsageError("--nsys_args names the report, which moe-eval has to find. Leave out --output.")
    if "--env-var" in names:  # it would be in the record of the run
        raise UsageError("--nsys_args sets environment variables. Set them before the command.")
    return words


def _name(word: str) -> str:
    """The long name of an option. A value is its own name, which is none."""
    return word.partition("=")[0] if word.startswith("--") else _LONG.get(word[:2], word)


def prefix() -> str:
    """What to put before a command so that every capture of it becomes a report."""
    return shlex.join(arguments((), Path("moe_kernels.nsys-rep"), captures=2))


def is_installed() -> bool:
    """Whether nsys is on PATH."""
    return shutil.which("nsys") is not None


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
        raise UsageError(f"{NO_GPU} Run it where one is.")


@contextmanager
def capture(name: str) -> Iterator[None]:
    """Have Nsight Systems record what this process runs inside, in an NVTX range of this name.

    Raises:
        UsageError: there is no GPU to record.
    """
    import torch

    check_gpu()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.nvtx.range(name):
            yield
            torch.cuda.synchronize()
    finally:
        torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
