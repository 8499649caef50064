"""Evaluators as tasks of the harness: a document is a shape, and its answer is a record of the figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from moe_eval.data import prompts, workload
from moe_eval.errors import UsageError
from moe_eval.harness.untyped import Answer, Arguments, Dictionary, Document


class ShapesTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """One document for every batch size of the task's metadata. Its metrics are named METRIC_SHAPE.

    Attributes:
        kind: the task's name, and the kind of its requests, which other models do not know.
        defaults: of the metadata: batch_sizes, input_len, output_len, prompts, and the task's own whole numbers. For
            prompts None is prompts.default_source.
        metrics: names of its metrics, and whether a higher one is better.
    """

    kind: ClassVar[str]
    defaults: ClassVar[Mapping[str, object]]
    metrics: ClassVar[Mapping[str, bool]]

    def __init__(self, config: Dictionary) -> None:
        metadata = config.get("metadata") or {}
        self._metadata: Arguments = {key: metadata.get(key, value) for key, value in self.defaults.items()}
        self._shapes, self._counts = self._read()
        self.check(self._counts)
        super().__init__(
            config={
                **{key: value for key, value in config.items() if key != "class"},
                "output_type": "generate_until",
                "generation_kwargs": {"until": [], "do_sample": False},  # else the harness warns that it sets them
                "num_fewshot": 0,  # the harness does not override 0, and there are no examples
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
            UsageError: with the numbers to give.
        """

    @staticmethod
    @abstractmethod
    def figures(answer: Answer) -> Iterator[tuple[str, float]]:
        """The metrics of an answer, by name."""

    def _read(self) -> tuple[tuple[workload.Shape, ...], dict[str, int]]:
        sizes = self._metadata["batch_sizes"]
        sizes = sizes if isinstance(sizes, (list, tuple)) else str(sizes).split(":")
        try:
            batch_sizes = list(map(_whole, sizes))
            counts = {
                name: _whole(value) for name, value in self._metadata.items() if name not in ("batch_sizes", "prompts")
            }
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"The metadata of {self.kind}, {self._metadata}, is not of whole numbers. Give whole numbers."
            ) from None
        return workload.shapes(batch_sizes, counts.pop("input_len"), counts.pop("output_len")), counts

    def download(self, *_: object, **__: object) -> None:
        """Make the documents. The harness's own method warns that a function could take settings."""
        self.dataset = self._documents()

    def _documents(self, **_: object) -> Any:
        from datasets import Dataset

        settings = {**self._counts, "prompts": str(self._metadata["prompts"] or prompts.default_source())}
        return {"test": Dataset.from_list([{**asdict(shape), **settings} for shape in self._shapes])}

    def build_all_requests(self, **options: Any) -> None:
        # the harness's cache of requests knows a task by its name and not by its shapes
        super().build_all_requests(**{**options, "cache_requests": False})

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> Any:
        """One request of our own kind."""
        metadata = {name: value for name, value in kwargs.items() if name == "metadata"}
        return Instance(request_type=self.kind, doc=doc, arguments=(shape_of(doc).name, dict(doc)), idx=0, **metadata)

    def _figures(self, doc: Document, results: Sequence[Answer]) -> dict[str, float]:
        return {f"{name}_{results[0]['shape']}": value for name, value in self.figures(results[0])}


def _whole(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise ValueError(value)
    return number


def shape_of(doc: Document) -> workload.Shape:
    """The shape of a document."""
    return workload.Shape(doc["batch_size"], doc["input_len"], doc["output_len"])
