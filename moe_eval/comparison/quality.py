"""What an arm costs in quality against another one, by their records or by the scores of every token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.precision import DTYPE_OF
from moe_eval.comparison import comparable
from moe_eval.comparison.comparable import measured
from moe_eval.errors import UsageError
from moe_eval.evaluators import quality_record
from moe_eval.records.by_arm import ArmResults

_MOST = 700.0  # of ln(perplexity): float64 ends at exp(709)
_PLAIN: Mapping[str, Any] = {
    "ln_ppl_ratio": None,
    "no_interval": "the scores of the tokens are not at hand",
    "divergence": dict.fromkeys(("mean", "p99", "same_top1")),
    "flag": None,
}


def quality(reference: ArmResults, other: ArmResults) -> dict[str, Any] | None:
    """Perplexity and divergence of an arm against another.

    The recorded figures where they are of this pair, else made again from the arrays beside the records, else the plain
    change of perplexity.

    Returns:
        `ln_ppl_ratio` (value, error, low, high; None with fewer than two documents, and `no_interval` says so),
        `ppl_change` (0.004 for a perplexity 0.4 % higher), `kld_mean` and `kld_p99` in nats, `same_top1` from 0 to 1,
        `noise_floor` (how far batching alone moves ln(perplexity); None where not measured), `random_weights` and
        `flag`, a sentence where weights are random or a lower precision scores better than can be; `calibration`, one
        where static scales were calibrated on what was scored. Without figures of the pair and without arrays
        `ppl_change` is the only comparison. None where they did not score the same windows.

    Raises:
        UsageError: the arrays are damaged.
    """
    a, b = reference.ppl, other.ppl
    if a is None or b is None or not (measured(a) and measured(b)) or a["dataset_digest"] != b["dataset_digest"]:
        return None
    noise = _noise(a, b)
    found = _recorded(a, b) or _again(reference.arrays, other.arrays, noise) or _PLAIN
    ratio, divergence = found["ln_ppl_ratio"], found["divergence"]
    # NaN was read as None
    if ratio is not None and not all(each is not None and abs(each) < _MOST for each in ratio.values()):
        ratio = None
    lower = _width(other.precision) < _width(reference.precision)
    made_up = any(map(quality_record.of_random_weights, (a, b)))
    return {
        "ln_ppl_ratio": ratio,
        "ppl_change": math.exp(ratio["value"]) - 1 if ratio else b["perplexity"] / a["perplexity"] - 1,
        "kld_mean": divergence["mean"],
        "kld_p99": divergence["p99"],
        "same_top1": divergence["same_top1"],
        "noise_floor": noise,
        "random_weights": made_up,
        # a higher precision is better than a lower one
        "flag": quality_record.RANDOM if made_up else found["flag"] if lower else None,
        "calibration": quality_record.CALIBRATED if quality_record.of_calibration_text(b) else None,
        "no_interval": found["no_interval"] or (None if ratio else "the ratio of perplexities is no number"),
    }


def _width(precision: str) -> int:
    """Bits of the experts' weights, roughly: what is lower costs quality."""
    return 16 if precision in DTYPE_OF else 4 if precision.startswith("nvfp4") else 8


def _noise(*records: Mapping[str, Any]) -> float | None:
    """|ln(perplexity ratio)| of two runs of one arm that differ in batch size alone."""
    for each in records:
        told = each.get("noise_floor")
        ratio = told.get("ln_ppl_ratio") if isinstance(told, Mapping) else None
        if isinstance(ratio, Mapping) and isinstance(ratio.get("value"), (int, float)):
            return abs(float(ratio["value"]))
    return None


def _recorded(a: Mapping[str, Any], b: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the record of the other arm says, where it was compared with this reference in the same run."""
    same = comparable.one_run(a, b) and b.get("reference") == a["precision"]
    return b if same and isinstance(b.get("divergence"), Mapping) else None


def _again(reference: Path | None, other: Path | None, noise: float | None) -> dict[str, Any] | None:
    if reference is None or other is None:
        return None
    from moe_eval.evaluators import perplexity

    return perplexity.compare(_scores(reference), _scores(other), noise)


def _scores(file: Path) -> Any:
    from zipfile import BadZipFile

    from moe_eval.evaluators.perplexity import Scores

    try:
        return Scores.load(file)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UsageError(f"{file} is damaged ({error}); run moe-eval ppl again.") from None
