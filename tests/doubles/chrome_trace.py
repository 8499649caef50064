"""Writes Chrome traces as torch's profiler does, for tests and benchmarks: one prefill, then steps of decode.

The prefill is launched kernel by kernel, every step of decode by one launch of a CUDA graph; kernels, their order in a
layer and the sizes of events are those of Qwen3-30B-A3B under vLLM 0.22 on an H100.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from moe_eval.traces.kernel_table import Trace

Event = dict[str, Any]

HOST, DEVICE = (1785, 1785), (0, 7)  # pid and tid: of a GPU, the device and the stream
# microseconds after the base that Kineto subtracts, the start of a quarter of the year
START = 4_521_180_000_000
_BASE = 1_790_857_026_000_000_000

_ROWS = [
    row.split("\t") for row in Path(__file__).with_name("chrome_layer.tsv").read_text(encoding="utf-8").splitlines()
]
# of one layer: name, nanoseconds in prefill and in decode, grid
LAYER = tuple((name, int(prefill), int(decode), grid.split("x")) for prefill, decode, grid, name in _ROWS)
_HEAD = (("nvjet_sm90_tst_384x8_64x4_2x1_v_bz_TNT", 214_085, 214_085, ["396", "1", "1"]),)
_ANNOTATION = {
    ("vllm", True): "execute_context_1(512)_generation_0(0)",
    ("vllm", False): "execute_context_0(0)_generation_1(1)",
    ("sglang", True): "step[EXTEND bs=1 toks=512]",
    ("sglang", False): "step[DECODE bs=1]",
}


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03}"


def _x(cat: str, name: str, where: tuple[int, int], when: tuple[int, int], args: str) -> str:
    return (
        f'{{"ph":"X","cat":"{cat}","name":"{name}","pid":{where[0]},"tid":{where[1]},"ts":{_us(when[0])},'
        f'"dur":{_us(when[1])},"args":{{{args}}}}}'
    )


def _flow(phase: str, correlation: int, where: tuple[int, int], start: int) -> str:
    end = ',"bp":"e"' if phase == "f" else ""
    place = f'"id":{correlation},"pid":{where[0]},"tid":{where[1]},"ts":{_us(start)}'
    return f'{{"ph":"{phase}",{place},"cat":"ac2g","name":"ac2g"{end}}}'


class _Writer:
    """The events of one step after the other; `now` is where the host is, `gpu` where the device is, in ns."""

    def __init__(self, layers: int, engine: str, hip: bool) -> None:
        self.now = self.gpu = START * 1000
        self.correlation = 16_000
        self.engine = engine
        self.api = "hip" if hip else "cuda"
        self.kernels = LAYER * layers + _HEAD

    def launch(self, name: str, duration: int = 5_137) -> list[str]:
        self.correlation += 1
        args = f'"cbid":211,"correlation":{self.correlation}'
        made = [
            _x("cuda_runtime", self.api + name, HOST, (self.now, duration), args),
            _flow("s", self.correlation, HOST, self.now),
        ]
        self.gpu = max(self.gpu, self.now + duration + 900)
        self.now += duration + 731
        return made

    def device(self, cat: str, name: str, duration: int, args: str) -> list[str]:
        duration += self.gpu // 7 % 97  # no two runs of a kernel take equally long
        made = [
            _x(cat, name, DEVICE, (self.gpu, duration), f'{args},"correlation":{self.correlation}'),
            _flow("f", self.correlation, DEVICE, self.gpu),
        ]
        self.gpu += duration + 512
        return made

    def kernel(self, name: str, duration: int, grid: list[str]) -> list[str]:
        args = (
            f'"queued":0,"device":{DEVICE[0]},"context":1,"stream":{DEVICE[1]},"registers per thread":168,'
            f'"shared memory":213248,"blocks per SM":0.007576,"warps per SM":0.030303,"grid":[{", ".join(grid)}],'
            '"block":[128, 1, 1],"est. achieved occupancy %":0'
        )
        return self.device("kernel", name, duration, args)

    def op(self, name: str, launch: str) -> list[str]:
        """An operator, with one inside that launches, as aten::zeros has aten::fill_."""
        begin = self.now
        self.now += 2_345
        inner = self.now
        self.now += 1_111
        made = self.launch(launch)
        args = '"External id":1,"Record function id":0,"Ev Idx":0'
        made.append(_x("cpu_op", "aten::inner", HOST, (inner, self.now - inner), args))
        self.now += 800
        made.append(_x("cpu_op", name, HOST, (begin, self.now - begin), args))
        return made

    def step(self, prefill: bool) -> Iterator[str]:
        begin = self.now
        self.now += 2_000
        where = f'"device":{DEVICE[0]},"context":1,"stream":{DEVICE[1]}'
        yield from self.op("aten::copy_", "MemcpyAsync")
        yield from self.device(
            "gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 928, f'{where},"bytes":4096,"memory bandwidth (GB/s)":4.4'
        )
        if not prefill:
            yield from self.launch("GraphLaunch", 187_000)
        for name, in_prefill, in_decode, grid in self.kernels:
            if prefill:
                yield from self.op("aten::mm", "LaunchKernel")
            yield from self.kernel(name, in_prefill if prefill else in_decode, grid)
        yield from self.launch("MemsetAsync")
        yield from self.device("gpu_memset", "Memset (Device)", 865, f'{where},"bytes":4,"memory bandwidth (GB/s)":0.0')
        yield _x("cuda_runtime", self.api + "EventSynchronize", HOST, (self.now, 12_345), '"cbid":137,"correlation":1')
        self.now = max(self.now + 12_345, self.gpu + 20_000)
        yield _x("user_annotation", _ANNOTATION[self.engine, prefill], HOST, (begin, self.now - begin), "")
        yield _x("gpu_user_annotation", _ANNOTATION[self.engine, prefill], DEVICE, (begin, self.now - begin), "")
        self.now += 3_003


def header(gpu: str = "NVIDIA H100 80GB HBM3") -> dict[str, Any]:
    """What stands before the events."""
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": gpu, "totalGlobalMem": 85_017_493_504, "numSms": 132}],
        "trace_id": "106E6107542049CD99F4E2CB43CA357A",
        "distributedInfo": {"backend": "nccl", "rank": 0, "world_size": 1},
        "cuda_driver_version": 13000,
        "cuda_runtime_version": 13000,
        "cupti_version": 130001,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": _BASE,
    }


def write(
    path: Path,
    *,
    steps: int = 3,
    layers: int = 4,
    size: int = 0,
    engine: Literal["vllm", "sglang"] = "vllm",
    hip: bool = False,
) -> None:
    """Write a trace of one prefill and at least so many steps of decode, gzipped where the name ends in `.gz`.

    Args:
        size: bytes of JSON to reach with further steps of decode.
        hip: launches named as under ROCm.
    """
    writer = _Writer(layers, engine, hip)
    with gzip.open(path, "wb", compresslevel=6) if path.suffix == ".gz" else path.open("wb") as file:
        done = file.write((json.dumps(header())[:-1] + ', "traceEvents": [\n').encode())
        label = {"name": "process_name", "ph": "M", "ts": START, "pid": HOST[0], "tid": 0, "args": {"name": "python3"}}
        done += file.write(json.dumps(label).encode())
        at = 0
        while at <= steps or done < size:
            done += file.write((",\n" + ",\n".join(writer.step(prefill=at == 0))).encode())
            at += 1
        file.write(b"\n]}\n")


def _without_gaps(event: Event) -> Event:
    return {key: value for key, value in event.items() if value is not ...}


def kernel(name: Any = "k", **changes: Any) -> Event:
    """An event of a GPU; a change of `...` leaves the key out."""
    args = {"device": 0, "stream": 7, "correlation": 5, "grid": [2, 3, 4]} | changes.pop("args", {})
    base = {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 100.25, "dur": 4.5, "args": args}
    return _without_gaps(base | changes)


def call(name: str = "cudaLaunchKernel", **changes: Any) -> Event:
    """The call that launched `kernel`."""
    args = {"correlation": 5} | changes.pop("args", {})
    base = {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 42, "tid": 42, "ts": 90.5, "dur": 3.0, "args": args}
    return _without_gaps(base | changes)


def mark(name: str = "m0", **changes: Any) -> Event:
    """An annotation around `call`."""
    base = {"ph": "X", "cat": "user_annotation", "name": name, "pid": 42, "tid": 42, "ts": 80.0, "dur": 50.0}
    return _without_gaps(base | changes)


def labelled(events: list[Event], label: str) -> list[Event]:
    """Events with a text before their process."""
    return [event | {"pid": f"{label}{event['pid']}"} for event in events]


def merged() -> list[Event]:
    """Two ranks with the same ids, as SGLang merges them."""
    ranks = [[kernel(f"k{rank}"), call(ts=90.0 + rank), mark(f"m{rank}")] for rank in range(2)]
    return labelled(ranks[0], "[TP00] ") + labelled(ranks[1], "[TP01] ")


def save(path: Path, events: list[Event], **facts: Any) -> Path:
    """Write events as they are."""
    path.write_text(json.dumps({**facts, "traceEvents": events}))
    return path


def row_tuples(trace: Trace) -> list[tuple[Any, ...]]:
    """Name, kind, start, duration, launch, device, stream, correlation, bytes, blocks and replayed of every row."""
    rows = trace.kernels
    names = [rows.names[each] for each in rows.name]
    columns = (rows.kind, rows.start_ns, rows.duration_ns, rows.launch_ns, rows.device, rows.stream, rows.correlation)
    return sorted(
        zip(names, *(each.tolist() for each in (*columns, rows.bytes, rows.blocks, rows.replayed)), strict=True)
    )


def range_spans(trace: Trace) -> list[tuple[str, int, int]]:
    """Name, start and end of every range."""
    marks = trace.ranges
    spans = zip(marks.name.tolist(), marks.start_ns.tolist(), marks.end_ns.tolist(), strict=True)
    return [(marks.names[name], start, end) for name, start, end in spans]
