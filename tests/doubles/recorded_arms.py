"""Arms as their evaluators record them, made from a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval import stats
from moe_eval.comparison import pairs
from moe_eval.data import workload
from moe_eval.evaluators import kernels_record, latency_record
from moe_eval.evaluators import quality as evaluator
from moe_eval.evaluators.latency_record import Context, Measured
from moe_eval.evaluators.quality import Scores
from moe_eval.machine.hardware import Gpu, Machine
from moe_eval.machine.sampler import GpuSummary
from moe_eval.records import disk
from moe_eval.records.by_arm import REPEAT_SUFFIX, ArmRecords
from moe_eval.records.comparison import Pair
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import ArmLabels, EngineFacts, Origin, Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityFigures, QualityRecord
from moe_eval.records.run import EVALUATORS, RUN_FILE, EvaluatorName, Mode, RunRecord, Schedule, Skipped
from moe_eval.records.samples import Sample, Turn, WarmUp
from moe_eval.records.shape_latency import Routing
from moe_eval.traces.kernel_table import Trace
from tests.doubles.timeline import generation

Loads = Sequence[Sequence[float]]
INPUT, OUTPUT = 512, 257
GPU = "NVIDIA H100 80GB HBM3"
RUN = "0123456789abcdef0123456789abcdef"
TIMED_ON = EngineFacts(
    name="vllm",
    version="0.22.1",
    checkpoint="x",
    fingerprint="f" * 16,
    architecture="Qwen3MoeForCausalLM",
    vocabulary=1000,
    precision="bf16",
    emulated=False,
    dtype="bfloat16",
    device="cuda",
    device_name=GPU,
    max_length=4096,
    worker="spawned",
    attention_backend="FLASH_ATTN",
    moe_backend_requested="auto",
    moe_backend_observed="TRITON",
    kv_cache_dtype="bfloat16",
    cuda_graph_batch_sizes=None,
    scores_from="the engine's prompt log-probabilities",
    gpus=1,
)
_ON_CPU: dict[str, Any] = {"device": "cpu", "device_name": "cpu", "gpus": 0, "moe_backend_observed": "grouped_mm"}
SCORED_ON = replace(TIMED_ON, name="transformers", version="5.0", **_ON_CPU)
_CLOCKS = GpuSummary("GPU-0", 5, 1980.0, 1980.0, 1980.0, 400.0, 60.0, 1980.0, "nvmlDeviceGetClock", 0.0, (), 0.0)


def machine(gpu: str | None = GPU) -> Machine:
    """A computer with one GPU, or none."""
    gpus = () if gpu is None else (Gpu(gpu, "9.0", 80 << 30, "GPU-0"),)
    return Machine("Linux", "3.12", "a CPU", 16, 128 << 30, gpus, None if gpu is None else "580", None)


def counted(batch: int, distinct: float) -> Routing:
    """Routing in which decode steps read so many experts of 128."""
    load = tuple(tuple([3] * 128) for _ in range(2))
    return Routing(batch, 128, 8, 4, distinct, 60.0, load, 128.0, 1.0)


def latency(
    name: str,
    e2e_ms: Mapping[int, Loads],
    *,
    mode: Mode = "turns",
    planned: str | None = None,
    experts: float | None = 50.0,
    gpu: str = GPU,
    seed: int = 0,
    status: Status = Status.FINISHED,
    output_dir: str = "first",
    run_id: str | None = RUN,
    slow: int = 0,
    **facts: Any,
) -> LatencyRecord:
    """A latency record; the first token takes a quarter of every call, and `e2e_ms` is by batch size."""
    planned = planned or name.removesuffix(REPEAT_SUFFIX)
    work = workload.from_seed(seed, workload.shapes(list(e2e_ms), INPUT, OUTPUT), 1000)
    engine = replace(replace(TIMED_ON, precision=planned, device_name=gpu), **facts)
    measured = Measured(
        name,
        planned,
        status,
        None if status is Status.FINISHED else "out of memory",
        ArmLabels(engine),
        routing=None if experts is None else {size: counted(size, experts) for size in e2e_ms},
        no_routing="not measured" if experts is None else None,
    )
    for shape in work.shapes:
        loads = e2e_ms[shape.batch_size]
        measured.loads[shape.name] = [[_sample(ms) for ms in load] for load in loads]
        flags = [tuple(at < slow for at in range(len(load))) for load in loads]
        measured.turns[shape.name] = [Turn(at, (_CLOCKS,), load) for at, load in enumerate(flags)]
        measured.warm_ups[shape.name] = [WarmUp((1.0,) * 5, "noise is steady")]
    loads = next(iter(e2e_ms.values()))
    schedule = Schedule(mode, len(loads), len(loads[0]), 5)
    origin = Origin(run_id, {"output_dir": output_dir}, machine(gpu))
    context = Context(origin, work, schedule, fusion_disabled=False, rates="not measured")
    return latency_record.record(measured, context)


def _sample(ms: float) -> Sample:
    return Sample(0.0, ms / 1000, {"host": ms / 4000}, {"host": ms / 1000}, None, ms / 100)


def scores(
    worse: float = 0.0,
    documents: int = 5,
    *,
    seed: int = 0,
    digest: str = "d" * 16,
    spread: float = 0.01,
    agreement: float = 1.0,
) -> Scores:
    """Scores of ten tokens a document.

    Args:
        worse: takes so many nats from a token, by document up to `spread` more or less.
        agreement: the share of tokens whose most probable one is that of other arms.
    """
    generator = np.random.default_rng(seed)
    logprobs = generator.normal(-2, 1, 10 * documents) - worse
    logprobs -= np.repeat(np.linspace(-spread, spread, documents), 10) * np.sign(worse)
    probability = np.array([0.6 - worse / 10, 0.3, 0.1 + worse / 10])
    top = np.tile(np.log(probability).astype(np.float32), (10 * documents, 1))
    ids = np.tile(np.arange(3, dtype=np.int32), (10 * documents, 1))
    ids[: round(10 * documents * (1 - agreement))] += 1
    lengths = np.full(documents, 10)
    return Scores(logprobs.astype(np.float32), lengths, np.arange(documents), ids, top, digest)


def quality(
    name: str,
    of: Scores,
    *,
    noise_floor: bool = True,
    status: Status = Status.FINISHED,
    output_dir: str = "first",
    run_id: str | None = RUN,
    **facts: Any,
) -> QualityRecord:
    """A quality record; batching moves ln(perplexity) by about 1e-4, where that was measured."""
    precision = name.removesuffix(REPEAT_SUFFIX)
    documents = len(set(of.documents.tolist()))
    figures = QualityFigures(
        dataset="moe_sample",
        dataset_digest=of.digest,
        input_len=128,
        num_chunks=documents,
        of_chunks=100,
        perplexity=stats.perplexity([of.logprobs]),
        per_chunk_ppls=tuple(stats.perplexity([window]) for window in of.by_window()),
        tokens=len(of.logprobs),
        documents=documents,
        whole_documents=0,
        words=0,
        bytes=0,
        word_ppl=None,
        byte_ppl=None,
        bits_per_byte=None,
    )
    return evaluator.record(
        name,
        precision,
        status,
        None if status is Status.FINISHED else "out of memory",
        origin=Origin(run_id, {"output_dir": output_dir}, machine(None)),
        labels=ArmLabels(replace(replace(SCORED_ON, precision=precision), **facts), 0, "x"),
        figures=figures if status is Status.FINISHED else None,
        noise_floor=evaluator.noise_floor(scores(), scores(1e-4, spread=1e-5), 1) if noise_floor else None,
        fusion_disabled=False,
    )


@cache
def kernels(
    name: str, *, fp8: bool = False, shape: str | None = f"b1_i{INPUT}_o9", label: str | None = None
) -> KernelsRecord:
    """The record of a made-up trace."""
    return traced(name, generation(graph=True, fp8=fp8).trace(), shape, label)


def traced(name: str, trace: Trace, shape: str | None, label: str | None) -> KernelsRecord:
    """The record of a trace."""
    record = kernels_record.shortened(kernels_record.make(f"{name}.json.gz", trace, label))
    return replace(record, arm=name, shape=shape, origin=Origin(RUN))


def arm(name: str, e2e_ms: Mapping[int, Loads], **options: Any) -> ArmRecords:
    """An arm that was timed and nothing else."""
    record = latency(name, e2e_ms, **options)
    return ArmRecords(name, record.precision_planned, record)


def run(
    names: Sequence[str],
    evaluators: tuple[EvaluatorName, ...] = EVALUATORS,
    *,
    run_id: str = RUN,
    skipped: tuple[Skipped, ...] = (),
    command: str = "run",
) -> RunRecord:
    """The record of a finished run of these arms, the reference first."""
    return RunRecord(
        run_id=run_id,
        status=Status.FINISHED,
        started="2026-01-01T00:00:00+00:00",
        command=command,
        options={"output_dir": "first"},
        evaluators=dict.fromkeys(names, evaluators),
        skipped=skipped,
        schedule=Schedule("turns", 4, 2, 5),
        tasks=4,
        machine=machine(),
        versions={"mlflow": "3"},
        ended="2026-01-01T01:00:00+00:00",
    )


def write(folder: Path, arms: Sequence[ArmRecords], where: str = "sm90", record: RunRecord | None = None) -> None:
    """The files of arms, named as the commands name them, and the record of their run."""
    for recorded in arms:
        if recorded.latency:
            disk.write_record(folder / f"perf_{recorded.name}_{where}.json", recorded.latency)
        if recorded.quality:
            disk.write_record(folder / f"ppl_{recorded.name}_{where}.json", recorded.quality)
        for shape, kernels_of_shape in recorded.kernels.items():
            name = f"kernels_{recorded.name}_{where}{shape and '_' + shape}.json"
            disk.write_record(folder / name, kernels_of_shape)
    if record:
        disk.write_record(folder / RUN_FILE, record)


def pair(*arms: ArmRecords, across: tuple[str, ...] = ()) -> Pair:
    """The one pair of two arms."""
    return pairs.compare(arms, across=across).pairs[0]


def scored(folder: Path, worse: dict[str, float], documents: int = 5, **facts: Any) -> list[ArmRecords]:
    """Arms with quality and its arrays on disk."""
    arms = []
    for name, amount in worse.items():
        arm_scores = scores(amount, documents)
        arm_scores.save(folder / f"ppl_{name}_cpu.npz")
        arms.append(ArmRecords(name, name, quality=quality(name, arm_scores, **facts), folder=folder))
    return arms
