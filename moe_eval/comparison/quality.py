"""What an arm costs in quality against another one, by the scores of every token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval import stats
from moe_eval.checkpoint.precision import DTYPE_OF
from moe_eval.comparison import quality_verdict, quality_wording
from moe_eval.comparison.comparable import engine, is_one_run, scored
from moe_eval.errors import UsageError
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import QualityComparison
from moe_eval.records.quality import QualityRecord

if TYPE_CHECKING:
    from moe_eval.evaluators.quality import Scores

CALIBRATED = (
    "Its static scales were calibrated on articles of the data set that is scored, so other text may cost more."
)
RANDOM = "The weights are random, so no score says anything of the checkpoint."
_LARGEST_LN_RATIO = 700.0  # float64 ends at exp(709)
_PLAIN = QualityComparison(None, None, no_interval="The scores of the tokens are not at hand.")


def load_scores(file: Path) -> Scores:
    """The scores of an arm's tokens, see Scores.load."""
    from moe_eval.evaluators.quality import Scores

    return Scores.load(file)


def compare(
    reference: ArmRecords, candidate: ArmRecords, load: Callable[[Path], Scores] = load_scores
) -> QualityComparison | None:
    """Perplexity and divergence of an arm against another. None where they did not score the same windows.

    By the arrays beside the records, else by what was computed before of arms of one run, else the plain change of
    perplexity.

    Args:
        load: reads arrays, those of the reference again for every arm.

    Raises:
        UsageError: the arrays are damaged.
    """
    first, second = reference.quality, candidate.quality
    figures = scored(first), scored(second)
    if first is None or second is None or figures[0] is None or figures[1] is None:
        return None
    if figures[0].dataset_digest != figures[1].dataset_digest:
        return None
    before, after = figures[0].perplexity, figures[1].perplexity
    noise_floor = _noise_floor(first, second)
    one_run = is_one_run(first, second)
    files = reference.arrays, candidate.arrays
    if files[0] and files[1]:
        comparison = of_scores(load(files[0]), load(files[1]), noise_floor)
    else:
        comparison = (candidate.compared.get(reference.name) if one_run else None) or _PLAIN
    ratio = _finite(comparison.ln_ppl_ratio)
    random_weights = any(facts is not None and facts.weights == "random" for facts in map(engine, (first, second)))
    # that a higher precision scores better than a lower one is nothing to look into
    flag = comparison.flag if _bits(candidate.precision) < _bits(reference.precision) else None
    plain_change = after / before - 1 if before and after else None
    compared = QualityComparison(
        ln_ppl_ratio=ratio,
        ppl_change=math.exp(ratio.value) - 1 if ratio else plain_change,
        divergence=comparison.divergence,
        noise_floor=noise_floor,
        random_weights=random_weights,
        flag=RANDOM if random_weights else flag,
        calibration=CALIBRATED if _is_calibrated_on_text(second) else None,
        no_interval=comparison.no_interval or (None if ratio else "The ratio of perplexities is no number."),
        run_id=first.origin.run_id if one_run else None,
    )
    broken = quality_verdict.broken(reference, candidate, compared)
    verdict = quality_verdict.decide(compared, is_broken=bool(broken))
    compared = replace(compared, verdict=verdict)
    has_more_text = figures[1].num_chunks < figures[1].of_chunks
    return replace(compared, sentence=quality_wording.sentence(compared, broken, has_more_text=has_more_text))


def _bits(precision: str) -> int:
    """Bits of the experts' weights, roughly: what is lower costs quality."""
    return 16 if precision in DTYPE_OF else 4 if precision.startswith("nvfp4") else 8


def _finite(ratio: stats.Estimate | None) -> stats.Estimate | None:
    return ratio if ratio and all(abs(value) < _LARGEST_LN_RATIO for value in vars(ratio).values()) else None


def _noise_floor(*records: QualityRecord) -> stats.Estimate | None:
    """ln(perplexity ratio) of two passes of one arm that differ in batch size alone."""
    floors = [record.noise_floor.ln_ppl_ratio for record in records if record.noise_floor]
    return next(filter(None, floors), None)


def _is_calibrated_on_text(record: QualityRecord) -> bool:
    """Whether static scales were calibrated on the data set that was scored."""
    facts = engine(record)
    calibration = facts.arguments.get("calibration") if facts else None
    return record.figures is not None and str(calibration).endswith(f" of {record.figures.dataset}")


def of_scores(reference: Scores, candidate: Scores, noise_floor: stats.Estimate | None) -> QualityComparison:
    """Two arms' scores of the same windows, flagged where implausible, whichever precision is the lower one.

    Args:
        noise_floor: ln(perplexity ratio) by batching alone. None where not measured.

    Raises:
        UsageError: they did not score the same windows.
    """
    from moe_eval.evaluators import quality as evaluator

    if reference.digest != candidate.digest:
        raise UsageError(
            "The two arms did not score the same windows. Give both the same data set, tokenizer and lengths."
        )
    divergence = evaluator.compare(reference, candidate)
    comparison = QualityComparison(
        ln_ppl_ratio=None,
        ppl_change=None,
        divergence=divergence if math.isfinite(divergence.mean) else None,
        noise_floor=noise_floor,
    )
    try:
        ratio = stats.ln_ratio(reference.by_document(), candidate.by_document())
    except UsageError as error:
        return replace(comparison, no_interval=str(error))
    noise = comparison.largest_noise if noise_floor else None
    flag = stats.implausible_gain(ratio, noise) if math.isfinite(ratio.high) else None
    return replace(comparison, ln_ppl_ratio=ratio, flag=flag)
