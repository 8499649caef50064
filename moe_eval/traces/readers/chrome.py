"""Events of Chrome traces as Kineto writes them, and their fields as columns.

The format is Kineto's, for CUDA and ROCm alike (github.com/pytorch/kineto, libkineto/src/output_json.cpp and
include/MetadataFieldCatalog.h): events of phase X with `ts` and `dur` in microseconds; one of a GPU has the device for
`pid`, the stream for `tid`, and in `args` the `correlation` of its launch.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any, Union

import msgspec
import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import NONE, Ints
from moe_eval.traces.readers import files

Id = int | str | None  # of a process, a thread, a device or a stream
Thread = tuple[Id, Id]

NO_NAME = "(no name)"
# microseconds: below, a double tells every nanosecond, and Kineto's times since the start of a quarter stay below
_DOUBLES = 2.0**43
_LIMIT = 4e15  # microseconds, so that a start and a duration together fit 64 bits in nanoseconds
_LARGEST = 1 << 62
_LABELLED = re.compile(r"(.*?)([0-9]{0,9})", re.DOTALL)


class Args(msgspec.Struct, gc=False, omit_defaults=True, rename={"node": "graph node id", "external": "External id"}):
    """What `args` of an event may hold and is read; what else it holds is skipped."""

    correlation: int = NONE
    external: int = NONE
    node: int = NONE
    device: Id = None
    stream: Id = None
    bytes: int = 0
    grid: tuple[int, int, int] | None = (0, 0, 0)


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
    traceEvents: list[Any] | None = None


# flows, labels, instants and counters, by their phase; any other phase is found out by the tolerant decoder
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


class _AnyEvent(Event, gc=False, tag=False):
    ph: str | None = None
    ts: Any = None
    dur: Any = None
    args: _AnyArgs | None = None


class _AnyFile(File):
    traceEvents: list[_AnyEvent] | None = None


_STRICT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_StrictFile | _Events)
_TOLERANT: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_AnyFile | list[_AnyEvent], float_hook=Decimal)
_NO_ARGS = Args()


@dataclass(frozen=True)
class Rows:
    """Events that have a usable time, with columns of shape (n,) in nanoseconds.

    Attributes:
        args: of every event, also where it has none.
        left_out: how many had no usable time.
        rounded: whether a double has lost nanoseconds of some start.
    """

    events: list[Event]
    args: list[Args]
    start: Ints
    duration: Ints
    left_out: int
    rounded: bool

    def __len__(self) -> int:
        return len(self.events)

    def take(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        at = np.flatnonzero(mask).tolist()
        kept = [self.events[each] for each in at], [self.args[each] for each in at]
        return Rows(*kept, self.start[mask], self.duration[mask], self.left_out, self.rounded)

    def fields(self, name: str) -> list[Any]:
        """A field of every event."""
        return list(map(attrgetter(name), self.events))

    def number(self, name: str, default: int) -> Ints:
        """A number of every event's `args`."""
        get = attrgetter(name)
        if not self.events or type(self.events[0]) is Event:
            with suppress(OverflowError):
                return np.fromiter(map(get, self.args), np.int64, len(self.args))
        return np.array([integer(get(each), default) for each in self.args], np.int64)

    def device(self) -> Ints:
        """The GPU: that of `args`, else the process."""
        shown = (integer(split(each.pid)[1], 0) for each in self.events)
        return self._place("device", shown)

    def stream(self) -> Ints:
        """The stream: that of `args`, else the thread."""
        return self._place("stream", map(attrgetter("tid"), self.events))

    def _place(self, name: str, otherwise: Iterable[Id]) -> Ints:
        found = list(map(attrgetter(name), self.args))
        if None in set(found):
            found = [there if given is None else given for given, there in zip(found, otherwise, strict=True)]
        return codes(found)

    def blocks(self) -> Ints:
        """Blocks of every grid, 0 where there is none."""
        grids = map(attrgetter("grid"), self.args)
        try:
            return np.fromiter((x * y * z for x, y, z in grids), np.int64, len(self.args))
        except (TypeError, ValueError, OverflowError):
            counts = (math.prod(each.grid) if each.grid else 0 for each in self.args)
            return np.array([integer(each, 0) for each in counts], np.int64)

    def threads(self) -> list[Thread]:
        """Process and thread of every row."""
        return list(map(attrgetter("pid", "tid"), self.events))

    def names(self) -> tuple[list[str], Ints]:
        """The distinct names, and every row's index into them."""
        index: dict[str | None, int] = defaultdict(count().__next__)
        rows = np.fromiter(map(index.__getitem__, map(attrgetter("name"), self.events)), np.int64, len(self.events))
        names = [each or NO_NAME for each in index]
        place = {each: at for at, each in enumerate(dict.fromkeys(names))}
        return list(place), np.array([place[each] for each in names], np.int64)[rows]


def decode(path: Path, *, tolerant: bool = False) -> File:
    """The facts of a file, an object with `traceEvents` or a bare array of them, and its events with a duration.

    Args:
        tolerant: numbers of events may be anything, and times are decimals. It takes longer; a file whose types need
            it is read so in any case.

    Raises:
        UsageError: it cannot be read, or is no Chrome trace.
    """
    data = files.read_bytes(path)
    held = files.decode_json(path, data, _TOLERANT if tolerant else _STRICT, _TOLERANT)
    file = held if isinstance(held, File) else File(traceEvents=held)
    if file.traceEvents is None:
        raise UsageError(f"{path} is JSON without traceEvents; give what torch's export_chrome_trace wrote.")
    file.traceEvents = [
        each for each in file.traceEvents if type(each) is Event or (type(each) is _AnyEvent and each.ph == "X")
    ]
    return file


def timed(events: list[Event], *, lasting: bool = True) -> Rows:
    """Events that have a start and, where `lasting`, a duration of zero or more."""
    strict = not events or type(events[0]) is Event
    start, usable, rounded = _nanoseconds(map(attrgetter("ts"), events), len(events), strict)
    duration, lasts, _ = _nanoseconds(map(attrgetter("dur"), events), len(events), strict)
    lasts &= duration >= 0
    if lasting:
        usable &= lasts
    args = [each.args or _NO_ARGS for each in events]
    rows = Rows(events, args, start, np.where(lasts, duration, 0), int(np.sum(~usable)), rounded)
    return rows.take(usable) if rows.left_out else rows


def _nanoseconds(values: Iterable[Any], size: int, strict: bool) -> tuple[Ints, npt.NDArray[np.bool_], bool]:
    """Microseconds in nanoseconds, which of them were numbers at all, and whether doubles lost some.

    Whole microseconds are converted apart from their fraction: their product with 1000 may not fit a double.
    """
    if strict:
        us = np.fromiter(values, np.float64, size)
        usable = np.abs(us) < _LIMIT
        us = np.where(usable, us, 0)
        floor = np.floor(us)
        rounded = bool(np.any((us != floor) & (np.abs(us) >= _DOUBLES)))
        return floor.astype(np.int64) * 1000 + np.rint((us - floor) * 1000).astype(np.int64), usable, rounded
    values = list(values)
    fits = [type(each) in (int, float, Decimal) and abs(each) < _LIMIT for each in values]
    exact = [round(Decimal(each) * 1000) if fit else 0 for each, fit in zip(values, fits, strict=True)]
    return np.array(exact, np.int64), np.array(fits, np.bool_), False


def integer(value: Any, default: int) -> int:
    """A whole number, also one written as a text; the default for all else."""
    if type(value) is str:
        try:
            value = int(value, 0)
        except ValueError:
            return default
    return value if type(value) is int and abs(value) < _LARGEST else default


def codes(values: list[Any]) -> Ints:
    """A number for each: itself, also where it is written as a text; other texts are numbered after the largest."""
    code = {each: integer(each, -_LARGEST) for each in set(values)}
    others = sorted((each for each, number in code.items() if number == -_LARGEST), key=order)
    after = max(max(code.values(), default=NONE), NONE) + 1
    code.update({each: after + at for at, each in enumerate(others)})
    if len(code) == 1:
        return np.full((len(values),), next(iter(code.values())), np.int64)
    return np.fromiter(map(code.__getitem__, values), np.int64, len(values))


def numbers(first: Iterable[Thread], then: Iterable[Thread]) -> dict[Thread, int]:
    """Running numbers of threads, those of `first` before the others, whatever the order of the rows."""
    known = set(first)
    found: list[Thread] = []
    for each in (known, set(then) - known):
        found += sorted(each, key=lambda thread: (order(thread[0]), order(thread[1])))
    return {thread: at for at, thread in enumerate(found)}


def split(each: Id) -> tuple[str, str]:
    """The text before the number of a process, such as SGLang's `[TP00] `, and the number's digits."""
    if isinstance(each, int):
        return "", str(each)
    found = _LABELLED.fullmatch(str(each))
    return (found[1], found[2]) if found else (str(each), "")


def order(each: Id) -> tuple[int, str, int, str]:
    """Sorts numbers before texts, and texts by what stands before their number."""
    if isinstance(each, int):
        return 0, "", each, ""
    label, digits = split(each)
    return 1, label, integer(digits.lstrip("0"), NONE), str(each)
