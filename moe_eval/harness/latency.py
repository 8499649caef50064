"""`moe_latency`: the latency evaluator as a task of the harness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from lm_eval.api.instance import Instance

from moe_eval.data import prompts
from moe_eval.engines.base import Engine
from moe_eval.errors import UsageError
from moe_eval.evaluators import latency, speed
from moe_eval.evaluators.warm_up import UNSETTLED
from moe_eval.harness import LATENCY
from moe_eval.harness.shapes import ShapesTask, shape_of
from moe_eval.harness.untyped import Answer, Sample
from moe_eval.machine import hardware
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from moe_eval.records.run import CUT_SHORT, LEAST_WARM_UPS
from moe_eval.records.samples import LatencyMetrics
from moe_eval.tracking import keys


class MoeLatency(ShapesTask):
    """The times of every shape."""

    kind = LATENCY
    defaults: ClassVar[Mapping[str, object]] = {
        "batch_sizes": [1],
        "input_len": 512,
        "output_len": 256,
        "num_iterations": 20,
        "warmup_iterations": LEAST_WARM_UPS,
        "prompts": None,
    }
    metrics: ClassVar[Mapping[str, bool]] = {name: name in ("output_tok_s", "prefill_tok_s") for name in speed.METRICS}

    def check(self, counts: Mapping[str, int]) -> None:
        if counts["num_iterations"] < 1 or counts["warmup_iterations"] < 1:
            raise UsageError(
                f"The metadata of {LATENCY} gives {counts['num_iterations']} iterations after "
                f"{counts['warmup_iterations']} of warm-up. Give at least 1 after 1."
            )

    @staticmethod
    def figures(answer: Answer) -> Iterator[tuple[str, float]]:
        for name in speed.METRICS:
            metric = getattr(_metrics(answer), name)
            if metric is not None:
                yield name, metric.median


def answers(
    engine: Engine, tokenizer: Any, requests: Sequence[Instance], done: Callable[[], object]
) -> Iterator[Answer]:
    """Measure every request's shape on the loaded engine.

    Yields:
        LatencyFigures as plain JSON, with the name of the shape, the prompts' source and digest, the warm-up and what
        NVML saw.
    """
    documents = [request.args[1] for request in requests]
    shapes = tuple(map(shape_of, documents))
    for shape in shapes:
        latency.check(engine, shape)
    latency.refuse_profiler()
    latency.refuse_traced()
    workload = prompts.make_workload(documents[0]["prompts"], 0, shapes, tokenizer, engine.facts.vocabulary)
    uuids = [gpu.uuid for gpu in hardware.gpus_from(engine.facts.device)[: engine.facts.gpus]]
    with Nvml.open(uuids) as nvml, Sampler(nvml) as sampler:
        for document, shape in zip(documents, shapes, strict=True):
            rows = workload.prompts(shape)
            warm_up = latency.warm_up(latency.Clock(engine, nvml), rows, shape, document["warmup_iterations"])
            samples = latency.measure(engine, rows, shape, document["num_iterations"], nvml)
            done()
            answer: Answer = msgspec.to_builtins(speed.figures([samples], shape))
            yield {
                "shape": shape.name,
                **answer,
                "workload": {"source": workload.source, "digest": workload.digest},
                "warm_up": msgspec.to_builtins(warm_up),
                "gpu": msgspec.to_builtins(sampler.summary(samples[0].started, samples[-1].ended)),
                "nvml": sampler.lost or nvml.why_not,
                "slow_samples": sampler.flagged([(sample.started, sample.ended) for sample in samples]),
            }


def notes(rows: Sequence[Sample]) -> list[str]:
    """What a reader of the task's figures has to know: a sentence for each shape and reason."""
    sentences = []
    for row in rows:
        answer = row["filtered_resps"][0]
        reasons = list(answer["notes"])
        if answer["warm_up"]["ended"] == UNSETTLED:
            reasons.append("the warm-up ended without having settled")
        if answer["warm_up"]["ended"] == CUT_SHORT:
            reasons.append(f"warm-up: {CUT_SHORT}")
        slow = sum(flag is True for flag in answer["slow_samples"])
        if slow:
            reasons.append(f"{slow} of {len(answer['slow_samples'])} iterations ran at under 75 % of the default clock")
        sentences += [f"{LATENCY} {answer['shape']}: {reason}" for reason in reasons]
    return sentences


def metrics(rows: Sequence[Sample]) -> dict[str, float]:
    """Samples of the task as metrics of the common schema: latency/SHAPE/NAME, with the bounds of its interval."""
    values: dict[str, float] = {}
    for row in rows:
        answer = row["filtered_resps"][0]
        values |= keys.latency_keys(answer["shape"], _metrics(answer))
    return values


def _metrics(answer: Answer) -> LatencyMetrics:
    return msgspec.convert(answer["metrics"], LatencyMetrics)
