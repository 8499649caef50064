"""`moe_kernels`: the kernels evaluator as a task of the harness."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from lm_eval.api.instance import Instance

from moe_eval.data import prompts
from moe_eval.data.workload import Shape
from moe_eval.engines.base import Engine, TokenIds
from moe_eval.evaluators import kernels, kernels_record, latency
from moe_eval.harness import KERNELS, context
from moe_eval.harness.shapes import ShapesTask, shape_of
from moe_eval.harness.untyped import Answer, Sample
from moe_eval.machine import nsys
from moe_eval.records.kernels import KernelsRecord, TraceSource
from moe_eval.tracking import keys

log = logging.getLogger("lm_eval.moe_eval")  # shown like the harness's own messages
_PHASES = ("prefill", "decode")
_FIGURES = ("busy_ms", "expert_gemm_ms", "expert_gemm_share", "ceiling")


class MoeKernels(ShapesTask):
    """The kernels of one prefill and a few decode steps, for every shape."""

    kind = KERNELS
    defaults: ClassVar[Mapping[str, object]] = {
        "batch_sizes": [1],
        "input_len": 512,
        "output_len": 9,
        "prompts": None,
    }
    metrics: ClassVar[Mapping[str, bool]] = {
        f"{phase}_{name}": name == "ceiling" for phase in _PHASES for name in _FIGURES
    }

    @staticmethod
    def figures(answer: Answer) -> Iterator[tuple[str, float]]:
        for key, value in kernels_record.figures(msgspec.convert(answer, KernelsRecord, str_keys=True)).items():
            name = key.replace("/", "_")
            if name in MoeKernels.metrics:
                yield name, value


def answers(
    engine: Engine, tokenizer: Any, requests: Sequence[Instance], done: Callable[[], object], profiler: str = "auto"
) -> Iterator[Answer]:
    """Trace every request's shape on the loaded engine.

    Args:
        profiler: of the model arguments. Under Nsight Systems every shape is a capture, which it writes in the end.

    Yields:
        A KernelsRecord as plain JSON, with the prompts' source and digest as `workload`.
    """
    documents = [request.args[1] for request in requests]
    shapes = tuple(map(shape_of, documents))
    for shape in shapes:
        latency.check(engine, shape)
    work = prompts.make_workload(documents[0]["prompts"], 0, shapes, tokenizer, engine.facts.vocabulary)
    is_capture = profiler != "torch" and nsys.inside()
    with tempfile.TemporaryDirectory() as scratch:
        folder = context.folder() or Path(scratch)
        for number, shape in enumerate(shapes, 1):
            if is_capture:
                record = _captured(engine, work.prompts(shape), shape, number)
            else:
                record = kernels.measure(engine, work.prompts(shape), shape, folder, f"trace_{shape.name}")
            done()
            answer: Answer = msgspec.to_builtins(record, str_keys=True)
            yield {**answer, "workload": {"source": work.source, "digest": work.digest}}


def _captured(engine: Engine, prompts: Sequence[TokenIds], shape: Shape, number: int) -> KernelsRecord:
    """A record without figures, which says where they are: nsys writes reports when this process cannot read them."""
    run = kernels.capture(engine, prompts, shape)
    note = (
        f"{shape.name} is capture {number} of this session of Nsight Systems. Read its report "
        f"(NAME.{number}.nsys-rep for --output=NAME) with moe-eval kernels --input."
    )
    log.warning(note)
    record = KernelsRecord(shape=shape.name, source=TraceSource("nsys capture"), precision=run.label, notes=(note,))
    return kernels_record.with_times(record, run.unprofiled_ms, run.profiled_ms)


def metrics(rows: Sequence[Sample]) -> dict[str, float]:
    """Samples of the task as metrics of the common schema: kernels/SHAPE/PHASE/NAME."""
    values: dict[str, float] = {}
    for record in _records(rows):
        values |= keys.of_kernels(record)
    return values


def contradictions(rows: Sequence[Sample]) -> list[str]:
    """Sentences on shapes whose kernels are not those of the arm's label."""
    return [
        f"NOT VERIFIED at {record.shape}: {record.contradiction}" for record in _records(rows) if record.contradiction
    ]


def _records(rows: Sequence[Sample]) -> list[KernelsRecord]:
    return [msgspec.convert(row["filtered_resps"], list[KernelsRecord], str_keys=True)[0] for row in rows]
