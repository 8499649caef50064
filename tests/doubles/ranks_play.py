"""Ranks that run a model in step: kernels of their own, and collectives in which the early ones wait for the last.

What was played is known: transfer and waiting of every collective, by rank. It becomes a trace, a database of Nsight
Systems, or a Chrome trace for every rank.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_eval.traces.kernel_table import Trace
from tests.doubles import nsys_database, timeline

NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
CUSTOM = "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData *, vllm::RankSignals)"
DISPATCH = "void deep_ep::intranode::dispatch<2, 768, 8192>(int4 *, float *)"
LAYER = (timeline.NORM, timeline.QKV, timeline.FLASH, timeline.O_PROJ)
EXPERTS = (timeline.NORM, timeline.GATE, timeline.TOPK, timeline.MOE, timeline.SILU, timeline.MOE, timeline.SUM)
MESSAGE = 4096  # elements of bfloat16


@dataclass(frozen=True)
class Row:
    name: str
    start: int
    ns: int
    launch: int
    wait: int = 0
    transfer: int = 0
    order: int = -1  # of a collective


@dataclass
class Play:
    """So many ranks.

    `expert_ns`: of an expert GEMM, by rank. `gap_ns`: idle before every layer, by rank. `prompt_tokens`: by rank.
    """

    expert_ns: tuple[int, ...] = (9000, 9000)
    gap_ns: tuple[int, ...] = (500, 500)
    prompt_tokens: tuple[int, ...] = ()
    seed: int = 0
    rows: list[list[Row]] = field(default_factory=list)
    steps: list[list[tuple[str, int, int]]] = field(default_factory=list)
    collectives: int = 0

    def __post_init__(self) -> None:
        self.clock = [1_000_000 + 700 * rank for rank in range(len(self.expert_ns))]
        self.rows = [[] for _ in self.expert_ns]
        self.steps = [[] for _ in self.expert_ns]
        self.random = random.Random(self.seed)

    def step(self, phase: str, layers: int = 4, collective: str | None = None) -> None:
        scale = 8 if phase == "prefill" else 1
        name = collective or (NCCL if phase == "prefill" else CUSTOM)
        begins = list(self.clock)
        for _ in range(layers):
            for rank, gap in enumerate(self.gap_ns):
                self.clock[rank] += gap
            self._kernels(LAYER, scale)
            self._collective(name, 5000 * scale)
            self._kernels(EXPERTS, scale)
            self._collective(name, 7000 * scale)
        self._kernels((timeline.QKV, timeline.ARGMAX), scale)
        for rank, begin in enumerate(begins):
            self.steps[rank].append((phase, begin, self.clock[rank]))
            self.clock[rank] += 20_000

    def _kernels(self, names: tuple[str, ...], scale: int) -> None:
        for name in names:
            for rank, expert in enumerate(self.expert_ns):
                ns = (expert if name == timeline.MOE else 2000) * scale + self.random.randrange(50)
                self.rows[rank].append(Row(name, self.clock[rank], ns, self.clock[rank] - 9000))
                self.clock[rank] += ns + 100

    def _collective(self, name: str, ns: int) -> None:
        last = max(self.clock)
        ends = [last + ns + self.random.randrange(80) for _ in self.clock]
        transfer = min(ends) - last
        for rank, end in enumerate(ends):
            start = self.clock[rank]
            row = Row(name, start, end - start, start - 9000, end - start - transfer, transfer, self.collectives)
            self.rows[rank].append(row)
            self.clock[rank] = end + 100
        self.collectives += 1

    def ranges(self, rank: int) -> list[tuple[str, int, int]]:
        tokens = self.prompt_tokens[rank] if self.prompt_tokens else 512
        prefill = f"execute_context_1({tokens})_generation_0(0)"
        texts = {"prefill": prefill, "decode": "execute_context_0(0)_generation_1(1)"}
        return [(texts[phase], begin - 9500, begin - 9100) for phase, begin, _ in self.steps[rank]]

    def trace(self) -> Trace:
        """One file of all ranks, a process and a device each."""
        every = [(rank, row) for rank, rows in enumerate(self.rows) for row in rows]
        return timeline.trace_of(
            [row.name for _, row in every],
            [(*span, rank) for rank in range(len(self.rows)) for span in self.ranges(rank)],
            start_ns=[row.start for _, row in every],
            duration_ns=[row.ns for _, row in every],
            process=[100 + rank for rank, _ in every],
            device=[rank for rank, _ in every],
            launch_ns=[row.launch for _, row in every],
            launch_thread=[rank for rank, _ in every],
        )

    def database(self, path: Path, ranks: Sequence[int] | None = None) -> Path:
        """An export of Nsight Systems, of all ranks or some."""
        database = sqlite3.connect(path)
        nsys_database.create(database, absent=(*nsys_database.LAZY, "CUDA_GRAPH_NODE_EVENTS"))
        texts: dict[str, int] = {}
        for number, rows in enumerate(self.rows if ranks is None else [self.rows[rank] for rank in ranks]):
            rank = nsys_database.Rank(number if ranks is None else ranks[number])
            device, _, stream = rank.place
            for correlation, row in enumerate(rows):
                name = texts.setdefault(row.name, len(texts) + 1)
                _insert(
                    database,
                    "CUPTI_ACTIVITY_KIND_KERNEL",
                    {"start": row.start, "end": row.start + row.ns, "deviceId": device, "streamId": stream}
                    | {"globalPid": rank.pid, "correlationId": correlation, "demangledName": name, "shortName": name},
                )
                _insert(
                    database,
                    "CUPTI_ACTIVITY_KIND_RUNTIME",
                    {"start": row.launch, "end": row.launch, "globalTid": rank.tid, "correlationId": correlation},
                )
            for text, begin, end in self.ranges(rank.number):
                span = {"start": begin, "end": end, "eventType": 59, "text": text, "globalTid": rank.tid}
                _insert(database, "NVTX_EVENTS", span)
        for text, number in texts.items():
            _insert(database, "StringIds", {"id": number, "value": text})
        _insert(database, "META_DATA_EXPORT", {"name": "EXPORT_SCHEMA_VERSION", "value": "3.25.0"})
        for number, name in nsys_database.EVENT_TYPES.items():
            _insert(database, "ENUM_NSYS_EVENT_TYPE", {"id": number, "name": name, "label": name})
        database.commit()
        database.close()
        return path

    def chrome(self, path: Path, rank: int, *, base: int | None = 10**18, late: int = 0, group: str = "") -> Path:
        """A Chrome trace of one rank. `late`: by how much its clock is off, in ns. `group`: of its collectives."""
        events: list[dict[str, object]] = []
        for correlation, row in enumerate(self.rows[rank]):
            start, launch = row.start + late, row.launch + late
            args: dict[str, object] = {"device": rank, "stream": 7, "correlation": correlation}
            if row.order >= 0 and group:
                args |= {"Process Group Name": group, "Process Group Ranks": "[0, 1]", "Seq": row.order + 1}
                args |= {"dtype": "BFloat16", "In msg nelems": MESSAGE, "Out msg nelems": MESSAGE}
            place = {"ph": "X", "pid": 50 + rank, "tid": 50 + rank}
            events += [
                {"ph": "X", "cat": "kernel", "name": row.name, "pid": rank, "tid": 7}
                | {"ts": start / 1000, "dur": row.ns / 1000, "args": args},
                {**place, "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launch / 1000, "dur": 1.0}
                | {"args": {"correlation": correlation}},
            ]
        for text, begin, end in self.ranges(rank):
            span = {"ts": (begin + late) / 1000, "dur": (end - begin) / 1000}
            events.append(
                {"ph": "X", "cat": "user_annotation", "name": text, "pid": 50 + rank, "tid": 50 + rank, **span}
            )
        facts = {} if base is None else {"baseTimeNanoseconds": base}
        path.write_text(json.dumps({"schemaVersion": 1, **facts, "traceEvents": events}))
        return path


def _insert(database: sqlite3.Connection, table: str, values: Mapping[str, int | str]) -> None:
    """A row. Columns that may not be NULL and have no value are 0."""
    needed = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[3] and row[1] not in values]
    names = [*values, *needed]
    marks = ",".join("?" * len(names))
    database.execute(
        f"INSERT INTO {table} ({','.join(names)}) VALUES ({marks})", [*values.values(), *[0] * len(needed)]
    )


def generation(decode: int = 6, **options: object) -> Play:
    """One prefill and some decode steps."""
    play = Play(**options)  # type: ignore[arg-type]
    play.step("prefill")
    for _ in range(decode):
        play.step("decode")
    return play
