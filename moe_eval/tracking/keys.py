"""The one schema of metric keys: records as numbers, the same names for every precision. Units are in the names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord

_QUALITY = {"perplexity": "token_ppl", "word_ppl": "word_ppl", "bits_per_byte": "bits_per_byte"}
_DIVERGENCE = {"mean": "kld_mean", "median": "kld_median", "p99": "kld_p99", "same_top1": "top1_agreement"}


def bounded(key: str, found: Mapping[str, Any] | None, value: str) -> dict[str, float]:
    """A figure and, where it has one, the bounds of its interval: KEY, KEY_low, KEY_high."""
    if found is None:
        return {}
    bounds = {f"{key}_{name}": found.get(name) for name in ("low", "high")}
    return {key: found[value], **{name: bound for name, bound in bounds.items() if bound is not None}}


def speed(shape: str, metrics: Mapping[str, Mapping[str, Any] | None]) -> dict[str, float]:
    """Figures of a shape: speed/SHAPE/NAME."""
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        found |= bounded(f"speed/{shape}/{name}", metric, "median")
    return found


def of_perf(record: Mapping[str, Any]) -> dict[str, float]:
    """A record of `moe-eval perf`: figures, the speed-up over the reference, experts touched."""
    found: dict[str, float] = {}
    for row in record.get("shapes", ()):
        found |= speed(row["name"], row["metrics"])
        versus = row["versus_reference"]
        if versus is None and record["status"] == "finished":  # the reference itself
            found |= dict.fromkeys((f"speed/{row['name']}/speedup{end}" for end in ("", "_low", "_high")), 1.0)
        elif versus is not None and versus["fair"] is not False:
            found |= bounded(f"speed/{row['name']}/speedup", versus["e2e_ms"], "value")
        if row["experts_per_layer_step"] is not None:
            found[f"fairness/{row['name']}/experts_per_layer_step"] = row["experts_per_layer_step"]
    return found


def of_ppl(record: Mapping[str, Any]) -> dict[str, float]:
    """A record of `moe-eval ppl`: the arm's own figures, and those against the reference."""
    found = {f"quality/{key}": record[name] for name, key in _QUALITY.items() if record.get(name) is not None}
    found |= bounded("quality/ln_ppl_ratio", record.get("ln_ppl_ratio"), "value")
    divergence = record.get("divergence") or {}
    return found | {f"quality/{key}": divergence[name] for name, key in _DIVERGENCE.items() if name in divergence}


def of_kernels(record: KernelsRecord) -> dict[str, float]:
    """A record of the kernels evaluator: kernels/SHAPE/PHASE/NAME."""
    metrics = {f"kernels/{record.shape}/{key}": value for key, value in kernels_record.figures(record).items()}
    if record.phases and record.profiler_overhead is not None:
        metrics[f"kernels/{record.shape}/profiler_overhead"] = record.profiler_overhead
    return metrics


def aligned(arms: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """The same keys for every arm, NaN where one has no such figure: a tracker's compare view then lines up."""
    found = [dict(each) for each in arms]
    keys = sorted({key for each in found for key in each})
    return [{key: each.get(key, math.nan) for key in keys} for each in found]
