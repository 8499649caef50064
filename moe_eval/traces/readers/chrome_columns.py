"""Events of Chrome traces as columns, and the numbers of their devices, streams and threads."""

from __future__ import annotations

import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal
from itertools import compress, count
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import NONE, Ints
from moe_eval.traces.readers.chrome_events import NO_NAME, Args, Event, Id, Thread

# microseconds: below, a double tells every nanosecond, and Kineto's times since the start of a quarter stay below
_DOUBLES = 2.0**43
_LIMIT = 4e15  # microseconds, so that a start and a duration together fit 64 bits in nanoseconds
_LARGEST = 1 << 62
_LABELLED = re.compile(r"(.*?)([0-9]{0,9})", re.DOTALL)
_NO_ARGS = Args()
# bytes of torch's types, as record_param_comms names them
_SIZES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Float8_e4m3fn", "Float8_e5m2", "Float8_e4m3fnuz", "Float8_e5m2fnuz"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long"), 8),
}


@frozen
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
        events, args = list(compress(self.events, mask.tolist())), list(compress(self.args, mask.tolist()))
        return Rows(events, args, self.start[mask], self.duration[mask], self.left_out, self.rounded)

    def fields(self, name: str) -> list[Any]:
        """A field of every event."""
        return list(map(attrgetter(name), self.events))

    def number(self, name: str, default: int) -> Ints:
        """A number of every event's `args`."""
        get = attrgetter(name)
        if not self.events or type(self.events[0]) is Event:
            with suppress(OverflowError):
                return np.fromiter(map(get, self.args), np.int64, len(self.args))
        return np.array([integer(get(args), default) for args in self.args], np.int64)

    def place(self, name: str, fallback: Callable[[Event], Id]) -> Ints:
        """The `device` or the `stream` of every event's `args`, else what the event itself has for it."""
        ids = list(map(attrgetter(name), self.args))
        if None in set(ids):
            ids = [fallback(event) if id_ is None else id_ for id_, event in zip(ids, self.events, strict=True)]
        return codes(ids)

    def blocks(self) -> Ints:
        """Blocks of every grid, 0 where there is none."""
        grids = map(attrgetter("grid"), self.args)
        try:
            return np.fromiter((x * y * z for x, y, z in grids), np.int64, len(self.args))
        except (TypeError, ValueError, OverflowError):
            counts = (math.prod(args.grid) if args.grid else 0 for args in self.args)
            return np.array([integer(blocks, 0) for blocks in counts], np.int64)

    def communicators(self) -> tuple[Ints, Ints]:
        """Of every collective the number of its process group and the bytes of its message, else NONE and 0.

        Groups have the same number in the files of all ranks. A copy of a trace has the number for the group's name.
        The message is the longer one of what goes in and what comes out.
        """
        number, size = np.full(len(self.args), NONE, np.int64), np.zeros(len(self.args), np.int64)
        for at, args in enumerate(self.args):
            if args.group is not None:
                text = f"{args.group} {args.members}".encode("utf-8", "replace")
                number[at] = args.group if type(args.group) is int else zlib.crc32(text)
                elements = max(integer(args.elements_in, 0), integer(args.elements_out, 0))
                size[at] = min(elements * _SIZES.get(str(args.dtype), 0), _LARGEST)
        return number, size

    def threads(self) -> list[Thread]:
        return list(map(attrgetter("pid", "tid"), self.events))

    def names(self) -> tuple[list[str], Ints]:
        """The distinct names, and every row's index into them."""
        index: dict[str | None, int] = defaultdict(count().__next__)
        rows = np.fromiter(map(index.__getitem__, map(attrgetter("name"), self.events)), np.int64, len(self.events))
        names = [name or NO_NAME for name in index]
        place = {name: at for at, name in enumerate(dict.fromkeys(names))}
        return list(place), np.array([place[name] for name in names], np.int64)[rows]


def timed(events: list[Event], *, lasting: bool = True) -> Rows:
    """Events that have a start and, where `lasting`, a duration of zero or more."""
    strict = not events or type(events[0]) is Event
    start, usable, rounded = _nanoseconds(map(attrgetter("ts"), events), len(events), strict)
    duration, lasts, _ = _nanoseconds(map(attrgetter("dur"), events), len(events), strict)
    lasts &= duration >= 0
    if lasting:
        usable &= lasts
    args = [event.args or _NO_ARGS for event in events]
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
    fits = [type(value) in (int, float, Decimal) and abs(value) < _LIMIT for value in values]
    exact = [round(Decimal(value) * 1000) if fit else 0 for value, fit in zip(values, fits, strict=True)]
    return np.array(exact, np.int64), np.array(fits, np.bool_), False


def integer(value: Any, default: int) -> int:
    """A whole number, also one written as a text, else the default."""
    if type(value) is str:
        try:
            value = int(value, 0)
        except ValueError:
            return default
    return value if type(value) is int and abs(value) < _LARGEST else default


def codes(values: list[Any]) -> Ints:
    """Values as numbers. A text of a number counts as that number, other texts are numbered after the largest."""
    code = {value: integer(value, -_LARGEST) for value in set(values)}
    others = sorted((value for value, number in code.items() if number == -_LARGEST), key=order)
    after = max(max(code.values(), default=NONE), NONE) + 1
    code.update({value: after + at for at, value in enumerate(others)})
    if len(code) == 1:
        return np.full((len(values),), next(iter(code.values())), np.int64)
    return np.fromiter(map(code.__getitem__, values), np.int64, len(values))


def numbers(first: Iterable[Thread], second: Iterable[Thread]) -> dict[Thread, int]:
    """Running numbers of threads, those of `first` before the others, whatever the order of the rows."""
    before = set(first)
    threads: list[Thread] = []
    for group in (before, set(second) - before):
        threads += sorted(group, key=lambda thread: (order(thread[0]), order(thread[1])))
    return {thread: at for at, thread in enumerate(threads)}


def split(process: Id) -> tuple[str, str]:
    """The text before the number of a process, such as SGLang's `[TP00] `, and the number's digits."""
    if isinstance(process, int):
        return "", str(process)
    parts = _LABELLED.fullmatch(str(process))
    return (parts[1], parts[2]) if parts else (str(process), "")


def order(value: Id) -> tuple[int, str, int, str]:
    """Sorts numbers before texts, and texts by what stands before their number."""
    if isinstance(value, int):
        return 0, "", value, ""
    label, digits = split(value)
    return 1, label, integer(digits.lstrip("0"), NONE), str(value)
