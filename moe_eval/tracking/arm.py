"""What is logged of an arm of a run, read from its records."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path

import msgspec

from moe_eval.frozen import frozen
from moe_eval.records import by_arm
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.harness import DatasetFacts
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import EngineFacts, Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityRecord
from moe_eval.records.run import UNMEASURED, EvaluatorName
from moe_eval.records.serving import ServingRecord
from moe_eval.records.task_results import TaskResults
from moe_eval.records.tasks import TasksRecord
from moe_eval.tracking import headlines, keys, task_tables
from moe_eval.tracking.title import Title, label

_FILES: Mapping[EvaluatorName, str] = {
    "quality": "ppl",
    "tasks": "tasks",
    "latency": "perf",
    "kernels": "kernels",
    "serving": "serving",
}
_ARTIFACTS = {
    LatencyRecord: "latency.json",
    QualityRecord: "quality.json",
    TasksRecord: "tasks.json",
    ServingRecord: "serving.json",
}
_LONGEST_ERROR = 5000
ARM_TAG = "moe_eval.arm"
BREAKDOWN_FILE = "breakdown.csv"


@frozen
class Arm:
    """What is logged of an arm.

    Attributes:
        records: of every evaluator, quality first. `files`: where they are.
        traces: files of a profiler, without raw reports: those hold the environment.
        is_whole: whether everything that was planned has been measured.
        comparison: of its run, None where there is none yet.
    """

    name: str
    records: Sequence[by_arm.Record]
    files: Sequence[Path]
    traces: Sequence[Path]
    is_whole: bool
    comparison: ComparisonRecord | None = field(default=None, repr=False)

    @classmethod
    def read(
        cls,
        name: str,
        evaluators: Sequence[EvaluatorName],
        files_of: Mapping[tuple[str, str], Sequence[Path]],
        arms: Path,
        comparison: ComparisonRecord | None,
    ) -> Arm:
        """Read what a run's folder has of an arm.

        Args:
            evaluators: that were planned.
            files_of: files of records, by the kind and the arm in their names.
            arms: the folder of what arms left while they ran.

        Raises:
            UsageError: a record is damaged.
        """
        kinds = (_FILES[evaluator] for evaluator in _FILES if evaluator in evaluators)
        files = [file for kind in kinds for file in files_of.get((kind, name), ())]
        records = [by_arm.read_file(file) for file in files]
        measured = {file.name.partition("_")[0] for file in files}
        is_whole = all(record.status is Status.FINISHED for record in records)
        is_whole &= measured >= {_FILES[evaluator] for evaluator in evaluators}
        return cls(name, records, files, sorted((arms / name).glob("trace_*.gz")), is_whole, comparison)

    @property
    def kernels(self) -> list[KernelsRecord]:
        return [record for record in self.records if isinstance(record, KernelsRecord)]

    @property
    def engine(self) -> EngineFacts | None:
        """What the engine said of itself, that of the timed load first. None where nothing was loaded."""
        loaded = [record for record in self.records if not isinstance(record, KernelsRecord)]
        loaded.sort(key=lambda record: not isinstance(record, LatencyRecord))
        return next(filter(None, (record.labels.engine for record in loaded)), None)

    @property
    def title(self) -> Title:
        return Title.of_engine(self.engine)

    def metrics(self, important: Collection[str]) -> dict[str, float]:
        """Its figures by key, the headlines first and counts last.

        Args:
            important: categories of kernels that have keys.
        """
        figures = headlines.of_arm(self.comparison, self.name)
        counts: dict[str, float] = {}
        for record in self.records:
            if isinstance(record, LatencyRecord):
                figures |= keys.of_latency(record, self.comparison)
            elif isinstance(record, QualityRecord):
                figures |= keys.of_quality(record, self.comparison)
            elif isinstance(record, TasksRecord):
                figures |= keys.of_tasks(record)
            elif isinstance(record, ServingRecord):
                figures |= keys.of_serving(record)
            else:
                counts |= keys.of_kernels(record, important)
        compared = self.comparison.arms if self.comparison else ()
        for arm in compared:
            figures |= keys.of_memory(arm) if arm.name == self.name else {}
        counts |= {key: figures.pop(key) for key in list(figures) if key.startswith("fairness/")}
        return figures | counts

    @property
    def artifacts(self) -> Iterator[tuple[str, Path, by_arm.Record]]:
        """Files of records, by names that are the same for every arm: in MLflow the run says whose they are."""
        for file, record in zip(self.files, self.records, strict=True):
            if isinstance(record, KernelsRecord):
                yield f"kernels/{record.shape or 'trace'}.json", file, record
            else:
                yield _ARTIFACTS[type(record)], file, record

    @property
    def tables(self) -> dict[str, str]:
        """Its answers to tasks of the harness, by the names that tables have in MLflow."""
        results = (record.results for record in self.records if isinstance(record, TasksRecord))
        return task_tables.samples(next(results, None))

    @property
    def breakdown(self) -> str:
        """All categories of all phases as a table, which MLflow shows side by side. Empty without kernels."""
        lines = [
            (record.shape, name, category, f"{time.ms:.6g}", f"{time.share:.4f}", f"{time.launches:.6g}")
            for record in self.kernels
            for name, phase in record.phases.items()
            for category, time in phase.categories.items()
        ]
        if not lines:
            return ""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerows([("shape", "phase", "category", "ms_per_step", "share", "launches"), *lines])
        return text.getvalue()

    @property
    def datasets(self) -> list[DatasetFacts]:
        """What was scored, and the prompts that were timed."""
        facts = []
        for record in self.records:
            if isinstance(record, QualityRecord) and record.figures is not None:
                scored = record.figures
                source, digest = f"local:{scored.dataset}", scored.dataset_digest[:16]
                facts.append(DatasetFacts(scored.dataset, "1", source, "test", scored.num_chunks, digest))
            if isinstance(record, LatencyRecord) and record.workload is not None:
                source, digest = f"local:{record.workload.source}", record.workload.digest
                facts.append(DatasetFacts("prompts", "1", source, "test", 1, digest))
            if isinstance(record, TasksRecord) and record.results is not None:
                facts += [_dataset(task) for task in record.results.tasks]
        return facts

    @property
    def precision(self) -> str:
        """That was asked for. Its name where no record tells."""
        timed = (
            record.precision_planned for record in self.records if isinstance(record, (LatencyRecord, ServingRecord))
        )
        scored = (record.precision for record in self.records if isinstance(record, (QualityRecord, TasksRecord)))
        return next(filter(None, (*timed, *scored)), self.name)

    @property
    def labels(self) -> dict[str, object]:
        """What becomes parameters."""
        labels: dict[str, object] = {"arm": self.name, "precision": self.precision}
        for record in self.records[:1]:
            origin = record.origin
            labels |= {"versions": origin.versions, "git": origin.git, "options": origin.options}
            labels["labels"] = None if isinstance(record, KernelsRecord) else msgspec.to_builtins(record.labels)
        return labels

    @property
    def tags(self) -> dict[str, str]:
        """What to search and group by: engine, precision asked and seen, verdict."""
        errors = "; ".join(record.error for record in self.records if record.error)
        tags = {
            ARM_TAG: self.name,
            "moe_eval.checkpoint.precision": self.precision,
            "moe_eval.precision_seen": next(filter(None, (record.precision_seen for record in self.kernels)), None),
            "moe_eval.engine": label(self.engine),
            "moe_eval.model": self.title.model,
            "moe_eval.verdict": self._verdict,
            "moe_eval.error": errors[:_LONGEST_ERROR] or None,
        }
        return {key: value for key, value in tags.items() if value}

    @property
    def _verdict(self) -> str | None:
        if self.comparison is None:
            return None
        verdicts = {pair.other: pair.verdict.value for pair in self.comparison.pairs}
        return verdicts.get(self.name, "reference" if self.name == self.comparison.reference else None)

    @property
    def description(self) -> str:
        """The verdict in whole sentences. Empty where there is none."""
        pairs = self.comparison.pairs if self.comparison else ()
        return next((f"{pair.sentence} {pair.because}".strip() for pair in pairs if pair.other == self.name), "")

    def ended(self, run: Status) -> str:
        """MLflow's word for how it ended, by the status of its run."""
        if self.is_whole:
            return "FINISHED"
        broken = any(record.status is not Status.FINISHED and record.error != UNMEASURED for record in self.records)
        return "FAILED" if broken or run in (Status.FINISHED, Status.FAILED) else "KILLED"


def _dataset(task: TaskResults) -> DatasetFacts:
    documents = {row.number: row.document for row in task.documents}
    digest = hashlib.sha256("".join(documents[number] for number in sorted(documents)).encode()).hexdigest()[:16]
    return DatasetFacts(task.task, task.version, f"harness:{task.task}", "", len(documents), digest)
