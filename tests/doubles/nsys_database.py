"""Makes databases such as `nsys export --type sqlite` writes, of any size, for tests and for benchmarks.

What is in one: two processes (tensor-parallel ranks) whose correlation and node ids are the same, on a device each;
kernels whose launch came before the recording; a CUDA graph captured layer by layer and cloned twice; one prefill step
launched kernel by kernel; decode steps replayed from the graph, with a copy, a set and a sampling kernel around it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

Body = Sequence[tuple[str, str, int]]  # kernels of a step: module, name, nanoseconds

ENUM = "id! name:t label:t"
ACTIVITY = "start! end! deviceId! contextId! greenContextId streamId! correlationId globalPid"
# columns as the schema 3.25.0 has them: ! is NOT NULL, :t text
TABLES = {
    "StringIds": "id! value:t!",
    "CUPTI_ACTIVITY_KIND_KERNEL": f"{ACTIVITY} demangledName! shortName! mangledName launchType cacheConfig "
    "registersPerThread! gridX! gridY! gridZ! blockX! blockY! blockZ! staticSharedMemory! dynamicSharedMemory! "
    "localMemoryPerThread! localMemoryTotal! gridId! sharedMemoryExecuted graphNodeId sharedMemoryLimitConfig "
    "qmdBulkReleaseDone qmdPreexitDone qmdLastCtaDone graphId clusterX clusterY clusterZ clusterSchedulingPolicy "
    "maxPotentialClusterSize maxActiveClusters sharedMemoryRequestedPercentage tensorSizeMinusOneElements:t!",
    "CUPTI_ACTIVITY_KIND_MEMCPY": f"{ACTIVITY} bytes! copyKind! deprecatedSrcId srcKind dstKind srcDeviceId "
    "srcContextId dstDeviceId dstContextId migrationCause graphNodeId virtualAddress copyCount",
    "CUPTI_ACTIVITY_KIND_MEMSET": f"{ACTIVITY} value! bytes! graphNodeId memKind",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start! end! eventClass! globalTid correlationId nameId! returnValue! callchainId",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": f"{ACTIVITY} graphId! graphExecId!",
    "CUDA_GRAPH_NODE_EVENTS": "start! end! eventClass! globalTid nameId! graphNodeId! originalGraphNodeId",
    "NVTX_EVENTS": "start! end eventType! rangeId category color text:t globalTid endGlobalTid textId domainId "
    "uint64Value int64Value doubleValue uint32Value int32Value floatValue jsonTextId jsonText:t binaryData:t",
    "ENUM_NSYS_EVENT_TYPE": ENUM,
    "META_DATA_EXPORT": "name:t! value:t",
    "META_DATA_CAPTURE": "name:t! value:t",
    "TARGET_INFO_GPU": "vmId! id! name:t! busLocation:t! isDiscrete! uuid:t! chipName:t! smCount!",
    "TARGET_INFO_SYSTEM_ENV": "globalVid devStateName:t! name:t! nameEnum! value:t!",
    "PROCESSES": "globalPid pid name:t",
    "ThreadNames": "nameId! priority globalTid",
    "ProcessStreams": "globalPid! filenameId! contentId!",
    "ANALYSIS_FILE": "id! filename:t contentId globalPid!",
    "DIAGNOSTIC_EVENT": "timestamp! timestampType! source! severity! text:t! globalPid",
}
# what the schema documented in 2022 lacks
SINCE_2022 = (
    "greenContextId qmdBulkReleaseDone qmdPreexitDone qmdLastCtaDone graphId clusterX clusterY clusterZ "
    "clusterSchedulingPolicy maxPotentialClusterSize maxActiveClusters sharedMemoryRequestedPercentage "
    "tensorSizeMinusOneElements virtualAddress copyCount"
)
LAZY = ("CUPTI_ACTIVITY_KIND_GRAPH_TRACE",)  # only there when a recording has such events
VERSIONS = {"2026": ("2026.2.1.210", "3.25.0"), "2022": ("2022.4.2.1", "2.7.0")}

# a layer of a mixture-of-experts model: module, kernel and its nanoseconds in a decode step
LAYER = [
    ("input_layernorm", "void tensorrt_llm::kernels::rmsnorm_kernel<__nv_bfloat16>", 2100),
    ("self_attn.qkv_proj", "nvjet_tst_64x8_64x16_4x1_v_bz_TNT", 6400),
    ("self_attn", "void tensorrt_llm::kernels::fusedQKNormRopeKernel<128, true>", 2300),
    ("self_attn", "fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausal", 7900),
    ("self_attn.o_proj", "nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT", 5200),
    ("self_attn.o_proj", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 8800),
    ("post_attention_layernorm", "void tensorrt_llm::kernels::rmsnorm_kernel<__nv_bfloat16>", 2100),
    ("mlp.gate", "nvjet_tst_64x8_64x16_1x1_v_bz_TNN", 3100),
    ("mlp.experts", "void tensorrt_llm::kernels::customMoeRoutingKernel<__nv_bfloat16, float, int, 128, 8>", 2600),
    ("mlp.experts", "void tensorrt_llm::kernels::cutlass_kernels::fusedBuildExpertMapsSortFirstTokenKernel<32>", 4000),
    ("mlp.experts", "void tensorrt_llm::kernels::cutlass_kernels::expandInputRowsKernel<__nv_bfloat16>", 2500),
    (
        "mlp.experts",
        "void fused_moe::run_global<fused_moe::Fused_Moe_Kernel_sm80<cutlass::bfloat16_t, 32, 128>>",
        31000,
    ),
    ("mlp.experts", "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<GroupProblemShape>>", 22000),
    ("mlp.experts", "void tensorrt_llm::kernels::cutlass_kernels::finalizeMoeRoutingKernel<__nv_bfloat16>", 3300),
]
SAMPLING = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>"
GAP = 900  # ns between kernels of a step
T0 = 1_000_000_000
GRAPH = 1 << 32  # CUPTI's ids of nodes have the graph's number above 32 bits
EVENT_TYPES = {
    34: "NvtxMark",
    59: "NvtxPushPopRange",
    60: "NvtxStartEndRange",
    70: "NvtxtPushPopRange",
    75: "NvtxDomainCreate",
}


@dataclass(frozen=True)
class Rank:
    """A process with one thread that launches, on a device of its own."""

    number: int

    @property
    def pid(self) -> int:
        return (1 << 48) + ((101 + self.number) << 24)

    @property
    def tid(self) -> int:
        return self.pid + 101 + self.number

    @property
    def late(self) -> int:
        """Nanoseconds after the first rank at which its rows begin."""
        return 7 * self.number

    @property
    def place(self) -> tuple[int, int, int]:
        """Device, context and stream."""
        return self.number, 1 + self.number, 7 + 8 * self.number


def write(
    path: Path,
    *,
    steps: int = 6,
    layers: int = 3,
    kernels_per_layer: int = len(LAYER),
    graph: bool = True,
    nvtx: bool = True,
    schema: str = "2026",
    ranks: int = 2,
    before: int = 5,
) -> int:
    """Write a database and return how many kernels it has: ranks * (before + (1 + steps) * (layers * per layer + 1)).

    Args:
        steps: decode steps after the one of prefill.
        graph: whether decode steps are replayed from a CUDA graph; else they are launched kernel by kernel.
        nvtx: whether there are ranges; without, the table is absent.
        schema: 2026 (3.25.0, with 42 columns of a kernel) or 2022.
        before: kernels of every rank that run in the recording and were launched before it.
    """
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    absent = set(LAZY) | (set() if nvtx else {"NVTX_EVENTS"}) | (set() if graph else {"CUDA_GRAPH_NODE_EVENTS"})
    create(database, schema, absent | ({"ENUM_NSYS_EVENT_TYPE"} if schema == "2022" else set()))
    writer = _Writer(database, [Rank(each) for each in range(ranks)])
    layer = [LAYER[at % len(LAYER)] for at in range(kernels_per_layer)]
    body = [(f"model.layers.{at}.{module}", name, ns) for at in range(layers) for module, name, ns in layer]
    writer.kernels((T0 + at * 5000, 4000, at + 1, LAYER[0][1], None) for at in range(before))
    end = T0 + before * 5000
    if graph:
        end = writer.capture(body, end, nvtx)
    for step in range(steps + 1):
        end = writer.step(step, body, end, nvtx, graph and step > 0)
    writer.facts(schema, nvtx)
    database.commit()
    (count,) = database.execute("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
    database.close()
    return int(count)


def create(database: sqlite3.Connection, schema: str = "2026", absent: Collection[str] = LAZY) -> None:
    """The tables of a schema, empty."""
    for table, columns in TABLES.items():
        parts = []
        for each in columns.split():
            name = each.rstrip("!").removesuffix(":t")
            key = " PRIMARY KEY" if name == "id" and table in ("StringIds", "ENUM_NSYS_EVENT_TYPE") else ""
            if schema != "2022" or name not in SINCE_2022.split():
                parts.append(f"{name} {'TEXT' if ':t' in each else 'INTEGER'}{' NOT NULL' * each.endswith('!')}{key}")
        if table not in absent:
            database.execute(f"CREATE TABLE {table} ({', '.join(parts)})")


class _Writer:
    """Writes rows of every rank."""

    def __init__(self, database: sqlite3.Connection, ranks: Sequence[Rank]) -> None:
        self._database = database
        self._ranks = ranks
        self._strings: dict[str, int] = {}
        self._correlation = 1000
        columns = [row[1] for row in database.execute("PRAGMA table_info(CUPTI_ACTIVITY_KIND_KERNEL)")]
        self._tensors = ("[]",) if "tensorSizeMinusOneElements" in columns else ()

    def step(self, step: int, body: Body, begin: int, nvtx: bool, replay: bool) -> int:
        """One step, and the time after it."""
        at, prefill = begin + 20_000, 8 if step == 0 else 1
        self._copy("CUPTI_ACTIVITY_KIND_MEMCPY", "copyKind", 1, at, begin + 100)
        self._copy("CUPTI_ACTIVITY_KIND_MEMSET", "value", 0, at + 2000, begin + 1100)
        first = self._correlation + 1
        if replay:
            self._calls("cudaGraphLaunch_v10000", [begin + 3000])
        else:
            self._launch(body, begin + 3000, nvtx)
        kernels, at = [], at + 4000
        for place, (_, name, usual) in enumerate(body):
            ns = usual * prefill + (step * 7919 + place * 104_729) % 97
            kernels.append((at, ns, first + (0 if replay else place), name, 3 * GRAPH + place if replay else None))
            at += ns + GAP
        sampled = max(begin + 4000 + 600 * len(body), at - 15_000)
        (correlation,) = self._calls("cudaLaunchKernel_v7000", [sampled])
        end = max(at, sampled + 1000)
        self.kernels([*kernels, (end, 9000, correlation, SAMPLING, None)])
        requests = "1 ctx reqs, 0 gen reqs" if step == 0 else "0 ctx reqs, 8 gen reqs"
        if nvtx:
            self._ranges([(begin, end + 10_000, f"[Executor] _forward_step {step + 1}: {requests}")], registered=True)
        return end + 15_000

    def capture(self, body: Body, begin: int, nvtx: bool) -> int:
        """The nodes of the graph as they are captured, and two clones of each; the time after it."""
        times = [begin + 1000 + 600 * place for place in range(len(body))]
        for clone, label in enumerate(["Graph Node Creation", "Graph Node Clone", "Graph Node Clone"]):
            since = clone * 700 * len(body)
            name = self._id(label)
            for place, time in enumerate(times):
                nodes = (clone + 1) * GRAPH + place, clone * GRAPH + place if clone else None
                self._insert(
                    "CUDA_GRAPH_NODE_EVENTS start end eventClass globalTid nameId graphNodeId originalGraphNodeId",
                    [(time + since + rank.late, time + since + 300, 0, rank.tid, name, *nodes) for rank in self._ranks],
                )
        if nvtx:
            self._modules(body, times)
        return begin + 2100 * len(body) + 5000

    def kernels(self, rows: Iterable[tuple[int, int, int, str, int | None]]) -> None:
        """Kernels by start, duration, correlation, name and node."""
        columns = (
            "start end deviceId contextId streamId globalPid correlationId demangledName shortName gridX graphNodeId "
            "registersPerThread gridY gridZ blockX blockY blockZ staticSharedMemory dynamicSharedMemory "
            "localMemoryPerThread localMemoryTotal gridId" + " tensorSizeMinusOneElements" * len(self._tensors)
        )
        rest = (32, 2, 1, 128, 1, 1, 0, 0, 0, 0, 1, *self._tensors)
        self._insert(
            f"CUPTI_ACTIVITY_KIND_KERNEL {columns}",
            (
                (start + rank.late, start + rank.late + ns, *rank.place, rank.pid, correlation, *names, node, *rest)
                for start, ns, correlation, name, node in rows
                for names in [(self._id(name), self._id(name.split("<")[0]), 1 + ns % 133)]
                for rank in self._ranks
            ),
        )

    def facts(self, schema: str, nvtx: bool) -> None:
        """The small tables: strings, versions, GPUs, and what a recording tells of its process."""
        if nvtx:
            rows = [(T0, None, kind, text, self._ranks[0].tid, 1) for kind, text in ((75, "NCCL"), (34, "mark"))]
            self._insert("NVTX_EVENTS start end eventType text globalTid domainId", rows)
        product, version = VERSIONS[schema]
        types = {} if schema == "2022" else EVENT_TYPES
        for table, values in {
            "META_DATA_EXPORT": [("EXPORT_PRODUCT_VERSION", product), ("EXPORT_SCHEMA_VERSION", version)],
            "META_DATA_CAPTURE": [("PROCESS_0:WORKING_DIR", "/srv")],
            "PROCESSES": [(each.pid, 101 + each.number, "python3") for each in self._ranks],
            "TARGET_INFO_GPU": [
                (0, rank.number, "NVIDIA H200", "0000:01:00.0", 1, "u", "GH100", 132) for rank in self._ranks
            ],
            "ThreadNames": [(self._id("worker"), 0, each.tid) for each in self._ranks],
            "ENUM_NSYS_EVENT_TYPE": [(id_, name, name) for id_, name in types.items()],
            "StringIds": [(id_, text) for text, id_ in self._strings.items()],
        }.items():
            if values:
                self._database.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(values[0]))})", values)

    def _launch(self, body: Body, begin: int, nvtx: bool) -> None:
        times = [begin + 600 * place for place in range(len(body))]
        self._calls("cudaLaunchKernelExC_v11060", times)
        if nvtx:
            self._modules(body, times)

    def _modules(self, body: Body, times: Sequence[int]) -> None:
        """Ranges as TensorRT-LLM's layer-wise markers make them, nested by module."""
        paths = [module.split(".") for module, _, _ in body]
        ranges = []
        for depth, margin in ((3, 100), (4, 60), (5, 20)):  # model.layers.N, its part, the part's part
            for path, group in groupby(range(len(body)), key=lambda at: tuple(paths[at][:depth])):
                places = list(group)
                text = f"{{'Module': 'Qwen3MoeForCausalLM.{'.'.join(path)}', 'TrainableParams': {{}}}}"
                if len(path) == depth:
                    ranges.append((times[places[0]] - margin, times[places[-1]] + 400 + margin, text))
        self._ranges(ranges, registered=False)

    def _ranges(self, ranges: Sequence[tuple[int, int, str]], registered: bool) -> None:
        """A registered string is in StringIds, any other in the row."""
        self._insert(
            f"NVTX_EVENTS start end eventType globalTid domainId {'textId' if registered else 'text'}",
            [
                (start + rank.late, end + rank.late, 59, rank.tid, 0, self._id(text) if registered else text)
                for start, end, text in ranges
                for rank in self._ranks
            ],
        )

    def _copy(self, table: str, column: str, value: int, start: int, called: int) -> None:
        (correlation,) = self._calls("cudaMemcpyAsync_v3020" if "CPY" in table else "cudaMemsetAsync_v3020", [called])
        self._insert(
            f"{table} start end deviceId contextId streamId correlationId globalPid bytes {column}",
            [
                (start + rank.late, start + 1500, *rank.place, correlation, rank.pid, 4096, value)
                for rank in self._ranks
            ],
        )

    def _calls(self, name: str, starts: Sequence[int]) -> list[int]:
        """Calls of the API, each with a correlation id of its own, which are returned."""
        ids = [self._correlation + 1 + at for at in range(len(starts))]
        self._correlation += len(starts)
        self._insert(
            "CUPTI_ACTIVITY_KIND_RUNTIME start end eventClass globalTid correlationId nameId returnValue",
            [
                (start + rank.late, start + 300, 0, rank.tid, id_, self._id(name), 0)
                for start, id_ in zip(starts, ids, strict=True)
                for rank in self._ranks
            ],
        )
        return ids

    def _id(self, text: str) -> int:
        return self._strings.setdefault(text, 100 + len(self._strings))

    def _insert(self, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Rows of the columns that are named after their table."""
        table, *names = columns.split()
        self._database.executemany(
            f"INSERT INTO {table} ({','.join(names)}) VALUES ({','.join('?' * len(names))})", rows
        )
