"""What an arm's process does when it is asked: functions of (engine, tokenizer, JSON arguments) that return JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.contents import read_object
from moe_eval.data import scoring_windows
from moe_eval.data.workload import Shape, Workload, from_json
from moe_eval.engines.base import Engine
from moe_eval.evaluators import latency
from moe_eval.evaluators import perplexity as quality
from moe_eval.evaluators import routing as routed
from moe_eval.machine import rates as machine
from moe_eval.machine.nvml import Nvml


def perplexity(
    engine: Engine, tokenizer: Any, *, arrays: str, dataset: str, input_len: int, num_chunks: int, alone: bool = False
) -> dict[str, Any]:
    """Score a data set: writes the arrays, returns the figures with their labels.

    Args:
        alone: score every window in a batch of its own; what that changes is the noise of batching.
    """
    from tqdm import tqdm

    bos = tokenizer.bos_token_id
    cut = scoring_windows.cut(
        scoring_windows.read_documents(dataset),
        lambda text: list(tokenizer.encode(text, verbose=False)),
        int(tokenizer.eos_token_id if bos is None else bos),
        input_len,
        num_chunks,
    )
    facts = engine.facts
    with tqdm(total=len(cut.windows), desc=f"{facts.precision} on {facts.name}", unit="window") as bar:
        scores = quality.measure(engine, cut, done=lambda *_: bar.update(), alone=alone)
    scores.save(Path(arrays))
    return {
        "dataset": dataset,
        "dataset_digest": cut.digest,
        "input_len": cut.input_len,
        "num_chunks": len(cut.windows),
        "of_chunks": cut.total,
        **quality.figures(scores, cut),
    }


@cache
def _frozen(file: str) -> Workload:
    return from_json(read_object(Path(file)))


def warm_up(engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], least: int) -> dict[str, Any]:
    """Warm an arm up for one shape of the workload in a file."""
    latency.refuse_profiler()
    asked = Shape(**shape)
    latency.check(engine, asked)
    return asdict(latency.warm_up(latency.Clock(engine, Nvml.open(())), _frozen(workload).prompts(asked), asked, least))


def measure(
    engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], iterations: int, uuids: list[str]
) -> dict[str, Any]:
    """Time iterations of one shape of the workload in a file."""
    asked = Shape(**shape)
    with Nvml.open(uuids) as nvml:
        found = latency.measure(engine, _frozen(workload).prompts(asked), asked, iterations, nvml)
    return {"samples": [asdict(each) for each in found]}


def routing(
    engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], experts: int, batch_sizes: list[int]
) -> dict[str, Any]:
    """Count the experts that the prompts of a shape and their continuations go through."""
    asked = Shape(**shape)
    arrays = engine.routing(_frozen(workload).prompts(asked), asked.output_len)
    found = routed.read(arrays, asked.input_len, experts, batch_sizes)
    return {str(size): each.to_json() for size, each in found.items()}


def kernels(
    engine: Engine, _: Any, *, workload: str, shape: Mapping[str, int], folder: str, name: str
) -> dict[str, Any]:
    """Trace one short run of a shape of the workload in a file; the trace is kept in a folder under a name."""
    from moe_eval.evaluators import kernels as traced

    asked = Shape(**shape)
    return traced.measure(engine, _frozen(workload).prompts(asked), asked, Path(folder), name)


def rates(_engine: None, _: None, *, device: str) -> dict[str, Any]:
    """Measure what the machine can do at most; needs no loaded arm."""
    return asdict(machine.measure_rates(device))
