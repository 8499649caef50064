"""Reads what `nsys stats --format csv` wrote: cuda_gpu_trace (once gputrace) and cuda_gpu_kern_sum (once gpukernsum).

The table may stand after notices and between other reports. Units are in the header, `(ns)` or `[ns]`. Without a unit
it is nanoseconds or bytes.
"""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.records.kernels import TraceSource
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints, Trace, kernels, ranges
from moe_eval.traces.readers import nsys_columns

MOST = 20_000_000  # rows that a summary may stand for

_UNITS = {
    **{"": 1, "ns": 1, "nsec": 1, "us": 1e3, "usec": 1e3, "μs": 1e3, "ms": 1e6, "msec": 1e6, "s": 1e9, "sec": 1e9},
    **{"b": 1, "byte": 1, "bytes": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30},
}
_HEADER = re.compile(rb'^"?(?:Start|Time) ?(?:[(\[][^)\],]*[)\]])?"?,"?(?:Duration|Total Time)[^\r\n]*', re.MULTILINE)
_CELL = re.compile(r"(.*?)\s*(?:[(\[]([^)\]]*)[)\]])?", re.DOTALL)
_BLANK = re.compile(rb"\r?\n[ \t]*\r?\n")
_COPY = re.compile(r"\[CUDA memcpy ([HDAP])to([HDAP])\]")
_SIDES = {"H": "Host", "D": "Device", "A": "Array", "P": "Peer"}
_DEVICE = re.compile(r"(.*?)\s*\((\d+)\)")
_COMMAND = "nsys stats --report cuda_gpu_trace --format csv"
_MAKE = f"Make it with {_COMMAND}"
_NO_KERNEL = f"has no row of a kernel. {_MAKE} of a recording with --trace=cuda."


@dataclass(frozen=True)
class _Table:
    """A report's lines as text: Arrow arrays and units by the header's text in lower case, and how many are odd."""

    path: Path
    columns: Mapping[str, Any]
    units: Mapping[str, str]
    odd: int


def read(path: Path) -> Trace:
    """The kernels, copies and sets of a trace, or of a summary rows that add up to every kernel's total.

    Raises:
        UsageError: the file cannot be read, or holds neither of the two reports.
    """
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}). Give the CSV that nsys stats wrote.") from error
    headers: dict[str, re.Match[bytes]] = {}
    for match in _HEADER.finditer(raw):
        names = _cells(match.group()).keys()
        if {"start", "duration", "name"} <= names and names & {"grdx", "strm", "device"}:
            headers.setdefault("cuda_gpu_trace", match)
        elif {"total time", "instances", "name"} <= names:
            headers.setdefault("cuda_gpu_kern_sum", match)
    for report, rows in (("cuda_gpu_trace", _trace), ("cuda_gpu_kern_sum", _summary)):
        if report in headers:
            return rows(_lines(path, raw, headers[report]), report)
    raise UsageError(f"{path} has no table of kernels that nsys stats wrote. {_MAKE}.")


def _cells(header: bytes) -> dict[str, str]:
    """The units of a header's columns by their text in lower case."""
    cells = next(csv.reader([header.decode("utf-8", "replace")]))
    pairs = [_CELL.fullmatch(cell.strip().lower()) for cell in cells]
    return {pair.group(1): pair.group(2) or "" for pair in pairs if pair}


def _lines(path: Path, raw: bytes, header: re.Match[bytes]) -> _Table:
    arrow, reader = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.csv")
    blank = _BLANK.search(raw, header.end())
    units = _cells(header.group())
    odd = []

    def skip(row: Any) -> str:
        odd.append(row.number)
        return "skip"

    body = memoryview(raw)[header.end() : blank.start() if blank else len(raw)]
    try:
        table = reader.read_csv(
            arrow.BufferReader(arrow.py_buffer(body)),
            read_options=reader.ReadOptions(column_names=list(units)),
            parse_options=reader.ParseOptions(invalid_row_handler=skip),
            convert_options=reader.ConvertOptions(
                column_types={name: arrow.binary() if name in ("name", "device") else arrow.string() for name in units},
                strings_can_be_null=False,
            ),
        )
    except ValueError as error:  # as pyarrow's own errors are
        problem = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{path} is not the CSV of nsys stats from its header on ({problem}). {_MAKE}.") from error
    return _Table(path, {name: table.column(name) for name in units}, units, len(odd))


def _trace(table: _Table, report: str) -> Trace:
    start, duration = _number(table, "start"), _number(table, "duration")
    texts, text = nsys_columns.encoded(table.columns["name"])
    labels = [_COPY.sub(lambda m: f"[CUDA memcpy {_SIDES[m[1]]}-to-{_SIDES[m[2]]}]", name) for name in texts]
    index: dict[str, int] = {}
    place = np.array([index.setdefault(label, len(index)) for label in labels], np.int64)
    gpus, device = _devices(table)
    sound = (start >= 0) & (duration >= 0) & (text != NONE)
    text = text[sound]
    kinds = [COPY if name.startswith("[CUDA memcpy") else SET if name == "[CUDA memset]" else KERNEL for name in labels]
    kind = np.array(kinds, np.int64)[text]
    grid = np.prod([_number(table, f"grd{axis}", 0) for axis in "xyz"], axis=0)[sound]
    size = _number(table, "bytes", 0)[sound]
    if not np.any(kind == KERNEL):
        raise UsageError(f"{table.path} {_NO_KERNEL}")
    rows = kernels(
        tuple(index),
        name=place[text],
        kind=kind,
        start_ns=start[sound],
        duration_ns=duration[sound],
        device=device[sound],
        stream=_number(table, "strm", 0)[sound],
        correlation=_number(table, "corrid")[sound],
        bytes=np.where(kind == KERNEL, 0, size),
        blocks=np.where(kind == KERNEL, grid, 0),
    )
    notes = [*_left_out(table, ~sound), "A CSV of nsys stats has neither launches, CUDA graphs nor NVTX ranges."]
    return Trace(rows, ranges(()), TraceSource(f"nsys stats {report}", None, tuple(gpus)), tuple(notes))


def _summary(table: _Table, report: str) -> Trace:
    total, count = _number(table, "total time"), _number(table, "instances")
    texts, text = nsys_columns.encoded(table.columns["name"])
    sound = (total >= 0) & (count > 0) & (text != NONE)
    if not np.any(sound):
        raise UsageError(f"{table.path} {_NO_KERNEL}")
    rows_by_name = zip(text[sound].tolist(), count[sound].tolist(), total[sound].tolist(), strict=True)
    lines = sorted((texts[at], n, ns) for at, n, ns in rows_by_name)  # so that the order of lines does not matter
    if sum(n for _, n, _ in lines) > MOST:
        raise UsageError(f"{table.path} stands for more than {MOST:,} kernels. Record fewer steps, or use {_COMMAND}.")
    index = {name: at for at, name in enumerate(dict.fromkeys(name for name, _, _ in lines))}
    counts = np.array([n for _, n, _ in lines])
    part, rest = np.divmod(np.array([ns for _, _, ns in lines]), counts)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = kernels(
        tuple(index),
        name=np.repeat([index[name] for name, _, _ in lines], counts),
        start_ns=np.arange(len(nth)),
        duration_ns=np.repeat(part, counts) + (nth < np.repeat(rest, counts)),
    )
    notes = [*_left_out(table, ~sound), "A summary has neither the times of kernels nor the duration of each launch."]
    return Trace(rows, ranges(()), TraceSource(f"nsys stats {report}"), tuple(notes), timed=False)


def _devices(table: _Table) -> tuple[list[str], Ints]:
    """The names of the GPUs, and every row's number: that behind the name, else the order in which they come."""
    if "device" not in table.columns:
        return [], np.zeros(len(table.columns["name"]), np.int64)
    texts, text = nsys_columns.encoded(table.columns["device"])
    pairs = [_DEVICE.fullmatch(label.strip()) for label in texts]
    numbers = [
        int(pair[2]) if pair else int(label) if label.isdecimal() else at
        for at, (pair, label) in enumerate(zip(pairs, texts, strict=True))
    ]
    gpus = [pair[1] if pair else label for pair, label in zip(pairs, texts, strict=True)]
    names = {number: gpu for number, gpu in zip(numbers, gpus, strict=True) if gpu}
    return [names[number] for number in sorted(names)], np.array([*numbers, 0], np.int64)[text]


def _number(table: _Table, name: str, absent: int = NONE) -> Ints:
    """A column in nanoseconds, bytes or as it is, `absent` where a cell is empty or not finite."""
    if name not in table.columns:
        return np.full(len(table.columns["name"]), absent, np.int64)
    compute = importlib.import_module("pyarrow.compute")
    unit = table.units[name]
    if unit not in _UNITS:
        raise UsageError(f"{table.path} has its {name} in {unit!r}, which is no unit known here. {_MAKE}.")
    text = compute.replace_substring(compute.utf8_trim_whitespace(table.columns[name]), ",", "")
    text = compute.if_else(compute.equal(text, ""), None, text)
    try:
        if _UNITS[unit] == 1:
            try:
                return nsys_columns.integers(compute.fill_null(compute.cast(text, "int64"), absent).chunks)
            except ValueError:
                pass  # nanoseconds with a fraction
        numbers = compute.fill_null(compute.cast(text, "float64"), np.nan)
        scaled = np.array(numbers.to_pylist(), np.float64) * _UNITS[unit]
    except ValueError as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{table.path} has a {name} that is no number ({problem}). {_MAKE}.") from error
    good = np.abs(scaled) < 2.0**62
    return np.where(good, np.rint(np.where(good, scaled, 0)), absent).astype(np.int64)


def _left_out(table: _Table, unsound: npt.NDArray[np.bool_]) -> list[str]:
    count = table.odd + int(np.count_nonzero(unsound))
    return [f"{count:,} lines are cut short or have no time above 0 and are left out."] if count else []
