"""Decodes Chrome traces as Kineto writes them.

The format is Kineto's, for CUDA and ROCm alike (github.com/pytorch/kineto, libkineto/src/output_json.cpp and
include/MetadataFieldCatalog.h): events of phase X with `ts` and `dur` in microseconds. An event of a GPU has the device
for `pid`, the stream for `tid`, and in `args` the `correlation` of its launch.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, Union

import msgspec

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import NONE
from moe_eval.traces.readers.sources import BOM, read_bytes

Document = TypeVar("Document")
Id = int | str | None  # of a process, a thread, a device or a stream
Thread = tuple[Id, Id]

NO_NAME = "(no name)"
# what Python and C++ write for numbers that JSON does not have
_NO_NUMBER = re.compile(rb"[:,\[]\s*(-?(?:NaN|Infinity|nan|inf))\s*(?=[,}\]])")


# of a collective of torch.distributed, as Kineto writes them beside its kernel
_RENAMED = {
    "node": "graph node id",
    "external": "External id",
    "group": "Process Group Name",
    "members": "Process Group Ranks",
    "sequence": "Seq",
    "elements_in": "In msg nelems",
    "elements_out": "Out msg nelems",
}


class Args(msgspec.Struct, gc=False, omit_defaults=True, rename=_RENAMED):
    """The fields of an event's `args` that are read. Others are skipped."""

    correlation: int = NONE
    external: int = NONE
    node: int = NONE
    device: Id = None
    stream: Id = None
    bytes: int = 0
    grid: tuple[int, int, int] | None = (0, 0, 0)
    group: Id = None
    members: Any = None
    sequence: int = NONE
    dtype: str | None = None
    elements_in: int = 0
    elements_out: int = 0


class Event(msgspec.Struct, gc=False, omit_defaults=True, tag_field="ph", tag="X"):
    """An event with a duration. Those of other phases (flows, labels, instants) are not kept."""

    cat: str | None = None
    name: str | None = None
    pid: Id = None
    tid: Id = None
    ts: float = math.nan
    dur: float = math.nan
    args: Args | None = None


class File(msgspec.Struct, omit_defaults=True):
    """A whole file: facts of the profiler, then the events."""

    schemaVersion: Any = None
    cuda_runtime_version: Any = None
    hip_runtime_version: Any = None
    deviceProperties: Any = None
    baseTimeNanoseconds: Any = None
    traceEvents: list[Any] | None = None


# flows, labels, instants and counters, by their phase. The tolerant decoder finds any other phase
_SKIPPED = [msgspec.defstruct(f"_Skipped{ph}", [], gc=False, tag_field="ph", tag=ph) for ph in "sftMiICbenBE"]
_Events: Any = list[Union[(Event, *_SKIPPED)]]  # type: ignore[valid-type]


class _StrictFile(File):
    traceEvents: _Events | None = None


class _AnyArgs(Args, gc=False):
    correlation: Any = NONE
    external: Any = NONE
    node: Any = NONE
    bytes: Any = 0
    grid: list[int] | None = None  # type: ignore[assignment]
    group: Any = None
    sequence: Any = NONE
    dtype: Any = None
    elements_in: Any = 0
    elements_out: Any = 0


class _AnyEvent(Event, gc=False, tag=False):
    ph: str | None = None
    ts: Any = None
    dur: Any = None
    args: _AnyArgs | None = None


class _AnyFile(File):
    traceEvents: list[_AnyEvent] | None = None


_STRICT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_StrictFile | _Events)
_TOLERANT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_AnyFile | list[_AnyEvent], float_hook=Decimal)


def decode(path: Path, *, tolerant: bool = False) -> File:
    """The facts of a file, an object with `traceEvents` or a bare array of them, and its events with a duration.

    Args:
        tolerant: numbers of events may be anything, and times are decimals. It takes longer. A file whose types need
            it is read so in any case.

    Raises:
        UsageError: it cannot be read, or is no Chrome trace.
    """
    document = decode_json(path, read_bytes(path), _TOLERANT if tolerant else _STRICT, _TOLERANT)
    file = document if isinstance(document, File) else File(traceEvents=document)
    if file.traceEvents is None:
        raise UsageError(f"{path} is JSON without traceEvents. Give what torch's export_chrome_trace wrote.")
    file.traceEvents = [
        event for event in file.traceEvents if type(event) is Event or (type(event) is _AnyEvent and event.ph == "X")
    ]
    return file


def decode_json(
    path: Path, data: memoryview, decoder: msgspec.json.Decoder[Document], tolerant: msgspec.json.Decoder[Document]
) -> Document:
    """Decode JSON. NaN and infinities, which JSON does not have and profilers write, become empty texts.

    The second decoder takes what the first refuses. A UsageError says that it is no such document.
    """
    if data[: len(BOM)] == BOM:
        data = data[len(BOM) :]
    try:
        with suppress(msgspec.DecodeError):
            return decoder.decode(data)
        try:
            return tolerant.decode(data)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return tolerant.decode(_without_nan(data))
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path} is JSON but no Chrome trace ({error}). Give what export_chrome_trace wrote."
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is broken or cut off ({error}). Copy or record it again.") from None


def _without_nan(data: memoryview) -> bytes:
    """The same with every such literal outside of texts replaced by an empty text, at equal length."""
    plain = re.sub(rb"\\.", b"__", data, flags=re.DOTALL)
    fixed, quotes, at = bytearray(data), 0, 0
    for literal in _NO_NUMBER.finditer(plain):
        start, end = literal.span(1)
        quotes += plain.count(b'"', at, start)
        at = start
        if quotes % 2 == 0:
            fixed[start:end] = b'""'.ljust(end - start)
    return bytes(fixed)
