"""Arms as their evaluators record them, made from a few numbers: through the real writers, and back from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval.data import workload
from moe_eval.engines.base import EngineSettings
from moe_eval.evaluators import kernels_record, perplexity
from moe_eval.evaluators.latency import Sample
from moe_eval.evaluators.perplexity import Scores
from moe_eval.evaluators.routing import Routing
from moe_eval.records import disk
from moe_eval.records.by_arm import ArmResults
from moe_eval.runner import speed_record
from moe_eval.runner.arm_process import Load
from moe_eval.runner.interleave import ArmRun, Schedule
from moe_eval.runner.speed_record import Context
from moe_eval.traces import breakdown
from tests.doubles.timeline import generation

Blocks = Sequence[Sequence[float]]
INPUT, OUTPUT = 512, 257
GPU = "NVIDIA H100 80GB HBM3"
RUN = "0123456789abcdef0123456789abcdef"


def counted(batch: int, distinct: float) -> dict[str, Any]:
    """Routing in which decode steps read so many experts of 128."""
    load = np.full((2, 128), 3)
    return Routing(batch, 128, 8, 4, distinct, 60.0, load, 128.0, 1.0).to_json()


def perf(
    name: str,
    e2e_ms: Mapping[int, Blocks],
    *,
    reference: str | None = None,
    mode: str = "interleaved",
    planned: str | None = None,
    experts: float | None = 50.0,
    gpu: str = GPU,
    seed: int = 0,
    status: str = "finished",
    asked: str = "one",
    run_id: str = RUN,
    slow: int = 0,
    **facts: Any,
) -> dict[str, Any]:
    """A speed record; the first token takes a quarter of every call, and `e2e_ms` is by batch size."""
    planned = planned or name.removesuffix("-again")
    work = workload.from_seed(seed, workload.shapes(list(e2e_ms), INPUT, OUTPUT), 1000)
    engine = {"name": "vllm", "version": "0.22.1", "weights": "checkpoint", "precision": planned, "emulated": False,
              "architecture": "Qwen3MoeForCausalLM", "vocabulary": 1000, "moe_backend_observed": "TRITON", "gpus": 1,
              **facts}  # fmt: skip
    run = ArmRun(name, planned, Load("vllm", EngineSettings("x"), "x"), labels={"engine": engine})
    run.status = status  # type: ignore[assignment]
    if status != "finished":
        run.error = "out of memory"
    for shape in work.shapes:
        blocks = e2e_ms[shape.batch_size]
        run.blocks[shape.name] = [
            [Sample(0.0, ms / 1000, {"host": ms / 4000}, {"host": ms / 1000}, None, ms / 100) for ms in block]
            for block in blocks
        ]
        run.gpu[shape.name] = [
            {"block": at, "gpus": [{"sm_mhz_median": 1980.0}], "slow_samples": [n < slow for n in range(len(block))]}
            for at, block in enumerate(blocks)
        ]
    run.routing = "not measured" if experts is None else {str(each): counted(each, experts) for each in e2e_ms}
    blocks = next(iter(e2e_ms.values()))
    context = Context(
        run_id=run_id,
        workload=work,
        schedule=Schedule(mode, len(blocks), len(blocks[0]), 5),  # type: ignore[arg-type]
        machine={"gpus": [{"name": gpu, "capability": "9.0"}]},
        versions={},
        git=None,
        asked={"output_dir": asked},
        fusion_disabled=False,
    )
    other = None if reference is None else ArmRun(reference, reference, run.load)
    found: dict[str, Any] = json.loads(json.dumps(speed_record.record(run, context, other)))
    return found


def scores(worse: float = 0.0, documents: int = 5, seed: int = 0, digest: str = "d" * 16) -> Scores:
    """Scores of ten tokens a document; `worse` takes so many nats from a token, a little more or less by document."""
    generator = np.random.default_rng(seed)
    logprobs = generator.normal(-2, 1, 10 * documents) - worse
    logprobs -= np.repeat(np.linspace(-0.01, 0.01, documents), 10) * np.sign(worse)
    probability = np.array([0.6 - worse / 10, 0.3, 0.1 + worse / 10])
    top = np.tile(np.log(probability).astype(np.float32), (10 * documents, 1))
    ids = np.tile(np.arange(3, dtype=np.int32), (10 * documents, 1))
    return Scores(
        logprobs.astype(np.float32), np.full(documents, 10), np.arange(documents), ids, top, digest
    )  # fmt: skip


def ppl(name: str, of: Scores, reference: tuple[str, Scores] | None = None, **facts: Any) -> dict[str, Any]:
    """A perplexity record; without a reference one of a run that was ended before it compared its arms."""
    engine = {"name": "transformers", "version": "5.0", "weights": "checkpoint", "precision": name, "emulated": False,
              "architecture": "Qwen3MoeForCausalLM", "vocabulary": 1000, "gpus": 0}  # fmt: skip
    record = {
        "schema": 1, "run_id": RUN, "status": "finished", "error": None, "precision": name, "gpu_name": None,
        "engine": "transformers",
        "moe_backend": "grouped_mm", "asked": {"output_dir": "one"}, "machine": {"gpus": []}, "git": None,
        "perplexity": float(np.exp(-of.logprobs.astype(np.float64).mean())), "word_ppl": None, "bits_per_byte": None,
        "dataset": "moe_sample", "dataset_digest": of.digest, "input_len": 128, "num_chunks": 6,
        "labels": {"engine": {**engine, **facts}, "tokenizer": "x"},
    }  # fmt: skip
    if reference:
        noise = perplexity.compare(scores(), scores(1e-4), None)
        compared = perplexity.compare(reference[1], of, abs(noise["ln_ppl_ratio"]["value"]))
        record |= {"reference": reference[0], "noise_floor": {"batch_size": 1, **noise}, **compared}
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def kernels(
    name: str, *, fp8: bool = False, shape: str = f"b1_i{INPUT}_o9", label: str | None = None
) -> dict[str, Any]:
    """The record of a made-up trace."""
    trace = generation(graph=True, fp8=fp8).trace()
    made = {"shape": shape, **kernels_record.record(f"{name}.json.gz", trace, breakdown.make(trace), label)}
    found: dict[str, Any] = json.loads(json.dumps({**made, "run_id": RUN}))
    return found


def arm(name: str, e2e_ms: Mapping[int, Blocks], **how: Any) -> ArmResults:
    """An arm that was timed and nothing else."""
    record = perf(name, e2e_ms, **how)
    return ArmResults(name, record["precision_planned"], record)


def write(folder: Path, arms: Sequence[ArmResults], where: str = "sm90") -> None:
    """The files of arms, named as the commands name them."""
    for each in arms:
        for kind, content in (("perf", each.perf), ("ppl", each.ppl)):
            if content is not None:
                disk.write_json(folder / f"{kind}_{each.name}_{where}.json", content)
        for shape, content in each.kernels.items():
            disk.write_json(folder / f"kernels_{each.name}_{where}{shape and '_' + shape}.json", content)
