"""Reads the traces of torch's profiler, of CUDA and ROCm, and writes them again without private data."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from moe_eval.errors import UsageError
from moe_eval.records.kernels import TraceSource
from moe_eval.traces.kernel_table import NONE, Kernels, Trace, kernels, ranges
from moe_eval.traces.readers import chrome_columns, torch_parts
from moe_eval.traces.readers.chrome_columns import Rows
from moe_eval.traces.readers.chrome_events import NO_NAME, Args, Event, File, Id, Thread
from moe_eval.traces.readers.torch_parts import Parts

_FACTS = ("schemaVersion", "cuda_runtime_version", "hip_runtime_version", "baseTimeNanoseconds")


def read(path: Path, *, cpu: bool = False) -> Trace:
    """Read a trace, `.json` or gzipped: an object with `traceEvents`, or a bare array of events.

    Times are nanoseconds since `baseTimeNanoseconds`, the trace's `clock_ns`. Kernels are joined to the calls of their
    process by correlation id, or where no row has one (ROCm in torch 1) to the last launch of the same operator.
    A kernel's own pid is its device: its process is known by what stands before the number in `pid`, as SGLang merges,
    else by an id that one process alone has. `process` is the pid, or a running number where pids are texts.

    Args:
        cpu: operators of the CPU instead. Each is a row that lasts its self time, without that of operators inside,
            and is put where the rows before it end, since self time is not contiguous: the rows of a thread never
            overlap and end where its outermost operators do. `device` is NONE, `stream` and `launch_thread` its
            thread, `launch_ns` its real start, so that the ranges around it are found as a kernel's are.

    Raises:
        UsageError: the file cannot be read, is no trace, or has no such rows.
    """
    parts = torch_parts.load(path)
    rows, marks = parts.operators if cpu else parts.gpus, parts.annotations
    if not len(rows):
        raise UsageError(f"{path} has {_lack(parts, cpu)}.")
    thread = chrome_columns.numbers(rows.threads(), marks.threads()) if cpu else parts.thread
    table = _operators(rows, thread) if cpu else kernels(parts.names, **parts.columns)
    names, name = marks.names()
    numbers = [thread[key] for key in marks.threads()]
    annotations = ranges(names, name=name, start_ns=marks.start, end_ns=marks.start + marks.duration, thread=numbers)
    # Kineto writes UNIX time, and subtracts a base from it since torch 2.3
    clock_ns = chrome_columns.integer(parts.file.baseTimeNanoseconds, 0)
    trace = Trace(table, annotations, _source(parts.file), tuple(_notes(parts, cpu)), clock_ns=clock_ns)
    return trace if cpu else replace(trace, unanswered=parts.unanswered)


def _lack(parts: Parts, cpu: bool) -> str:
    if cpu:
        return "no operators of the CPU. Record it with ProfilerActivity.CPU among the activities"
    if parts.gpus.left_out:
        return f"{parts.gpus.left_out} kernels and none with a usable duration. Record it again"
    if len(parts.operators) or len(parts.annotations):
        return "events of the CPU only and no kernels. Record it with ProfilerActivity.CUDA among the activities"
    return "no kernels. Record it with ProfilerActivity.CUDA while the model runs"


def _source(file: File) -> TraceSource:
    """Facts for the record. Versions are numbers in the file: 13000 is CUDA 13.0, 60342134 is HIP 6.3."""
    facts = [f"schema {file.schemaVersion}"] if type(file.schemaVersion) is int else []
    if type(file.cuda_runtime_version) is int:
        facts.append(f"CUDA {file.cuda_runtime_version // 1000}.{file.cuda_runtime_version % 1000 // 10}")
    if type(file.hip_runtime_version) is int:
        facts.append(f"HIP {file.hip_runtime_version // 10**7}.{file.hip_runtime_version % 10**7 // 10**5}")
    return TraceSource("torch profiler", ", ".join(facts) or None, tuple(_gpus(file).values()))


def _gpus(file: File) -> dict[int, str]:
    """Names by device. A merged trace lists a device once for every process."""
    listed = file.deviceProperties if isinstance(file.deviceProperties, list) else []
    gpus = [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    return {chrome_columns.integer(gpu.get("id"), at): gpu["name"] for at, gpu in enumerate(gpus)}


def _notes(parts: Parts, cpu: bool) -> Iterator[str]:
    left_out = parts.annotations.left_out + (parts.operators if cpu else parts.gpus).left_out
    if left_out:
        yield f"{left_out} rows without a usable duration were left out."
    if not cpu and parts.key == "external":
        yield "Kernels have no correlation ids and were joined to the last launch of their operator."
    if not cpu and parts.torn is not None:
        yield (
            "Several processes are merged without a label, so kernels were joined to launches by correlation id alone. "
            f"Those whose id is in several processes were joined to none: {parts.torn}."
        )


def _operators(rows: Rows, thread: dict[Thread, int]) -> Kernels:
    """Operators with their self time: those inside an operator lie within it on the same thread."""
    number = np.array([thread[key] for key in rows.threads()], np.int64)
    end = rows.start + rows.duration
    starts, ends, threads, self_ns = rows.start.tolist(), end.tolist(), number.tolist(), rows.duration.tolist()
    around: list[int] = []
    order = np.lexsort((-end, rows.start, number)).tolist()
    for row in order:
        while around and (threads[around[-1]] != threads[row] or ends[around[-1]] <= starts[row]):
            around.pop()
        if around:
            self_ns[around[-1]] -= min(ends[row], ends[around[-1]]) - starts[row]
        around.append(row)
    placed = list(starts)
    until: dict[int, int] = {}
    for row in order:
        placed[row] = max(starts[row], until.get(threads[row], starts[row]))
        until[threads[row]] = placed[row] + self_ns[row]
    names, name = rows.names()
    columns = {
        "start_ns": placed,
        "duration_ns": self_ns,
        "stream": number,
        "launch_ns": rows.start,
        "launch_thread": number,
    }
    process = chrome_columns.codes(rows.fields("pid"))
    return kernels(names, name=name, device=np.full(len(number), NONE), process=process, **columns)


def scrub(source: Path, target: Path, keep: Callable[[str], bool], *, cpu: bool = False) -> None:
    """Write a gzipped Chrome trace of what `read` uses of another: rows of GPUs, their calls, annotations to keep.

    Of texts only names are left: of kernels, calls, GPUs and kept annotations. What `read` gives stays equal but for
    the annotations not kept, and for the numbers of threads that have annotations and launched nothing.

    Args:
        keep: whether the annotation of this name is written.
        cpu: write operators of the CPU as well, by their names and times.

    Raises:
        UsageError: the source cannot be read, or the target is the source or cannot be written.
    """
    parts = torch_parts.load(source)
    facts = {name: value for name in _FACTS if type(value := getattr(parts.file, name)) is int}
    gpus = [{"id": device, "name": name} for device, name in _gpus(parts.file).items()]
    document = File(**facts, deviceProperties=gpus, traceEvents=list(_events(parts, keep, cpu)))
    try:
        if target.exists() and target.samefile(source):
            raise UsageError(f"{target} is the trace itself, which is not changed. Write to another file.")
        with target.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
            packed.write(msgspec.json.encode(document))
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}). Choose another place.") from None


def _events(parts: Parts, keep: Callable[[str], bool], cpu: bool) -> Iterator[Event]:
    is_wanted = np.array([keep(name or NO_NAME) for name in parts.annotations.fields("name")], bool)
    plain = [parts.annotations.take(is_wanted), *([parts.operators] if cpu else [])]
    calls = (parts.calls, parts.others)
    hosts = [event for rows in (*calls, *plain) for event in rows.events]
    texts = sorted({event.tid for event in hosts if not isinstance(event.tid, int)}, key=chrome_columns.order)
    tid = {event.tid: f"t{texts.index(event.tid):06}" if event.tid in texts else event.tid for event in hosts}
    labels = sorted({chrome_columns.split(event.pid)[0] for event in [*parts.gpus.events, *hosts]})

    def pid(event: Event, digits: str) -> Id:
        """The process with another label: labels keep apart, and in order, what they kept apart before."""
        label = chrome_columns.split(event.pid)[0]
        if isinstance(event.pid, int):
            return int(digits)
        return f"[{labels.index(label):06}] {digits}" if label else digits

    yield from _gpu_events(parts, pid)
    keyed = [(rows, rows.number(parts.key, NONE).tolist()) for rows in calls]
    for rows, keys in [*keyed, *((rows, [NONE] * len(rows)) for rows in plain)]:
        for event, *times, key in zip(rows.events, rows.start.tolist(), rows.duration.tolist(), keys, strict=True):
            args = Args()
            setattr(args, parts.key, key)
            yield _event(event, (pid(event, chrome_columns.split(event.pid)[1]), tid[event.tid]), times, args)
    for _ in range(parts.gpus.left_out + parts.annotations.left_out):
        yield Event("kernel")
    for _ in range(parts.operators.left_out if cpu else 0):
        yield Event("cpu_op")


def _gpu_events(parts: Parts, pid: Callable[[Event, str], Id]) -> Iterator[Event]:
    used = "start_ns duration_ns device stream correlation graph_node bytes blocks communicator sequence"
    numbers = zip(*(parts.columns[name].tolist() for name in used.split()), strict=True)
    for event, (start, duration, device, stream, key, node, size, blocks, communicator, sequence) in zip(
        parts.gpus.events, numbers, strict=True
    ):
        args = Args(node=node, device=device, stream=stream, bytes=size, grid=(blocks, 1, 1) if blocks else (0, 0, 0))
        setattr(args, parts.key, key)
        if communicator != NONE:
            args.group, args.sequence = communicator, sequence
        yield _event(event, (pid(event, str(abs(device) % 10**9)), stream), (start, duration), args)


def _event(source: Event, thread: Thread, times: Sequence[int], args: Args) -> Event:
    """An event with nothing of another but its kind and name."""
    event = Event(source.cat, source.name, *thread, args=args)
    event.ts, event.dur = (_microseconds(ns) for ns in times)
    return event


def _microseconds(ns: int) -> Any:
    """As Kineto writes them: a double would lose nanoseconds."""
    return msgspec.Raw(f"{'-' * (ns < 0)}{abs(ns) // 1000}.{abs(ns) % 1000:03}".encode())
