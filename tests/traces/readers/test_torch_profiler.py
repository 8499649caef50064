"""The reader of torch-profiler traces against json and plain loops, on generated and on real traces."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from moe_eval.records.kernels import TraceSource
from moe_eval.traces.kernel_table import COPY, KERNEL, NONE, SET, Trace
from moe_eval.traces.readers import torch_profiler
from tests.conftest import ROOT
from tests.doubles import chrome_trace
from tests.doubles.chrome_trace import Event, call, kernel, mark, merged, range_spans, row_tuples
from tests.traces.readers.conftest import Reader

SHARED = ROOT.parent / "shared" / "data" / "traces"
STEM = "vllm-0.22.1-h100-qwen3-30b-a3b-"
# kernels, copies and sets of one launch of a graph, and how many launches there are
REAL = {
    "dummy-bf16-b8": (913, 15),
    "dummy-fp8-b8": (1249, 15),
    "random-bf16-b1": (865, 8),
    "random-bf16-b32": (913, 8),
    "random-fp8-b1": (1201, 8),
    "random-fp8-b32": (1249, 8),
}
KIND = {"kernel": KERNEL, "gpu_memcpy": COPY, "gpu_memset": SET}


def ns(us: Any) -> int:
    return round(Decimal(us) * 1000)


def events_of(path: Path) -> list[Event]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        events: list[Event] = json.load(file, parse_float=Decimal)["traceEvents"]
    return events


def expected(events: list[Event]) -> list[tuple[Any, ...]]:
    """Rows of a trace of one process by a loop over its events."""
    calls = {e["args"]["correlation"]: e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver")}
    rows = []
    for event in events:
        if event["ph"] != "X" or event.get("cat") not in KIND:
            continue
        args = event["args"]
        launch = calls.get(args["correlation"])
        x, y, z = args.get("grid", (0, 0, 0))
        times = ns(event["ts"]), ns(event["dur"]), NONE if launch is None else ns(launch["ts"])
        replayed = launch is not None and launch["name"] in ("cudaGraphLaunch", "hipGraphLaunch")
        where = args["device"], args["stream"], args["correlation"]
        rows.append((event["name"], KIND[event["cat"]], *times, *where, args.get("bytes", 0), x * y * z, replayed))
    return sorted(rows)


def same(first: Trace, second: Trace) -> bool:
    return row_tuples(first) == row_tuples(second) and range_spans(first) == range_spans(second)


@pytest.mark.parametrize(("name", "engine", "hip"), [("a.json", "vllm", False), ("a.json.gz", "sglang", True)])
def test_a_generated_trace_is_read_as_a_loop_reads_it(tmp_path: Path, name: str, engine: Any, hip: bool) -> None:
    path = tmp_path / name
    chrome_trace.write(path, steps=4, layers=3, engine=engine, hip=hip)
    trace, events = torch_profiler.read(path), events_of(path)
    assert row_tuples(trace) == expected(events)
    marks = [e for e in events if e.get("cat") == "user_annotation"]
    assert range_spans(trace) == sorted(
        [(e["name"], ns(e["ts"]), ns(e["ts"]) + ns(e["dur"])) for e in marks], key=lambda m: m[1]
    )
    assert trace.source == TraceSource("torch profiler", "schema 1, CUDA 13.0", ("NVIDIA H100 80GB HBM3",))
    assert trace.notes == ()
    rows = trace.kernels
    layer = len(chrome_trace.LAYER)
    assert list(Counter(rows.correlation[rows.replayed].tolist()).values()) == [3 * layer + 1] * 4
    assert set(rows.launch_thread.tolist()) == set(trace.ranges.thread.tolist())


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent: the traces are not beside the checkout")
@pytest.mark.parametrize("name", REAL)
def test_a_real_trace_is_read_as_a_loop_reads_it(name: str) -> None:
    path = SHARED / f"{STEM}{name}.json.gz"
    trace, events = torch_profiler.read(path), events_of(path)
    rows = trace.kernels
    assert row_tuples(trace) == expected(events)
    devices = [e for e in events if e.get("cat") in KIND]
    assert rows.duration_ns.sum() == sum(ns(e["dur"]) for e in devices)
    assert Counter(rows.stream.tolist()) == Counter(e["args"]["stream"] for e in devices)
    assert NONE not in rows.launch_ns
    size, launches = REAL[name]
    assert list(Counter(rows.correlation[rows.replayed].tolist()).values()) == [size] * launches


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data absent: the traces are not beside the checkout")
def test_the_operators_of_a_real_trace_last_their_self_time() -> None:
    path = SHARED / f"{STEM}dummy-bf16-b8.json.gz"
    rows = torch_profiler.read(path, cpu=True).kernels
    operators = [e for e in events_of(path) if e.get("cat") == "cpu_op"]
    assert len(rows) == len(operators)
    assert int(rows.duration_ns.sum()) == union([(ns(e["ts"]), ns(e["ts"]) + ns(e["dur"])) for e in operators])


def union(spans: list[tuple[int, int]]) -> int:
    total, until = 0, -1
    for start, end in sorted(spans):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total


def test_operators_of_the_cpu_are_rows_of_their_self_time(read: Reader) -> None:
    def op(name: str, ts: float, dur: float, tid: int = 1) -> Event:
        return mark(name, cat="cpu_op", tid=tid, ts=ts, dur=dur)

    events = [
        op("inner", 11, 4),
        op("innermost", 12, 1.5),
        op("outer", 10, 10),
        op("second", 16, 3),
        op("all taken", 30, 2),
        op("takes all", 30, 2),
        op("other thread", 12, 50, tid=2),
        op("after", 20, 1),
        op("ProfilerStep#3", 0, 100),
        mark("around", tid=1, ts=5, dur=10),
    ]
    trace = read(events, cpu=True)
    rows = trace.kernels
    own = {rows.names[name]: took for name, took in zip(rows.name, rows.duration_ns.tolist(), strict=True)}
    assert own == {
        "outer": 3000,
        "inner": 2500,
        "innermost": 1500,
        "second": 3000,
        "after": 1000,
        "all taken": 0,
        "takes all": 2000,
        "other thread": 50_000,
    }
    assert set(rows.device.tolist()) == {NONE}
    begun = {rows.names[name]: at for name, at in zip(rows.name, rows.launch_ns.tolist(), strict=True)}
    assert begun == {
        rows.names[each]: 1000 * next(e["ts"] for e in events if e["name"] == rows.names[each]) for each in rows.name
    }
    for number in set(rows.stream.tolist()):
        starts, ends = rows.start_ns[rows.stream == number], rows.end_ns[rows.stream == number]
        assert (starts[1:] >= ends[:-1]).all(), "the rows of a thread never overlap"
    first = rows.stream == rows.stream[rows.names.index("outer") == rows.name][0]
    assert (rows.start_ns[first].min(), rows.end_ns[first].max()) == (10_000, 32_000)
    assert rows.launch_thread.tolist() == rows.stream.tolist()
    assert sorted(trace.ranges.names) == ["ProfilerStep#3", "around"]
    thread = {rows.names[name]: number for name, number in zip(rows.name, rows.stream.tolist(), strict=True)}
    assert thread["outer"] == trace.ranges.thread[0] != thread["other thread"]


def test_a_launch_outside_the_trace_is_none_and_a_call_of_another_kind_no_launch(read: Reader) -> None:
    rows = read([kernel(), call(cat="python_function"), call(args={"correlation": 6})]).kernels
    assert (rows.launch_ns.tolist(), rows.launch_thread.tolist(), rows.replayed.tolist()) == ([NONE], [NONE], [False])


@pytest.mark.parametrize(("node", "number"), [(17, 17), (0, NONE), (2**40 + 3, 2**40 + 3)])
def test_a_graph_node_is_a_replay_whatever_launched_it(read: Reader, node: int, number: int) -> None:
    rows = read([kernel(args={"graph node id": node})]).kernels
    assert (rows.graph_node.tolist(), rows.replayed.tolist()) == ([number], [number != NONE])


@pytest.mark.parametrize("name", ["cudaGraphLaunch", "hipGraphLaunch", "cuGraphLaunch", "hipGraphLaunch_spt"])
def test_a_graph_is_replayed_by_its_launch(read: Reader, name: str) -> None:
    rows = read([kernel("a"), kernel("b"), kernel("c", args={"correlation": 6}), call(name)]).kernels
    assert dict(zip([rows.names[each] for each in rows.name], rows.replayed.tolist(), strict=True)) == {
        "a": True,
        "b": True,
        "c": False,
    }


def test_old_categories_and_rocm_without_correlation_ids(read: Reader) -> None:
    old = read(
        [kernel(cat="Kernel"), kernel(cat="Memcpy"), kernel(cat="Memset"), call(cat="Runtime"), mark("u", cat="User")]
    )
    assert sorted(old.kernels.kind.tolist()) == [KERNEL, COPY, SET]
    assert set(old.kernels.launch_ns.tolist()) == {90_500}
    assert old.ranges.names == ("u",)
    without = {key: value for key, value in kernel().items() if key != "args"}
    rocm = read(
        [
            without | {"args": {"External id": 3}},
            call("hipModuleLaunchKernel", args={"correlation": 1, "External id": 3}),
            call("hipStreamSynchronize", args={"correlation": 2, "External id": 3}, ts=95.0),
        ]
    )
    assert rocm.kernels.launch_ns.tolist() == [90_500]
    assert rocm.notes == ("Kernels have no correlation ids and were joined to the last launch of their operator.",)


def test_threads_are_told_apart_across_processes(read: Reader) -> None:
    pairs = [(1, 1), (1, 2), (2, 1), ("1", 2), (1, "2")]
    events = [mark(f"{at}", pid=pid, tid=tid) for at, (pid, tid) in enumerate(pairs)]
    trace = read([kernel(), call(pid=2, tid=1), *events])
    thread = {
        trace.ranges.names[n]: number for n, number in zip(trace.ranges.name, trace.ranges.thread.tolist(), strict=True)
    }
    assert len(set(thread.values())) == len(pairs)
    assert trace.kernels.launch_thread.tolist() == [thread["2"]]
    assert trace.kernels.process.tolist() == [2]


def test_ranks_that_sglang_merged_keep_their_own_launches(read: Reader) -> None:
    trace = read(merged())
    rows = trace.kernels
    assert [rows.names[each] for each in rows.name] == ["k0", "k1"]
    assert rows.launch_ns.tolist() == [90_000, 91_000]
    assert len(set(rows.process.tolist())) == 2
    marks = {
        trace.ranges.names[name]: thread for name, thread in zip(trace.ranges.name, trace.ranges.thread, strict=True)
    }
    assert rows.launch_thread.tolist() == [marks["m0"], marks["m1"]]
    assert trace.notes == ()


def test_processes_merged_without_a_label_are_joined_only_where_an_id_is_of_one(read: Reader) -> None:
    events = [kernel("both"), kernel("first", args={"correlation": 6}), kernel("none", args={"correlation": 9})]
    events += [call(pid=1), call(pid=2), call(pid=1, args={"correlation": 6}), call(pid=2, args={"correlation": 8})]
    trace = read(events)
    rows = trace.kernels
    launched = {rows.names[name]: row for row, name in enumerate(rows.name.tolist())}
    assert rows.launch_ns[launched["first"]] == 90_500
    assert rows.process[launched["first"]] == 1
    assert [rows.launch_ns[launched[each]] for each in ("both", "none")] == [NONE, NONE]
    assert trace.notes == (
        "Several processes are merged without a label, so kernels were joined to launches by correlation id alone. "
        "Those whose id is in several processes were joined to none: 1.",
    )


def test_the_order_of_events_does_not_matter(tmp_path: Path) -> None:
    chrome_trace.write(tmp_path / "a.json", steps=1, layers=1)
    document = json.loads((tmp_path / "a.json").read_text())
    random.Random(1).shuffle(document["traceEvents"])
    (tmp_path / "b.json").write_text(json.dumps(document))
    first, second = torch_profiler.read(tmp_path / "a.json"), torch_profiler.read(tmp_path / "b.json")
    assert same(first, second)
    assert first.kernels.launch_thread.tolist() == second.kernels.launch_thread.tolist()


def test_facts_of_rocm_and_of_odd_headers(read: Reader) -> None:
    gpus = [{"id": 0, "name": "AMD Instinct MI300X"}, {"id": 0, "name": "AMD Instinct MI300X"}, {"id": 1}, 7]
    trace = read([kernel()], schemaVersion=1, hip_runtime_version=60342134, deviceProperties=gpus)
    assert trace.source == TraceSource("torch profiler", "schema 1, HIP 6.3", ("AMD Instinct MI300X",))
    assert read([kernel()], schemaVersion="x", deviceProperties=None).source.version is None
