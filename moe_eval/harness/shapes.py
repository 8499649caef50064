"""Evaluators as tasks of the harness: a document is a shape, and its answer the figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from moe_eval.data import workload
from moe_eval.errors import UsageError


class ShapesTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """One document for every batch size of the task's metadata; its metrics are named METRIC_SHAPE.

    Attributes:
        kind: the task's name, and the kind of its requests, which other models do not know.
        defaults: of the metadata: batch_sizes, input_len, output_len, prompts, and whole numbers of its own.
        metrics: names of its metrics, and whether a higher one is better.
    """

    kind: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    metrics: ClassVar[Mapping[str, bool]]

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = {key: value for key, value in (config.get("metadata") or {}).items() if key in self.defaults}
        self._asked = {**self.defaults, **given}
        self._shapes, self._counts = self._read()
        self.check(self._counts)
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
                    {"metric": f"{name}_{shape.name}", "aggregation": "mean", "higher_is_better": better}
                    for shape in self._shapes
                    for name, better in self.metrics.items()
                ],
            }
        )

    def check(self, counts: Mapping[str, int]) -> None:
        """Refuse numbers of the metadata that make no sense.

        Raises:
            UsageError: with numbers that do.
        """

    @staticmethod
    @abstractmethod
    def figures(answer: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """The metrics of an answer."""

    def _read(self) -> tuple[tuple[workload.Shape, ...], dict[str, int]]:
        sizes = self._asked["batch_sizes"]
        try:
            numbers = [_whole(each) for each in (sizes if isinstance(sizes, (list, tuple)) else str(sizes).split(":"))]
            counts = {
                name: _whole(value) for name, value in self._asked.items() if name not in ("batch_sizes", "prompts")
            }
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"The metadata of {self.kind} needs whole numbers; {self._asked} has something else."
            ) from None
        return workload.shapes(numbers, counts.pop("input_len"), counts.pop("output_len")), counts

    def _documents(self, **_: Any) -> Any:
        from datasets import Dataset

        how = {**self._counts, "prompts": str(self._asked["prompts"])}
        return {"test": Dataset.from_list([{**asdict(shape), **how} for shape in self._shapes])}

    def build_all_requests(self, **how: Any) -> None:
        # the harness's cache of requests knows a task by its name alone, not by its shapes
        super().build_all_requests(**{**how, "cache_requests": False})

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> Any:
        """One request of our own kind."""
        more = {name: value for name, value in kwargs.items() if name in ("metadata",)}
        return Instance(request_type=self.kind, doc=doc, arguments=(shape(doc).name, dict(doc)), idx=0, **more)

    def _figures(self, doc: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {f"{name}_{results[0]['shape']}": value for name, value in self.figures(results[0])}


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise ValueError(value)
    return number


def shape(doc: Mapping[str, Any]) -> workload.Shape:
    """The shape of a document."""
    return workload.Shape(doc["batch_size"], doc["input_len"], doc["output_len"])
