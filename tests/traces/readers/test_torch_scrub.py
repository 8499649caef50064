"""A trace without what is private: it is read as the whole one, and no text is left but names."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.errors import UsageError
from moe_eval.traces.kernel_table import Trace
from moe_eval.traces.readers import torch_profiler
from tests.doubles import chrome_trace
from tests.doubles.chrome_trace import Event, call, kernel, labelled, mark, merged, range_spans, row_tuples
from tests.traces.readers.conftest import assert_same


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def equal_but_ranges(before: Trace, after: Trace) -> None:
    assert before.kernels.names == after.kernels.names
    assert_same(replace(before, ranges=after.ranges), after)


def contents() -> dict[str, list[Event]]:
    rocm = [{key: value for key, value in kernel().items() if key != "args"} | {"args": {"External id": 3}}]
    rocm.append(call("hipModuleLaunchKernel", args={"External id": 3}))
    epoch = [each | {"ts": 1709876543210987.5} for each in (kernel(), call(), mark("m0"))]
    torn = [kernel("a"), kernel("b", args={"correlation": 6}), call(pid=1), call(pid=2)]
    torn.append(call(pid=2, args={"correlation": 6}))
    return {
        "merged": merged(),
        "merged without a label": torn,
        "texts": labelled([kernel(tid="s7"), call(tid="t b"), call(tid="t a", args={"correlation": 8})], "host12 "),
        "text numbers": [kernel(pid="0", args={"stream": "9"}), *(make(pid="642", tid="8") for make in (call, mark))],
        "left out": [kernel(dur="x"), kernel(..., ts=-5.125), call(), mark("m1", dur=None), mark("m0")],
        "rocm": rocm,
        "epoch": epoch,
        "graph": [kernel(args={"graph node id": 9, "bytes": 7, "grid": [5, 6, 7]}), call("cudaGraphLaunch")],
        "negative": [kernel(args={"device": -1, "stream": -2}), call(pid=-4, tid=-5)],
    }


def test_operators_of_a_cpu_are_kept_where_they_are_what_counts(tmp_path: Path) -> None:
    source, target = tmp_path / "a.json", tmp_path / "b.json.gz"

    private = {"tid": 7, "args": {"Concrete Inputs": ["hunter2"], "Call stack": "hunter2"}}
    events = [
        mark(name, cat="cpu_op", ts=ts, dur=dur, **private)
        for name, ts, dur in (("aten::linear", 10, 5), ("aten::mm", 11, 3), ("aten::silu", 20, "x"))
    ]
    events.append(mark("m0", tid=7, ts=9, dur=9))
    source.write_text(json.dumps({**chrome_trace.header(), "traceEvents": events}))
    torch_profiler.scrub(source, target, lambda _: True, cpu=True)
    before, after = (torch_profiler.read(each, cpu=True) for each in (source, target))
    equal_but_ranges(before, after)
    assert before.kernels.duration_ns.tolist() == [2000, 3000]
    assert before.ranges.names == after.ranges.names == ("m0",)
    assert "hunter2" not in unpacked(target)


@pytest.mark.parametrize("name", contents())
def test_a_scrubbed_trace_is_read_as_the_whole_one(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "a.json", tmp_path / "b.json.gz"
    source.write_text(json.dumps({**chrome_trace.header(), "traceEvents": contents()[name]}))
    torch_profiler.scrub(source, target, lambda _: True)
    before, after = torch_profiler.read(source), torch_profiler.read(target)
    assert before.kernels.names == after.kernels.names
    assert_same(before, after)


def test_scrubbing_keeps_what_is_asked_for_and_the_source_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    chrome_trace.write(source, steps=3, layers=2)
    original = source.read_bytes()
    torch_profiler.scrub(source, target, lambda text: "generation_1" in text)
    before, after = torch_profiler.read(source), torch_profiler.read(target)
    equal_but_ranges(before, after)
    spans = range_spans(before)
    assert range_spans(after) == [span for span in spans if "generation_1" in span[0]] != spans
    assert source.read_bytes() == original
    first = target.read_bytes()
    torch_profiler.scrub(source, target, lambda text: "generation_1" in text)
    assert target.read_bytes() == first
    assert b"b.json" not in first  # gzip keeps the name of what it packed, and in bytes 4 to 7 when
    assert first[4:8] == bytes(4)
    assert {event["ph"] for event in json.loads(unpacked(target))["traceEvents"]} == {"X"}


def test_a_token_is_nowhere_in_a_scrubbed_trace(tmp_path: Path) -> None:
    token = "hf_SECRET"
    extra = dict.fromkeys(("Concrete Inputs", "Call stack", "path", "hostname", token, "kernel", "stream"), token)
    spread = {"id": token, token: {"deep": [token]}, "bp": token, "cname": token, "sf": token, "stack": [token]}
    where = {"pid": f"{token} 3", "tid": token}
    numbers = {"bytes": token, "graph node id": token, "External id": token, "device": token}
    events: list[Event] = [
        kernel(args=extra | numbers, **where) | spread,
        kernel("cut", dur=token, **where) | spread,
        kernel("late", ts=token, args={"correlation": token}) | spread,
        call(args=extra, **where) | spread,
        call(dur=token, args={"correlation": 6}, **where),
        mark("kept", args=extra, **where) | spread,
        mark(token, **where),
        mark("kept", dur=token),
        {"ph": "X", "cat": "cpu_op", "name": token, **where, "ts": 1.0, "dur": 1.0, "args": extra},
        {"ph": "X", "cat": "python_function", "name": token, **where, "ts": 1.0, "dur": 1.0},
        {"ph": "X", "cat": "gpu_user_annotation", "name": token, **where, "ts": 1.0, "dur": 1.0},
        {"ph": "X", "cat": token, "name": token, "pid": token, "tid": token, "ts": 1.0, "dur": 1.0},
        {"ph": "M", "name": "process_name", "pid": 42, "args": {"name": token, "labels": token}},
        {"ph": "i", "name": token, "pid": token, "tid": token, "ts": 3.0},
        {"ph": token, "name": token},
    ]
    facts = dict.fromkeys([*chrome_trace.header(), "traceName", "hostname", "hip_runtime_version", token], token)
    facts["deviceProperties"] = [{"id": token, "name": "NVIDIA H100", "uuid": token, token: token}, {"name": [token]}]
    facts["distributedInfo"] = {"hostname": token}
    source, target = tmp_path / "a.json", tmp_path / "b.json.gz"
    source.write_text(json.dumps({**facts, "traceEvents": events}))
    torch_profiler.scrub(source, target, lambda text: text == "kept")
    assert token not in unpacked(target)
    assert token.encode() not in target.read_bytes()
    before, after = torch_profiler.read(source), torch_profiler.read(target)
    assert row_tuples(before) == row_tuples(after)
    assert {"k", "cudaLaunchKernel", "kept", "NVIDIA H100"} <= set(names_in(json.loads(unpacked(target))))


def names_in(document: dict[str, Any]) -> list[str]:
    return [each["name"] for each in [*document["traceEvents"], *document["deviceProperties"]] if "name" in each]


def test_a_trace_is_not_scrubbed_onto_itself_or_where_nothing_can_be_written(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text(json.dumps([kernel()]))
    link = tmp_path / "link.json"
    link.symlink_to(source)
    for target, sentence in ((source, "itself"), (link, "itself"), (tmp_path / "no" / "b.gz", "cannot be written")):
        with pytest.raises(UsageError, match=sentence):
            torch_profiler.scrub(source, target, lambda _: True)
    assert json.loads(source.read_text()) == [kernel()]
