"""The library of a served engine: its traits as data, its import, and its errors as messages for the user."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from types import ModuleType
from typing import Any

import pydantic

from moe_eval.checkpoint import hub, precision
from moe_eval.errors import EngineError, UsageError
from moe_eval.frozen import frozen

_MEMORY = ("out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
_NO_GPU = (
    "Found no NVIDIA driver",
    "No CUDA GPUs are available",
    "no CUDA-capable device",
    "libcuda.so",
    "Failed to infer device type",
)


@frozen
class KnownFailure:
    """A failure that the user can mend.

    Attributes:
        message: a format string over `title`, `version`, `task`, `checkpoint` and `detail`, the library's own message.
        versions: that fail so, as a specifier of PEP 440.
        pattern: a regular expression beside the markers.
    """

    markers: tuple[str, ...]
    message: str
    versions: str = ""
    pattern: str | None = None

    def explains(self, text: str, version: str) -> bool:
        """Whether an error with this text is this failure."""
        is_marked = any(marker in text for marker in self.markers)
        is_meant = is_marked or (self.pattern is not None and re.search(self.pattern, text) is not None)
        return is_meant and precision.is_in(self.versions, version)


@frozen
class Traits:
    """What the shared code has to know of a served engine.

    Attributes:
        readable: the checkpoints to give in place of an unreadable one.
        inline: precisions that it reads where config.json has them as a quant_method.
        unreadable: what becomes of a form of checkpoint (carried.Carried.method) that the library misreads, and the
            fix.
        readers: the versions that read a form, as a specifier of PEP 440, by the beginning of its method.
        parallel_sizes: options whose product is the number of GPUs.
        cluster_option: the option that spreads a model over several machines.
        cluster_fix: how to use more GPUs than this machine has.
        memory_fix: what to change where the GPU's memory runs out.
        online: precisions that 16-bit weights are quantised to while they load, and the library's name for each.
        causeless: messages of errors whose cause only the worker prints.
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
    inline: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    readers: Mapping[str, str] = field(default_factory=dict)
    online: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[KnownFailure, ...] = ()
    fatal_errors: tuple[str, ...] = ()
    causeless: tuple[str, ...] = ()

    def why_unreadable(self, method: str, version: str | None) -> str | None:
        """Why a form of checkpoint (carried.Carried.method) cannot be read, as a clause behind `which`.

        Args:
            version: of the library. None for any.
        """
        reason = self.unreadable.get(method)
        if reason is not None:
            return reason
        versions = next((versions for form, versions in self.readers.items() if method.startswith(form)), "")
        if precision.is_in(versions, version):
            return None
        return f"{self.title} {version} does not read. Install a version {versions}, or give a checkpoint of ModelOpt."

    @property
    def known_failures(self) -> tuple[KnownFailure, ...]:
        """This library's failures, then those of every served engine."""
        memory = f"The GPU's memory does not suffice for {{task}} {{checkpoint}}. {self.memory_fix}"
        no_gpu = "{title} finds no NVIDIA GPU here. Run it where nvidia-smi shows one, or give engine=transformers."
        return (*self.failures, KnownFailure(_MEMORY, memory), KnownFailure(_NO_GPU, no_gpu))


def import_library(traits: Traits) -> ModuleType:
    """Import the library, or raise a UsageError."""
    try:
        return importlib.import_module(traits.package)
    # shared libraries, MPI and torch raise errors of any class if they do not fit this machine
    except Exception as error:
        known = describe_failure(traits, error, "", traits.package, "importing")
        if isinstance(known, UsageError):
            raise known from error
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{traits.title} is installed but cannot be imported ({type(error).__name__}: {reason}). Install it again "
            f"with the {traits.requirements} that it requires."
        ) from error


@contextmanager
def expected_api(traits: Traits, version: str) -> Iterator[None]:
    """Raise a UsageError if the library lacks something that the code inside needs."""
    try:
        yield
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        raise UsageError(
            f"{traits.title} {version} has an API that moe_eval does not know ({error}). Use {traits.versions}."
        ) from error


def describe_failure(
    traits: Traits, error: BaseException, version: str, checkpoint: str, task: str, *, printed: str = ""
) -> Exception:
    """The error to raise in place of one of the library's: a UsageError if the user can change something.

    Args:
        task: what was going on, such as `loading`.
        printed: what the engine's process printed last, which tells more where its error has no cause.
    """
    if isinstance(error, (UsageError, EngineError)):
        return error
    text = " ".join(str(error).split())
    marker = next((marker for marker in traits.causeless if marker in text), None)
    if printed and marker is not None:
        text = f"{text.partition(marker)[0]}{marker}, its worker printed: {printed}"
    for failure in traits.known_failures:
        if failure.explains(text, version):
            detail = text[:200].rstrip(". ")
            names = {
                "title": traits.title,
                "version": version,
                "task": task,
                "checkpoint": checkpoint,
                "detail": detail,
            }
            return UsageError(failure.message.format(**names))
    if hub.unreachable(error):
        return UsageError(hub.sentence(checkpoint))
    if isinstance(error, pydantic.ValidationError):  # its text would show every argument
        text = ", ".join(str(problem["msg"]) for problem in error.errors())
    reason = f"{type(error).__name__}: {text[:600]}" if text else type(error).__name__
    if type(error).__name__ in traits.fatal_errors:
        reason = "its process has ended, and what it printed says why"
    if task == "loading":
        return UsageError(f"{traits.title} {version} cannot load {checkpoint} ({reason}).")
    return EngineError(f"{traits.title} {version} failed while {task} {checkpoint} ({reason}).")


def reach(root: Any, path: str) -> Any:
    """An attribute of an attribute, or None where the installed version lacks one on the way."""
    return functools.reduce(lambda value, name: getattr(value, name, None), path.split("."), root)
