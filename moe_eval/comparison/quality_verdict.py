"""What a quality comparison comes to: rules over its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from moe_eval.comparison.comparable import engine, scored
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import QualityComparison
from moe_eval.records.verdicts import QualityVerdict

# An arm outside this band is a wrong checkpoint, tokenizer, scale or kernel, and no matter of precision. Every honest
# arm here is far inside: NVFP4 in all layers of the shipped model, small and so the worst to round, is at 1.11 times
# the perplexity and 77 % agreement (docs/results/precisions.md). NVFP4 of large models is at 1.01 to 1.04 times.
MOST_PPL_RATIO = 2.0  # in either direction
LEAST_TOP1 = 0.7


def broken(reference: ArmRecords, candidate: ArmRecords, quality: QualityComparison) -> list[str]:
    """Why an arm is broken, a clause each. Empty where none is, and where random weights make every score worthless."""
    return [] if quality.random_weights else list(_broken(reference, candidate, quality))


def _broken(reference: ArmRecords, candidate: ArmRecords, quality: QualityComparison) -> Iterator[str]:
    for arm in (reference, candidate):
        figures, facts = scored(arm.quality), engine(arm.quality)
        perplexity = figures.perplexity if figures else None
        if not perplexity or not math.isfinite(perplexity):
            yield f"the perplexity of {arm.name} is no number"
        elif facts is not None and perplexity > facts.vocabulary:
            yield (
                f"the perplexity of {arm.name} is {perplexity:,.0f}, worse than a guess among the {facts.vocabulary:,} "
                "tokens of its vocabulary"
            )
    if quality.ppl_change is not None and not 1 / MOST_PPL_RATIO <= 1 + quality.ppl_change <= MOST_PPL_RATIO:
        yield f"the perplexity of {candidate.name} is {1 + quality.ppl_change:.3g} times that of {reference.name}"
    if quality.divergence is not None and quality.divergence.same_top1 < LEAST_TOP1:
        agreement = f"{100 * quality.divergence.same_top1:.1f} %"
        yield f"{candidate.name} agrees with {reference.name} on only {agreement} of the most probable tokens"


def decide(quality: QualityComparison, *, is_broken: bool) -> QualityVerdict:
    """The verdict. A cost counts where the whole interval is above the noise floor, and none where none of it is."""
    if quality.random_weights:
        return QualityVerdict.NOT_JUDGED
    if is_broken:
        return QualityVerdict.BROKEN
    ratio = quality.ln_ppl_ratio
    if ratio is None:
        return QualityVerdict.NOT_JUDGED
    if ratio.low > quality.largest_noise:
        return QualityVerdict.COSTS
    return QualityVerdict.NO_COST if ratio.high <= quality.largest_noise else QualityVerdict.OPEN
