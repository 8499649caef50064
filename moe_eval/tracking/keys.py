"""The one schema of metric keys: records as numbers, the same names for every precision. Units are in the names.

A figure that an arm does not have has no key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields

from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.quality import QualityRecord
from moe_eval.records.ratios import Ratio
from moe_eval.records.samples import LatencyMetrics, Metric
from moe_eval.records.serving import ServingRecord
from moe_eval.records.tasks import TasksRecord
from moe_eval.records.verdicts import Verdict
from moe_eval.stats import Estimate

# of SpeedRatios and LatencyMetrics: above 1 is better for all of them
RATIOS = {
    "speedup": "e2e_ms",
    "ttft_speedup": "ttft_ms",
    "tpot_speedup": "tpot_ms",
    "energy_ratio": "j_per_tok",
}

_LEAST_SHARE = 0.03  # of a step: less of it is in the artifacts alone
_DERIVED = "prefill_tok_s"  # by ttft_ms, as all arms read the same tokens: in the artifacts alone
_OF_PHASE = ("busy_ms", "idle_ms", "expert_imbalance")  # beside its categories of kernels


def latency_keys(shape_name: str, metrics: LatencyMetrics) -> dict[str, float]:
    """Figures of a shape: latency/SHAPE/NAME."""
    keys: dict[str, float] = {}
    for part in fields(metrics):
        if part.name != _DERIVED:
            keys |= _bounded(f"latency/{shape_name}/{part.name}", getattr(metrics, part.name))
    return keys


def of_latency(record: LatencyRecord, comparison: ComparisonRecord | None = None) -> dict[str, float]:
    """Figures, the ratios over the reference, and last the experts touched.

    Args:
        comparison: that knows this arm.
    """
    keys: dict[str, float] = {}
    gpus = record.labels.engine.gpus if record.labels.engine else 0
    for shape in record.shapes:
        keys |= latency_keys(shape.name, shape.metrics)
        if gpus and (rate := shape.metrics.output_tok_s) is not None:
            keys[f"latency/{shape.name}/output_tok_s_per_gpu"] = rate.median / gpus
        if comparison is not None and comparison.reference == record.arm and record.status is Status.FINISHED:
            for name, figure in RATIOS.items():
                if getattr(shape.metrics, figure) is not None:
                    keys |= dict.fromkeys((f"latency/{shape.name}/{name}{end}" for end in ("", "_low", "_high")), 1.0)
    pair = _pair(comparison, record.arm)
    for compared in pair.shapes if pair is not None and pair.verdict is not Verdict.BROKEN else ():
        if compared.verdict is not Verdict.NOT_COMPARABLE:
            for name, figure in RATIOS.items():
                keys |= _bounded(f"latency/{compared.name}/{name}", getattr(compared.speed, figure))
    touched = {f"fairness/{shape.name}/experts_per_layer_step": shape.experts_per_layer_step for shape in record.shapes}
    return keys | _finite(touched)


def of_tasks(record: TasksRecord) -> dict[str, float]:
    """Scores of tasks and groups, as `lm_eval --model trtllm_moe` calls them: harness/TASK/METRIC[/FILTER]."""
    keys: dict[str, float | None] = {}
    results = record.results
    scored = [(task.task, task.metrics) for task in results.tasks] if results else []
    scored += [(group.group, group.metrics) for group in results.groups] if results else []
    for name, metrics in scored:
        for key, metric in metrics.items():
            figure, _, filtered = key.partition(",")
            whole = f"harness/{name}/{figure}" + ("" if filtered == "none" else f"/{filtered}")
            keys[re.sub(r"[^\w.:/ -]", "_", whole)] = metric.score
    return _finite(keys)


def of_serving(record: ServingRecord) -> dict[str, float]:
    """Figures of an arm's server: serving/POINT/NAME."""
    keys: dict[str, float] = {}
    for point in record.points:
        for part in fields(point.metrics):
            keys |= _bounded(f"serving/{point.name}/{part.name}", getattr(point.metrics, part.name))
    return keys


def of_quality(record: QualityRecord, comparison: ComparisonRecord | None = None) -> dict[str, float]:
    """The arm's own figures, and those against the reference.

    Args:
        comparison: that knows this arm.
    """
    keys: dict[str, float | None] = {}
    if (figures := record.figures) is not None:
        keys |= {"quality/token_ppl": figures.perplexity, "quality/word_ppl": figures.word_ppl}
        keys["quality/bits_per_byte"] = figures.bits_per_byte
    pair = _pair(comparison, record.arm)
    cost = None if pair is None else pair.quality
    if cost is not None:
        keys |= _bounded("quality/ln_ppl_ratio", cost.ln_ppl_ratio)
        if (divergence := cost.divergence) is not None:
            keys |= {f"quality/kld_{name}": getattr(divergence, name) for name in ("mean", "median", "p99")}
            keys["quality/top1_agreement"] = divergence.same_top1
    return _finite(keys)


def of_memory(arm: ComparedArm) -> dict[str, float]:
    """What an arm needs on each GPU, and the tokens that fit beside it."""
    return _finite({"memory/weights_gib": arm.weights_gib, "memory/kv_cache_tokens": arm.kv_cache_tokens})


def categories(records: Iterable[KernelsRecord]) -> set[str]:
    """The categories of kernels that take at least 3 % of some phase of some record."""
    phases = [phase for record in records for phase in record.phases.values()]
    return {name for phase in phases for name, time in phase.categories.items() if time.share >= _LEAST_SHARE}


def of_kernels(record: KernelsRecord, important: Collection[str] | None = None) -> dict[str, float]:
    """Kernel times: kernels/SHAPE/PHASE/NAME.

    Args:
        important: the categories that have keys. None for those that matter in this record.
    """
    if not record.phases:
        return {}
    chosen = categories([record]) if important is None else important
    start = f"kernels/{record.shape}" if record.shape else "kernels"
    keys: dict[str, float | None] = {}
    for name, phase in record.phases.items():
        times = {category: time.ms for category, time in phase.categories.items() if category in chosen}
        keys |= {f"{start}/{name}/{category}_ms": ms for category, ms in times.items()}
        keys |= {f"{start}/{name}/{figure}": getattr(phase, figure) for figure in _OF_PHASE}
    return _finite({**keys, f"{start}/profiler_overhead": record.profiler_overhead})


def _pair(comparison: ComparisonRecord | None, arm: str) -> Pair | None:
    """The comparison of this arm with the reference."""
    pairs = comparison.pairs if comparison is not None else ()
    return next((pair for pair in pairs if pair.other == arm), None)


def _bounded(key: str, figure: Metric | Ratio | Estimate | None) -> dict[str, float]:
    """A figure and, where it has one, the bounds of its interval: KEY, KEY_low, KEY_high."""
    if figure is None:
        return {}
    value = figure.median if isinstance(figure, Metric) else figure.value
    return _finite({key: value, f"{key}_low": figure.low, f"{key}_high": figure.high})


def _finite(keys: Mapping[str, float | None]) -> dict[str, float]:
    """The figures that are there and are numbers."""
    return {key: value for key, value in keys.items() if value is not None and math.isfinite(value)}
