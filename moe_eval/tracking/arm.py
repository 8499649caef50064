"""What is logged of an arm of `moe-eval run`, read from its records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError
from moe_eval.records.disk import DatasetFacts
from moe_eval.runner.record_writer import UNMEASURED
from moe_eval.tracking import keys

_KINDS = {"perplexity": "ppl", "latency": "perf", "kernels": "kernels"}  # of records, by evaluator
_METRICS = {"ppl": keys.of_ppl, "perf": keys.of_perf, "kernels": keys.of_kernels}


@dataclass(frozen=True)
class Arm:
    """What is logged of an arm.

    Attributes:
        records: of every kind, perplexity first.
        files: these records, and traces.
        whole: whether everything that was planned has been measured.
    """

    name: str
    records: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    datasets: Sequence[DatasetFacts]
    files: Sequence[Path]
    whole: bool

    @classmethod
    def read(cls, folder: Path, name: str, evaluators: Sequence[str]) -> Arm:
        """Read what a run's folder has of an arm.

        Raises:
            UsageError: a record is damaged.
        """
        records: list[dict[str, Any]] = []
        metrics: dict[str, float] = {}
        datasets: list[DatasetFacts] = []
        files: list[Path] = []
        whole = True
        for kind, read in _METRICS.items():
            own = re.compile(rf"{kind}_{re.escape(name)}_(sm\d+|cpu)(_b\d+_i\d+_o\d+)?\.json")
            for file in sorted(each for each in folder.iterdir() if own.fullmatch(each.name)):
                try:
                    record = json.loads(file.read_text(encoding="utf-8"))
                    metrics |= read(record)
                    datasets += _datasets(record)
                    whole &= record["status"] == "finished"
                    records.append(record)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UsageError(
                        f"{file} is damaged ({type(error).__name__}: {error}); the command of the run with --resume "
                        "makes it again."
                    ) from None
                files.append(file)
        there = {file.name.partition("_")[0] for file in files}
        whole &= there >= {_KINDS[each] for each in evaluators}
        files += sorted((folder / "arms" / name).glob("trace_*"))
        return cls(name, records, metrics, datasets, files, whole)

    @property
    def labels(self) -> dict[str, Any]:
        """What becomes parameters."""
        first = self.records[0] if self.records else {}
        return {**{name: first.get(name) for name in ("versions", "git", "asked", "labels")}, "precision": self.name}

    @property
    def tags(self) -> dict[str, str]:
        """What to search and group by: engine, precision asked and seen."""
        engines = [record["labels"].get("engine", {}) for record in self.records if record.get("labels")]
        seen = [record["precision_seen"] for record in self.records if record.get("precision_seen")]
        errors = "; ".join(str(record["error"]) for record in self.records if record.get("error"))
        tags = {
            "moe_eval.checkpoint.precision": self.name,
            "moe_eval.precision_seen": seen[0] if seen else None,
            "moe_eval.engine": engines[0].get("name") if engines else None,
            "moe_eval.error": errors[:5000] or None,
        }
        return {key: value for key, value in tags.items() if value is not None}

    def ended(self, run: str) -> str:
        """MLflow's word for how it ended, by the status of its run."""
        if self.whole:
            return "FINISHED"
        broken = any(each["status"] != "finished" and each.get("error") != UNMEASURED for each in self.records)
        return "FAILED" if broken or run in ("finished", "failed") else "KILLED"


def _datasets(record: Mapping[str, Any]) -> list[DatasetFacts]:
    """What was scored, or the prompts that were timed."""
    facts = []
    if record.get("dataset_digest"):
        source, count = f"local:{record['dataset']}", record["num_chunks"]
        facts.append(DatasetFacts(record["dataset"], "1", source, "test", count, str(record["dataset_digest"])[:16]))
    work = record.get("workload")
    if work and "shapes" in record:
        facts.append(DatasetFacts("prompts", "1", f"local:{work['source']}", "test", 1, str(work["digest"])))
    return facts
