"""`moe_latency`: the latency evaluator as a task of the harness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from lm_eval.api.instance import Instance

from moe_eval.data import prompts
from moe_eval.engines.base import Engine
from moe_eval.errors import UsageError
from moe_eval.evaluators import latency, speed
from moe_eval.harness import LATENCY
from moe_eval.harness.shapes import ShapesTask, shape
from moe_eval.machine import hardware
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from moe_eval.tracking import keys


class MoeLatency(ShapesTask):
    """The times of every shape."""

    kind = LATENCY
    defaults: ClassVar[Mapping[str, Any]] = {
        "batch_sizes": [1],
        "input_len": 512,
        "output_len": 256,
        "num_iterations": 20,
        "warmup_iterations": latency.LEAST_WARM_UPS,
        "prompts": "wikitext",
    }
    metrics: ClassVar[Mapping[str, bool]] = {name: name in ("output_tok_s", "prefill_tok_s") for name in speed.METRICS}

    def check(self, counts: Mapping[str, int]) -> None:
        if counts["num_iterations"] < 1 or counts["warmup_iterations"] < latency.LEAST_WARM_UPS:
            raise UsageError(
                f"The metadata of {LATENCY} asks for {counts['num_iterations']} iterations after "
                f"{counts['warmup_iterations']} of warm-up; give at least 1 after {latency.LEAST_WARM_UPS}."
            )

    @staticmethod
    def figures(answer: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        yield from ((name, found["median"]) for name, found in answer["metrics"].items() if found is not None)


def answers(
    engine: Engine, tokenizer: Any, requests: Sequence[Instance], done: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Measure every request's shape on the loaded engine.

    Yields:
        speed.figures with the name of the shape, the prompts' source and digest, the warm-up and what NVML saw.
    """
    asked = [request.args[1] for request in requests]
    wanted = tuple(map(shape, asked))
    for each in wanted:
        latency.check(engine, each)
    latency.refuse_profiler()
    latency.refuse_traced()
    work = prompts.make_workload(asked[0]["prompts"], 0, wanted, tokenizer, engine.facts.vocabulary)
    uuids = [gpu.uuid for gpu in hardware.gpus_from(engine.facts.device)[: engine.facts.gpus]]
    with Nvml.open(uuids) as nvml, Sampler(nvml) as sampler:
        for each, one in zip(asked, wanted, strict=True):
            rows = work.prompts(one)
            warm = latency.warm_up(latency.Clock(engine, nvml), rows, one, each["warmup_iterations"])
            samples = latency.measure(engine, rows, one, each["num_iterations"], nvml)
            done()
            yield {
                "shape": one.name,
                **speed.figures(samples, one),
                "workload": {"source": work.source, "digest": work.digest},
                "warm_up": asdict(warm),
                "gpu": [asdict(gpu) for gpu in sampler.summary(samples[0].started, samples[-1].ended)],
                "nvml": sampler.lost or nvml.why_not,
                "slow_samples": sampler.flagged([(sample.started, sample.ended) for sample in samples]),
            }


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the task's figures has to know: a sentence for each shape and reason."""
    found = []
    for row in rows:
        answer = row["filtered_resps"][0]
        said = list(answer["notes"])
        if answer["warm_up"]["ended"] == latency.UNSETTLED:
            said.append("the warm-up ended without having settled")
        slow = sum(flag is True for flag in answer["slow_samples"])
        if slow:
            said.append(f"{slow} of {len(answer['slow_samples'])} iterations ran at under 75 % of the default clock")
        found += [f"{LATENCY} {answer['shape']}: {each}" for each in said]
    return found


def metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Samples of the task as metrics of the common schema: speed/SHAPE/NAME, with the bounds of its interval."""
    found: dict[str, float] = {}
    for row in rows:
        answer = row["filtered_resps"][0]
        found |= keys.speed(answer["shape"], answer["metrics"])
    return found
