"""Fields of Chrome traces: exact times, whatever may stand for a number, and files that are no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import NONE
from moe_eval.traces.readers import torch_profiler
from tests.doubles.chrome_trace import call, kernel, mark
from tests.traces.readers.conftest import Reader


@pytest.mark.parametrize(
    ("ts", "nanoseconds"),
    [
        ("4521180005283.935", 4521180005283935),
        ("7775999999999.999", 7775999999999999),  # the last nanosecond of a quarter of 90 days
        ("8796093022209.003", 8796093022209003),  # just above what a double tells
        ("1709876543210987.654", 1709876543210987654),  # since 1970
        ("1709876543210987", 1709876543210987000),
        ("1.7098765432109870e15", 1709876543210987000),
        ("0.0004", 0),
        ("-12.345", -12345),
    ],
)
def test_times_are_exact_to_the_nanosecond(tmp_path: Path, ts: str, nanoseconds: int) -> None:
    path = tmp_path / "trace.json"
    path.write_text(f"[{json.dumps(kernel(ts='TS', args={'grid': [1, 1, 1]}))}]".replace('"TS"', ts))
    rows = torch_profiler.read(path).kernels
    assert (rows.start_ns.tolist(), rows.duration_ns.tolist()) == ([nanoseconds], [4500])


def test_every_thousandth_of_a_microsecond_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    base = 7_775_999_123_456
    one = json.dumps(kernel(ts="TS"))
    path.write_text("[" + ",".join(one.replace('"TS"', f"{base}.{each:03}") for each in range(1000)) + "]")
    assert torch_profiler.read(path).kernels.start_ns.tolist() == [base * 1000 + each for each in range(1000)]


@pytest.mark.parametrize("dur", ["left out", "4.5", "NaN", None, -1.0, "nan", "-Infinity", "Infinity", 1e300, [1]])
def test_rows_without_a_usable_duration_are_left_out_and_counted(tmp_path: Path, dur: Any) -> None:
    path = tmp_path / "trace.json"
    dur = ... if dur == "left out" else dur
    text = json.dumps([kernel("bad", dur=dur), kernel("good"), mark("bad", dur=dur), mark("good")])
    for literal in ("NaN", "nan", "-Infinity", "Infinity"):
        text = text.replace(f'"{literal}"', literal)
    path.write_text(text)
    trace = torch_profiler.read(path)
    assert trace.kernels.names == trace.ranges.names == ("good",)
    assert trace.notes == ("2 rows without a usable duration were left out.",)


def test_a_start_that_does_not_fit_64_bits_of_nanoseconds_is_left_out(read: Reader) -> None:
    trace = read([kernel("late", ts=5e15, dur=5e15), kernel("never", ts=1e19), kernel("good")])
    assert trace.kernels.names == ("good",)


def test_nan_is_read_where_it_stands_for_a_number_and_kept_in_names(tmp_path: Path) -> None:
    name = 'f<int, NaN, 3>("x\\": NaN, ", [nan, inf])'
    path = tmp_path / "trace.json"
    event = json.dumps(kernel(name, args={"a": "A", "b": ["A", "A"]}))
    path.write_text(f'{{"x":[NaN ,-Infinity,inf], "traceEvents":[{event}]}}'.replace('"A"', "-nan"))
    trace = torch_profiler.read(path)
    assert trace.kernels.names == (name,)
    assert trace.kernels.blocks.tolist() == [24]


def test_what_is_missing_or_odd_in_an_event_does_no_harm(read: Reader) -> None:
    events = [
        kernel(name=...),
        kernel(name=None, args={"grid": None, "bytes": None}),
        kernel("bare", ts=200.0) | {"args": None},
        kernel("none", ts=201.0) | {"args": {}},
        kernel("texts", args={"correlation": "5", "stream": "9", "bytes": "77", "device": "1", "grid": [2, 2]}),
        {"ph": "s", "id": 1, "ts": 1, "pid": 0, "tid": 0, "cat": "kernel", "name": "flow"},
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
        {"ph": "i", "s": "g", "name": "mark", "ts": 5, "cat": "kernel"},
        {"ph": "Z", "cat": "kernel", "name": "unknown phase", "ts": 1, "dur": 1},
        {"cat": "kernel", "name": "no phase", "ts": 1, "dur": 1},
        {"ph": "X", "ts": 1, "dur": 1},
        call(),
    ]
    rows = read(events).kernels
    by_name = {rows.names[name]: at for at, name in enumerate(rows.name.tolist())}
    assert sorted(rows.names[name] for name in rows.name) == ["(no name)", "(no name)", "bare", "none", "texts"]
    at = by_name["texts"]
    assert [rows.correlation[at], rows.stream[at], rows.bytes[at], rows.device[at], rows.blocks[at]] == [5, 9, 77, 1, 4]
    assert rows.launch_ns[at] == 90_500
    at = by_name["bare"]  # the device is the process and the stream the thread
    assert [rows.correlation[at], rows.stream[at], rows.device[at], rows.launch_ns[at]] == [NONE, 7, 0, NONE]


@pytest.mark.parametrize("size", [10**30, 2**63, 2**64 - 1, -(2**63)])
def test_numbers_of_any_size_are_read(read: Reader, size: int) -> None:
    huge = {"correlation": size, "bytes": size, "stream": size, "device": size, "graph node id": size}
    rows = read([kernel("huge", pid=size, args=huge), kernel(), call(pid=size), mark("m", tid=size)]).kernels
    assert len(rows) == 2
    assert rows.duration_ns.tolist() == [4500, 4500]


def test_an_id_too_large_to_be_told_apart_between_processes_is_none(read: Reader) -> None:
    rows = read([kernel(args={"correlation": 2**60}), kernel(), call(args={"correlation": 2**60})]).kernels
    assert sorted(zip(rows.correlation.tolist(), rows.launch_ns.tolist(), strict=True)) == [(NONE, NONE), (5, NONE)]


def test_hostile_names_come_through_unchanged(read: Reader) -> None:
    names = ["x" * 100_000, 'a"b\tc\n\x00\x1b[31m', "<script>alert(1)</script>", "é🙂\u202e", "'; DROP TABLE--"]
    assert set(read([kernel(each) for each in names]).kernels.names) == set(names)


@pytest.mark.parametrize(
    ("content", "cpu", "sentence"),
    [
        ([mark("m")], False, "events of the CPU only and no kernels. Record it with ProfilerActivity.CUDA"),
        ([], False, "no kernels. Record it with ProfilerActivity.CUDA"),
        ([kernel()], True, "no operators of the CPU. Record it with ProfilerActivity.CPU"),
        ([kernel(dur="x")], False, "1 kernels and none with a usable duration"),
        ({"a": 1}, False, "JSON without traceEvents"),
        ({"traceEvents": None}, False, "JSON without traceEvents"),
        ({"traceEvents": {"a": 1}}, False, "JSON but no Chrome trace"),
        ({"traceEvents": [1, 2]}, False, "JSON but no Chrome trace"),
        ([kernel(name=5)], False, "JSON but no Chrome trace"),
        ([kernel(pid=[1])], False, "JSON but no Chrome trace"),
        ([kernel() | {"args": "text"}], False, "JSON but no Chrome trace"),
        ('[{"ph":"X","cat":"kernel"', False, "broken or cut off"),
        ("[{]", False, "broken or cut off"),
        ("[" * 100_000, False, "JSON but no Chrome trace|broken or cut off"),
        ('{"x":' * 100_000, False, "broken or cut off"),
        ('[{"ph":"X","name":"\ud800"}]', False, "broken or cut off"),
        ('{"traceEvents":[{"ph":"X","ts":' + "9" * 5000 + "}]}", False, "no kernels|broken|no Chrome trace"),
    ],
)
def test_what_is_no_trace_gets_one_sentence(tmp_path: Path, content: Any, cpu: bool, sentence: str) -> None:
    path = tmp_path / "trace.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=sentence) as error:
        torch_profiler.read(path, cpu=cpu)
    assert "trace.json" in str(error.value)
    assert "\n" not in str(error.value)
