"""`moe_kernels`: the kernels evaluator as a task of the harness."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lm_eval.api.instance import Instance

from moe_eval.data import prompts
from moe_eval.engines.base import Engine
from moe_eval.evaluators import kernels, kernels_record, latency
from moe_eval.harness import KERNELS, artifacts
from moe_eval.harness.shapes import ShapesTask, shape
from moe_eval.tracking import keys

_PHASES = ("prefill", "decode")
_FIGURES = ("busy_ms", "expert_gemm_ms", "expert_gemm_share", "ceiling")


class MoeKernels(ShapesTask):
    """Where the time of one prefill and a few decode steps goes, for every shape."""

    kind = KERNELS
    defaults: ClassVar[Mapping[str, Any]] = {
        "batch_sizes": [1],
        "input_len": 512,
        "output_len": 9,
        "prompts": "wikitext",
    }
    metrics: ClassVar[Mapping[str, bool]] = {
        f"{phase}_{name}": name == "ceiling" for phase in _PHASES for name in _FIGURES
    }

    @staticmethod
    def figures(answer: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for key, value in kernels_record.metrics(answer).items():
            _, phase, name = key.split("/")
            if f"{phase}_{name}" in MoeKernels.metrics:
                yield f"{phase}_{name}", value


def answers(
    engine: Engine, tokenizer: Any, requests: Sequence[Instance], done: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Trace every request's shape on the loaded engine.

    Yields:
        kernels.measure with the prompts' source and digest.
    """
    asked = [request.args[1] for request in requests]
    wanted = tuple(map(shape, asked))
    for each in wanted:
        latency.check(engine, each)
    work = prompts.make_workload(asked[0]["prompts"], 0, wanted, tokenizer, engine.facts.vocabulary)
    with tempfile.TemporaryDirectory() as scratch:
        folder = artifacts.folder() or Path(scratch)
        for each in wanted:
            found = kernels.measure(engine, work.prompts(each), each, folder, f"trace_{each.name}")
            done()
            yield {**found, "workload": {"source": work.source, "digest": work.digest}}


def metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Samples of the task as metrics of the common schema: kernels/SHAPE/PHASE/NAME."""
    found: dict[str, float] = {}
    for row in rows:
        found |= keys.of_kernels(row["filtered_resps"][0])
    return found


def contradictions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on shapes whose kernels are not those of the arm's label."""
    found = (row["filtered_resps"][0] for row in rows)
    return [f"NOT VERIFIED at {each['shape']}: {each['contradiction']}" for each in found if each["contradiction"]]
