"""`moe_latency`: the latency evaluator as a task of the harness. A document is a shape, and its answer the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from moe_eval import hardware, workload
from moe_eval.engines.base import Engine
from moe_eval.errors import UsageError
from moe_eval.evaluators import latency, prompts, speed
from moe_eval.harness import LATENCY
from moe_eval.nvml import Nvml, Sampler

_DEFAULTS = {
    "batch_sizes": [1],
    "input_len": 512,
    "output_len": 256,
    "num_iterations": 20,
    "warmup_iterations": latency.LEAST_WARM_UPS,
    "prompts": "wikitext",
}
_HIGHER_IS_BETTER = ("output_tok_s", "prefill_tok_s")


class MoeLatency(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """One document for every batch size of the task's metadata; its metrics are named METRIC_SHAPE."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = {key: value for key, value in (config.get("metadata") or {}).items() if key in _DEFAULTS}
        self._asked = {**_DEFAULTS, **given}
        self._shapes = _shapes(self._asked)
        ours = {key: value for key, value in config.items() if key != "class"}
        super().__init__(
            config={
                **ours,
                "output_type": "generate_until",
                "num_fewshot": 0,  # the harness leaves this number alone, and there are no examples
                "custom_dataset": self._documents,
                "test_split": "test",
                "doc_to_text": "",
                "doc_to_target": "",
                "process_results": self._figures,
                "metric_list": [
                    {"metric": name, "aggregation": "mean", "higher_is_better": name.startswith(_HIGHER_IS_BETTER)}
                    for name in self._names()
                ],
            }
        )

    def _documents(self, **_: Any) -> Any:
        from datasets import Dataset

        how: dict[str, Any] = {key: int(self._asked[key]) for key in ("num_iterations", "warmup_iterations")}
        how["prompts"] = str(self._asked["prompts"])
        return {"test": Dataset.from_list([{**asdict(shape), **how} for shape in self._shapes])}

    def _names(self) -> Iterator[str]:
        for shape in self._shapes:
            yield from (f"{metric}_{shape.name}" for metric in speed.METRICS)

    def build_all_requests(self, **how: Any) -> None:
        # the harness's cache of requests knows a task by its name alone, not by its shapes
        super().build_all_requests(**{**how, "cache_requests": False})

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> Any:
        """One request of our own kind, which other models do not know."""
        more = {name: value for name, value in kwargs.items() if name in ("metadata",)}
        return Instance(request_type=LATENCY, doc=doc, arguments=(_shape(doc).name, dict(doc)), idx=0, **more)

    def _figures(self, doc: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {
            f"{metric}_{results[0]['shape']}": found["median"]
            for metric, found in results[0]["metrics"].items()
            if found is not None
        }


def _shapes(asked: Mapping[str, Any]) -> tuple[workload.Shape, ...]:
    sizes = asked["batch_sizes"]
    try:
        numbers = [_whole(each) for each in (sizes if isinstance(sizes, (list, tuple)) else str(sizes).split(":"))]
        input_len, output_len = _whole(asked["input_len"]), _whole(asked["output_len"])
        counts = [_whole(asked["num_iterations"]), _whole(asked["warmup_iterations"])]
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"The metadata of {LATENCY} needs whole numbers; {asked} has something else.") from None
    if counts[0] < 1 or counts[1] < latency.LEAST_WARM_UPS:
        raise UsageError(
            f"The metadata of {LATENCY} asks for {counts[0]} iterations after {counts[1]} of warm-up; give at least 1 "
            f"after {latency.LEAST_WARM_UPS}."
        )
    return workload.shapes(numbers, input_len, output_len)


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise ValueError(value)
    return number


def _shape(doc: Mapping[str, Any]) -> workload.Shape:
    return workload.Shape(doc["batch_size"], doc["input_len"], doc["output_len"])


def answers(
    engine: Engine, tokenizer: Any, requests: Sequence[Instance], done: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    """Measure every request's shape on the loaded engine.

    Yields:
        speed.figures with the name of the shape, the prompts' source and digest, the warm-up and what NVML saw.
    """
    asked = [request.args[1] for request in requests]
    shapes = tuple(map(_shape, asked))
    for shape in shapes:
        latency.check(engine, shape)
    latency.refuse_profiler()
    work = prompts.workload(asked[0]["prompts"], 0, shapes, tokenizer, engine.facts.vocabulary)
    uuids = [gpu.uuid for gpu in hardware.gpus()[: engine.facts.gpus]]
    with Nvml.open(uuids) as nvml, Sampler(nvml) as sampler:
        for each, shape in zip(asked, shapes, strict=True):
            rows = work.prompts(shape)
            warm = latency.warm_up(latency.Clock(engine, nvml), rows, shape, each["warmup_iterations"])
            samples = latency.measure(engine, rows, shape, each["num_iterations"], nvml)
            done()
            yield {
                "shape": shape.name,
                **speed.figures(samples, shape),
                "workload": {"source": work.source, "digest": work.digest},
                "warm_up": asdict(warm),
                "gpu": [asdict(one) for one in sampler.summary(samples[0].started, samples[-1].ended)],
                "nvml": sampler.lost or nvml.why_not,
                "slow_samples": sampler.flagged([(one.started, one.ended) for one in samples]),
            }


def metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Samples of the task as metrics of the common schema: speed/SHAPE/NAME, with the bounds of its interval."""
    found: dict[str, float] = {}
    for row in rows:
        answer = row["filtered_resps"][0]
        for name, metric in answer["metrics"].items():
            if metric is None:
                continue
            key = f"speed/{answer['shape']}/{name}"
            found[key] = metric["median"]
            if metric["low"] is not None:
                found |= {f"{key}_low": metric["low"], f"{key}_high": metric["high"]}
    return found
