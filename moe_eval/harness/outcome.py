"""The harness's results as metrics under one key schema, with the labels they need."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping

from moe_eval.frozen import frozen
from moe_eval.harness import KERNELS, LATENCY, kernels, latency
from moe_eval.harness.untyped import Dictionary, Results, Sample
from moe_eval.records.harness import DatasetFacts

Samples = Mapping[str, list[Sample]]
EMULATED = "emulated by quantise-dequantise arithmetic: the quality counts, the speed does not"
_FILES = ("json", "csv", "parquet", "arrow", "text", "pandas", "xml", "webdataset")  # loaders of `datasets` for files
_KEY = re.compile(r"[^\w.:/ -]")  # what MLflow refuses in a metric's name


@frozen
class Outcome:
    """The result of a finished run. The fields are those of HarnessRecord.

    `verified` is False if the kernels that ran are not those of the arm's precision.
    """

    labels: Dictionary
    metrics: Mapping[str, float]
    datasets: tuple[DatasetFacts, ...]
    notes: tuple[str, ...]
    verified: bool

    def summary(self) -> list[str]:
        """The figures of the perplexity task that the harness's table does not show."""
        if "quality/word_ppl" not in self.metrics:
            return []
        metrics, engine = self.metrics, self.labels["engine"]
        tokens = (
            f"token_ppl {metrics['quality/token_ppl']:.4f} over {metrics['quality/tokens']:,.0f} tokens"
            if "quality/token_ppl" in metrics
            else "token_ppl not known (answers from the cache)"
        )
        precision = f"{engine['precision']} emulated" if engine["emulated"] else engine["precision"]
        return [
            f"Quality: {tokens}, {metrics['quality/words']:,.0f} words, {metrics['quality/bytes']:,.0f} bytes, "
            f"{precision} on {engine['name']} {engine['version']}, "
            f"window {engine['max_length']}, prefix token {self.labels['prefix_token_id']}"
        ]


def read(results: Results, samples: Samples) -> Outcome:
    """Turn the dictionary that simple_evaluate returns into an Outcome.

    Every number of the harness has the key `harness/TASK/METRIC[/FILTER]`. If exactly one task measures perplexity, its
    figures also have the schema's `quality/` keys.
    """
    labels = results["config"]["moe_eval"]
    metrics = dict(_harness_metrics(results["results"])) | latency.metrics(samples.get(LATENCY, ()))
    metrics |= kernels.metrics(samples.get(KERNELS, ()))
    notes = [EMULATED] if labels["engine"]["emulated"] else []
    contradictions = kernels.contradictions(samples.get(KERNELS, ()))
    notes += contradictions + latency.notes(samples.get(LATENCY, ()))
    perplexity = [task for task, rows in samples.items() if rows and "word_perplexity" in rows[0]]
    if len(perplexity) == 1:
        quality, note = _quality(samples[perplexity[0]], labels["scored"].get(perplexity[0], {}))
        metrics |= quality
        notes += [f"quality/ keys are of the task {perplexity[0]}", *note]
    elif perplexity:
        notes.append(f"no quality/ keys: {', '.join(perplexity)} all measure perplexity")
    return Outcome(labels, metrics, tuple(_datasets(results, samples)), tuple(notes), not contradictions)


def _harness_metrics(by_task: Mapping[str, Dictionary]) -> list[tuple[str, float]]:
    metrics = []
    for task, values in by_task.items():
        for name, value in values.items():
            # the harness writes N/A for an unknown error, and names and counts beside the metrics
            if "," not in name or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            metric, _, filtered = name.partition(",")
            key = f"harness/{task}/{metric}" + ("" if filtered == "none" else f"/{filtered}")
            metrics.append((_KEY.sub("_", key), float(value)))
    return metrics


def _quality(rows: list[Sample], scored: Mapping[str, int]) -> tuple[dict[str, float], list[str]]:
    """Corpus figures of a rolling task. Its samples hold pairs of log-likelihood in nats and words or bytes."""
    nats = -math.fsum(row["word_perplexity"][0] for row in rows)
    word_count = sum(row["word_perplexity"][1] for row in rows)
    byte_count = sum(row["byte_perplexity"][1] for row in rows)
    quality = {
        "quality/word_ppl": _exp(nats / word_count),
        "quality/bits_per_byte": nats / byte_count / math.log(2),
        "quality/nats": nats,
        "quality/words": float(word_count),
        "quality/bytes": float(byte_count),
        "quality/documents": float(len(rows)),
    }
    if scored.get("requests") != len(rows) or not scored["tokens"]:
        return quality, ["no quality/token_ppl: some documents were not scored here but read from the cache"]
    quality["quality/tokens"] = float(scored["tokens"])
    quality["quality/token_ppl"] = _exp(nats / scored["tokens"])
    return quality, []


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _datasets(results: Results, samples: Samples) -> list[DatasetFacts]:
    facts = []
    for task, rows in samples.items():
        config = results["configs"].get(task, {})
        path, configuration = config.get("dataset_path"), config.get("dataset_name")
        hub = f"hub:{path}:{configuration}" if configuration else f"hub:{path}"
        local = config.get("custom_dataset") or path in _FILES
        source = f"local:{task}" if local else hub
        documents = {row["doc_id"]: row["doc_hash"] for row in rows}
        digest = hashlib.sha256("".join(documents[key] for key in sorted(documents)).encode()).hexdigest()[:16]
        split = config.get("test_split") or config.get("validation_split") or ""
        facts.append(DatasetFacts(task, str(results["versions"].get(task)), source, str(split), len(documents), digest))
    return facts
