"""Reads what `nsys stats --format csv` wrote: cuda_gpu_trace (once gputrace) and cuda_gpu_kern_sum (once gpukernsum).

The table may stand after notices and between other reports, its columns in any order, between commas, semicolons or
tabs. Units are in the header, `(ns)` or `[ns]`, or in the cells, as the window of Nsight Systems writes them
(`108.419 s`, `398.686 μs`). Without a unit it is nanoseconds or bytes.
"""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files
from moe_eval.records.kernels import TraceSource
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Ints, Trace, kernels, ranges
from moe_eval.traces.readers.nsys_cells import MAKE, Table, encoded, number

_CELL = re.compile(r"(.*?)\s*(?:[(\[]([^)\]]*)[)\]])?", re.DOTALL)
_DELIMITERS = (",", ";", "\t")
_TIMES = {"start", "duration", "time", "total time"}  # a table of nsys stats has one of them beside its names
_BLANK = re.compile(rb"\r?\n[ \t]*\r?\n")
_COPY = re.compile(r"\[CUDA memcpy ([HDAP])to([HDAP])\]")
_SIDES = {"H": "Host", "D": "Device", "A": "Array", "P": "Peer"}
_DEVICE = re.compile(r"(.*?)\s*\((\d+)\)")
_NO_KERNEL = f"has no row of a kernel. {MAKE} of a recording with --trace=cuda."


@frozen
class _Header:
    """The line of a header: the units of its columns by their text in lower case, and where its rows begin."""

    units: Mapping[str, str]
    delimiter: str
    end: int


def read(path: Path) -> Trace:
    """The kernels, copies and sets of a trace, or of a summary one row for every line.

    Raises:
        UsageError: the file cannot be read, or holds neither of the two reports.
    """
    raw = as_utf8(files.read_bytes(path, "Give the CSV that nsys stats wrote."))
    headers: dict[str, _Header] = {}
    for header in _headers(raw):
        names = header.units.keys()
        if {"start", "duration", "name"} <= names and names & {"grdx", "strm", "device"}:
            headers["cuda_gpu_trace"] = header
            break  # it has more than a summary
        if {"total time", "instances", "name"} <= names:
            headers.setdefault("cuda_gpu_kern_sum", header)
    for report, rows in (("cuda_gpu_trace", _trace), ("cuda_gpu_kern_sum", _summary)):
        if report in headers:
            return rows(_lines(path, raw, headers[report]), report)
    raise UsageError(f"{path} has no table of kernels that nsys stats wrote. {MAKE}.")


def as_utf8(raw: bytes) -> bytes:
    """A file's text without its byte order mark. Windows writes UTF-16 too, and two letters, or Latin-1, for micro."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raw = raw.decode("utf-16", "replace").encode()
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    for micro in ("\u03bcs".encode(), "\u00b5s".encode(), b" \xb5s"):
        raw = raw.replace(micro, b" us")
    return raw if raw.isascii() else raw.decode("utf-8", "replace").encode()  # a name may be cut within a letter


def is_header(line: bytes) -> bool:
    """Whether a line is the header of a table of `nsys stats`, of any age and any report."""
    return _header(line, 0) is not None


def _headers(raw: bytes) -> Iterator[_Header]:
    at = -1
    while (at := raw.find(b"Name", at + 1)) >= 0:
        begin, end = 1 + max(raw.rfind(b"\n", 0, at), raw.rfind(b"\r", 0, at)), raw.find(b"\n", at)
        end = len(raw) if end < 0 else end
        if header := _header(raw[begin:end], end):
            yield header
            at = end


def _header(line: bytes, end: int) -> _Header | None:
    """The header that a line holds, None where it is none. Rows of long traces come here only with `Name` in a name."""
    if b"Name" not in line or not (b"Time" in line or b"Start" in line or b"Duration" in line):
        return None
    text = line.strip().decode("utf-8", "replace")
    for delimiter in _DELIMITERS:
        pairs = [_CELL.fullmatch(cell.strip().lower()) for cell in next(csv.reader([text], delimiter=delimiter))]
        units = {pair[1]: pair[2] or "" for pair in pairs if pair}
        if "name" in units and not _TIMES.isdisjoint(units):
            return _Header(units, delimiter, end)
    return None


def _lines(path: Path, raw: bytes, header: _Header) -> Table:
    arrow, reader = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.csv")
    blank = _BLANK.search(raw, header.end)
    units = header.units
    odd = []

    def skip(row: Any) -> str:
        odd.append(row.number)
        return "skip"

    body = memoryview(raw)[header.end : blank.start() if blank else len(raw)]
    try:
        table = reader.read_csv(
            arrow.BufferReader(arrow.py_buffer(body)),
            read_options=reader.ReadOptions(column_names=list(units)),
            parse_options=reader.ParseOptions(delimiter=header.delimiter, invalid_row_handler=skip),
            convert_options=reader.ConvertOptions(
                column_types={name: arrow.binary() if name in ("name", "device") else arrow.string() for name in units},
                strings_can_be_null=False,
            ),
        )
    except ValueError as error:  # as pyarrow's own errors are
        problem = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{path} is not the CSV of nsys stats from its header on ({problem}). {MAKE}.") from error
    return Table(path, {name: table.column(name) for name in units}, units, header.delimiter, len(odd))


def _trace(table: Table, report: str) -> Trace:
    start, duration = number(table, "start"), number(table, "duration")
    texts, text = encoded(table.columns["name"])
    labels = [_COPY.sub(lambda m: f"[CUDA memcpy {_SIDES[m[1]]}-to-{_SIDES[m[2]]}]", name) for name in texts]
    index: dict[str, int] = {}
    place = np.array([index.setdefault(label, len(index)) for label in labels], np.int64)
    gpus, device = _devices(table)
    sound = (start >= 0) & (duration >= 0) & (text != NONE)
    text = text[sound]
    kinds = [COPY if name.startswith("[CUDA memcpy") else SET if name == "[CUDA memset]" else KERNEL for name in labels]
    kind = np.array(kinds, np.int64)[text]
    grid = np.prod([number(table, f"grd{axis}", 0) for axis in "xyz"], axis=0)[sound]
    size = number(table, "bytes", 0)[sound]
    if not np.any(kind == KERNEL):
        raise UsageError(f"{table.path} {_NO_KERNEL}")
    rows = kernels(
        tuple(index),
        name=place[text],
        kind=kind,
        start_ns=start[sound],
        duration_ns=duration[sound],
        device=device[sound],
        stream=number(table, "strm", 0)[sound],
        correlation=number(table, "corrid")[sound],
        bytes=np.where(kind == KERNEL, 0, size),
        blocks=np.where(kind == KERNEL, grid, 0),
    )
    notes = [*_left_out(table, ~sound), "A CSV of nsys stats has neither launches, CUDA graphs nor NVTX ranges."]
    return Trace(rows, ranges(()), TraceSource(f"nsys stats {report}", None, tuple(gpus)), tuple(notes))


def _summary(table: Table, report: str) -> Trace:
    total, count = number(table, "total time"), number(table, "instances")
    texts, text = encoded(table.columns["name"])
    sound = (total >= 0) & (count > 0) & (text != NONE)
    if not np.any(sound):
        raise UsageError(f"{table.path} {_NO_KERNEL}")
    names = sorted(texts)  # so that the order of lines does not matter
    index = {name: at for at, name in enumerate(names)}
    rows = kernels(
        names,
        name=np.array([index[name] for name in texts])[text[sound]],
        start_ns=np.zeros(np.count_nonzero(sound)),
        duration_ns=total[sound],
        count=count[sound],
    )
    notes = [*_left_out(table, ~sound), "A summary has neither the times of kernels nor the duration of each launch."]
    return Trace(rows, ranges(()), TraceSource(f"nsys stats {report}"), tuple(notes), timed=False)


def _devices(table: Table) -> tuple[list[str], Ints]:
    """The names of the GPUs, and every row's number: that behind the name, else the order in which they come."""
    if "device" not in table.columns:
        return [], np.zeros(len(table.columns["name"]), np.int64)
    texts, text = encoded(table.columns["device"])
    pairs = [_DEVICE.fullmatch(label.strip()) for label in texts]
    numbers = [
        int(pair[2]) if pair else int(label) if label.isdecimal() else at
        for at, (pair, label) in enumerate(zip(pairs, texts, strict=True))
    ]
    gpus = [pair[1] if pair else label for pair, label in zip(pairs, texts, strict=True)]
    names = {number: gpu for number, gpu in zip(numbers, gpus, strict=True) if gpu}
    return [names[number] for number in sorted(names)], np.array([*numbers, 0], np.int64)[text]


def _left_out(table: Table, unsound: npt.NDArray[np.bool_]) -> list[str]:
    count = table.odd + int(np.count_nonzero(unsound))
    return [f"{count:,} lines are cut short or have no time above 0 and are left out."] if count else []
