"""The reader of `nsys stats`, against tables written by hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Trace
from moe_eval.traces.readers import nsys, nsys_stats, sources
from moe_eval.traces.readers.sources import TraceKind
from tests.doubles import nsys_database

NEW = (
    "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Reg/Trd,StcSMem (MB),DymSMem (MB),Bytes (MB),"
    "Throughput (MB/s),SrcMemKd,DstMemKd,Device,Ctx,GreenCtx,Strm,Name"
)
OLD = NEW.replace("GreenCtx,", "").replace("MB/s", "MBps")
HEADER = "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,Bytes (B),Device,Strm,Name"
GEMM = 'void gemm<(Kind)3, "quoted", float>(int, int)'
ROWS = [
    # start, duration, correlation, grid, bytes, device, stream, name
    (1_000_000_000_000_000_001, 31_000, 7, (4, 3, 2), None, "NVIDIA H100 80GB HBM3 (0)", 7, GEMM),
    (1_000_000_000_000_040_000, 2_000, 8, None, 4_096_000, "NVIDIA H100 80GB HBM3 (1)", 15, "{copy}"),
    (1_000_000_000_000_045_000, 900, 9, None, 512_000, "NVIDIA H100 80GB HBM3 (0)", 7, "[CUDA memset]"),
    (1_000_000_000_000_050_000, 5_000, 10, (1, 1, 1), None, "NVIDIA H100 80GB HBM3 (1)", 15, "nvjet_tst_64x8"),
]
NOTICES = (
    "\nNOTICE: Existing SQLite export found: x.sqlite\n        It is assumed file was previously exported from: x\n\n"
    "Processing [x.sqlite] with [/opt/reports/cuda_gpu_trace.py]... \n"
)


def table(header: str, copy: str = "[CUDA memcpy Host-to-Device]", thousands: bool = False) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = header.split(",")
    writer.writerow(columns)
    for start, duration, correlation, grid, size, device, stream, name in ROWS:
        x, y, z = grid or ("", "", "")
        cells = {
            "Start (ns)": f"{start:,}" if thousands else start,
            "Duration (ns)": f"{duration:,}" if thousands else duration,
            **{"CorrId": correlation, "GrdX": x, "GrdY": y, "GrdZ": z, "Bytes (MB)": size / 1e6 if size else ""},
            **{"Device": device, "Strm": stream, "Name": name.format(copy=copy) if "{" in name else name},
        }
        writer.writerow([cells.get(each, "") for each in columns])
    return out.getvalue()


def read(folder: Path, text: str | bytes) -> Trace:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return nsys_stats.read(path)


def expected(trace: Trace) -> None:
    rows = trace.kernels
    columns = (rows.start_ns, rows.duration_ns, rows.correlation)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [row[:3] for row in ROWS]
    assert rows.blocks.tolist() == [24, 0, 0, 1]
    assert rows.bytes.tolist() == [0, 4_096_000, 512_000, 0]
    assert (rows.device.tolist(), rows.stream.tolist()) == ([0, 1, 0, 1], [7, 15, 7, 15])
    assert rows.kind.tolist() == [KERNEL, COPY, SET, KERNEL]
    names = [rows.names[each] for each in rows.name]
    assert names == [GEMM, "[CUDA memcpy Host-to-Device]", "[CUDA memset]", "nvjet_tst_64x8"]
    assert rows.launch_ns.tolist() == [NONE] * 4
    assert trace.source.gpus == ("NVIDIA H100 80GB HBM3",) * 2
    assert trace.timed
    assert trace.notes == ("A CSV of nsys stats has neither launches, CUDA graphs nor NVTX ranges.",)


TIMES = "Start (ns),Duration (ns)"
AROUND = {
    "recent": table(NEW),
    "older": table(OLD, copy="[CUDA memcpy HtoD]"),
    "between notices": NOTICES + table(NEW) + "\n\n" + NOTICES,
    "Windows": (NOTICES + table(NEW)).replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + table(NEW),
    "thousands": table(NEW, thousands=True),
    "square brackets": table(NEW).replace(TIMES, "Start [ns],Duration [ns]"),
    "quoted header": table(NEW).replace(TIMES, '"Start (ns)","Duration (ns)"'),
    "nsec": table(NEW).replace(TIMES, "Start(nsec),Duration(nsec)"),
    "other report": "Time (%),Total Time (ns),Num Calls,Name\n9.0,5,1,cudaFree\n\n" + table(NEW),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_trace_is_read_whatever_stands_around_it(tmp_path: Path, name: str) -> None:
    expected(read(tmp_path, AROUND[name]))


def test_a_database_and_its_trace_as_csv_give_the_same_kernels(tmp_path: Path) -> None:
    nsys_database.write(tmp_path / "made.sqlite")
    rows = nsys.read(tmp_path / "made.sqlite").kernels
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(HEADER.split(","))
    for at in reversed(range(len(rows))):
        grid = (rows.blocks[at], 1, 1) if rows.kind[at] == KERNEL else ("", "", "")
        size = "" if rows.kind[at] == KERNEL else rows.bytes[at]
        cells = (rows.start_ns[at], rows.duration_ns[at], rows.correlation[at], *grid, size)
        writer.writerow([*cells, f"NVIDIA H200 ({rows.device[at]})", rows.stream[at], rows.names[rows.name[at]]])
    found = read(tmp_path, out.getvalue()).kernels
    for column in ("start_ns", "duration_ns", "correlation", "device", "stream", "kind", "bytes", "blocks"):
        assert getattr(found, column).tolist() == getattr(rows, column).tolist(), column
    assert [found.names[each] for each in found.name] == [rows.names[each] for each in rows.name]


@pytest.mark.parametrize(("unit", "scale"), [("us", 1e3), ("ms", 1e6), ("s", 1e9)])
def test_times_of_another_unit_are_turned_into_nanoseconds(tmp_path: Path, unit: str, scale: float) -> None:
    text = f"Start ({unit}),Duration ({unit}),Device,Strm,Name\n{1_500_000_123 / scale!r},{2_345 / scale!r},0,7,k\n"
    rows = read(tmp_path, text).kernels
    assert (rows.start_ns.tolist(), rows.duration_ns.tolist()) == ([1_500_000_123], [2_345])


def test_lines_that_are_cut_or_without_a_time_are_counted(tmp_path: Path) -> None:
    head = "Start (ns),Duration (ns),Strm,Name\n"
    trace = read(tmp_path, head + "5,7,1,a\n,7,1,b\n9,,1,c\n11,-3,1,d\n13,nan,1,e\n15,4,1,f\n17,4,1")
    assert [trace.kernels.names[each] for each in trace.kernels.name] == ["a", "f"]
    assert trace.notes[0] == "5 lines are cut short or have no time above 0 and are left out."


SUMMARY = "Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name\n"
OLD_SUMMARY = "Time(%),Total Time,Instances,Average,Minimum,Maximum,Name\n"


TOTALS = {GEMM: (1_000_003, 7), "[x]": (5, 9), "nvjet": (12_345_678_901_234, 1), "moe...": (60_000, 20_000_000_000)}


def summary_of(trace: Trace) -> dict[str, tuple[int, int]]:
    """Total and launches by name."""
    rows = trace.kernels
    assert not trace.timed
    assert len(rows) == len(rows.names)
    columns = (rows.name.tolist(), rows.duration_ns.tolist(), rows.count.tolist())
    return {rows.names[name]: (total, count) for name, total, count in zip(*columns, strict=True)}


@pytest.mark.parametrize("header", [SUMMARY, OLD_SUMMARY])
@pytest.mark.parametrize("around", ["{}", NOTICES + "{}\n\nProcessing [x] with [y.py]... \n", "\ufeff{}"])
def test_a_summary_is_one_row_for_every_line(tmp_path: Path, header: str, around: str) -> None:
    lines = []
    for name, (total, count) in TOTALS.items():
        out = io.StringIO()
        cells = ["9.0", f"{total:,}", str(count), *["1.0"] * (header.count(",") - 3), name]
        csv.writer(out, lineterminator="\n").writerow(cells)
        lines.append(out.getvalue())
    trace = read(tmp_path, around.format(header + "".join(lines)))
    again = read(tmp_path, around.format(header + "".join(reversed(lines))))
    assert summary_of(trace) == TOTALS
    assert again.kernels.duration_ns.tolist() == trace.kernels.duration_ns.tolist()
    assert again.kernels.names == trace.kernels.names


def written(delimiter: str, micro: str, columns: str, *, comma: bool = False) -> str:
    """A summary as the window of Nsight Systems writes it: each time in the unit that fits it best."""

    def time(ns: float) -> str:
        size, unit = next(pair for pair in ((1e9, "s"), (1e6, "ms"), (1e3, micro), (1, "ns")) if ns >= pair[0])
        text = f"{ns / size:,.3f} {unit}"
        return text.translate(str.maketrans(",.", ".,")).replace(".", "") if comma else text

    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns.split())
    for name, total, count in (("a<1, 2>", 108_419_000_000, 271_941), ("b...", 94_645_000, 192), (GEMM, 20_031, 1)):
        cells = {"Time": "0.00%", "Total": time(total), "Instances": f"{count:,}", "Avg": time(total / count)}
        writer.writerow([cells.get(column, name if column == "Name" else "") for column in columns.split()])
    return out.getvalue().replace("Total", "Total Time", 1)


WINDOW = {"a<1, 2>": (108_419_000_000, 271_941), "b...": (94_645_000, 192), GEMM: (20_031, 1)}
COLUMNS = ("Time Total Instances Avg Med Name", "Name Instances Avg Total Time", "Instances Total Name")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("micro", ["us", "\u00b5s", "\u03bcs"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_units_stand_in_cells_too(tmp_path: Path, delimiter: str, micro: str, columns: str) -> None:
    text = written(delimiter, micro, columns)
    assert summary_of(read(tmp_path, text)) == WINDOW
    assert sources.kind(tmp_path / "trace.csv") is TraceKind.NSYS_CSV


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_what_windows_writes_is_read(tmp_path: Path, encoding: str) -> None:
    text = NOTICES + written(",", "\u00b5s", COLUMNS[0])
    assert summary_of(read(tmp_path, text.replace("\n", "\r\n").encode(encoding))) == WINDOW
    assert sources.kind(tmp_path / "trace.csv") is TraceKind.NSYS_CSV


def test_a_comma_before_the_fraction_is_read_between_semicolons(tmp_path: Path) -> None:
    assert summary_of(read(tmp_path, written(";", "us", COLUMNS[0], comma=True))) == WINDOW


def test_lines_of_one_name_that_was_cut_are_one_kernel(tmp_path: Path) -> None:
    rows = read(tmp_path, SUMMARY + "1,5,2,1,1,1,1,1,cut...\n" * 2).kernels
    assert (rows.names, rows.duration_ns.tolist(), rows.count.tolist()) == (("cut...",), [5, 5], [2, 2])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no table of kernels"),
        ("\x00\x01\x02 binary", "no table of kernels"),
        ("SKIPPED: x.sqlite does not contain CUDA kernel data.\n", "--report cuda_gpu_trace"),
        ("Start (ns),Duration (ns),Name,Result,CorrID,Pid,Tid,T-Pri,Thread Name\n1,2,a,0,1,1,1,,\n", "cuda_gpu_trace"),
        ("Time (%),Total Time (ns),Num Calls,Avg (ns),Name\n9.0,5,1,5.0,cudaFree\n", "--report cuda_gpu_trace"),
        ("Time (%),Total Time (ns),Instances,Avg (ns),Style,Range\n9.0,5,1,5.0,PushPop,x\n", "--report cuda_gpu_trace"),
        ("Name,Projected Start (ns),Projected Duration (ns)\nx,1,2\n", "--report cuda_gpu_trace"),
        ("Start (ns),Duration (ns),Strm,Name\n", "no row of a kernel"),
        ("Start (ns),Duration (ns),Strm,Name\n1,2,3,[CUDA memset]\n", "no row of a kernel"),
        ("Start (ns),Duration (ns),Strm,Name\nsoon,2,3,k\n", "no number"),
        ("Start (weeks),Duration (ns),Strm,Name\n1,2,3,k\n", "'weeks'"),
        (SUMMARY, "no row of a kernel"),
        (SUMMARY + "1,5 weeks,2,1,1,1,1,1,k\n", "'weeks'"),
        (SUMMARY + "1,5-6 ms,2,1,1,1,1,1,k\n", "no number"),
        (SUMMARY + "1,5,0,1,1,1,1,1,k\n", "no row of a kernel"),
    ],
)
def test_what_is_no_such_report_is_refused_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        read(tmp_path, text)
    assert "trace.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.csv"):
        nsys_stats.read(tmp_path / "absent.csv")
