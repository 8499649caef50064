"""What a change of precision costs in quality: the verdict and its sentences, from recorded arms."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_eval.comparison import quality_verdict, quality_wording
from moe_eval.comparison.quality import compare
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import QualityComparison
from moe_eval.records.verdicts import QualityVerdict
from moe_eval.stats import Divergence, Estimate
from tests.doubles import recorded_arms as made

COSTS, NO_COST, OPEN = QualityVerdict.COSTS, QualityVerdict.NO_COST, QualityVerdict.OPEN
BROKEN, NOT_JUDGED = QualityVerdict.BROKEN, QualityVerdict.NOT_JUDGED


def arms(folder: Path, *, noise_floor: bool = True, weights: str = "checkpoint", **change: Any) -> list[ArmRecords]:
    """A reference and an arm whose scores differ by the changes of recorded_arms.scores."""
    both = []
    for name, of in (("bf16", made.scores()), ("fp8", made.scores(**change))):
        of.save(folder / f"ppl_{name}_cpu.npz")
        record = made.quality(name, of, noise_floor=noise_floor, weights=weights)
        both.append(ArmRecords(name, name, quality=record, folder=folder))
    return both


def compared(folder: Path, **change: Any) -> QualityComparison:
    quality = compare(*arms(folder, **change))
    assert quality is not None
    return quality


def percent(low: float, high: float, noise: float | None = None) -> QualityComparison:
    """A change of perplexity by so many per cent, in the middle of its interval."""
    ends = math.log1p(low / 100), math.log1p(high / 100)
    floor = None if noise is None else Estimate(0.0, 0.0, -noise, noise / 2, 4)
    change = math.expm1(sum(ends) / 2)
    return QualityComparison(Estimate(sum(ends) / 2, 0.01, *ends, 4), change, noise_floor=floor)


@pytest.mark.parametrize(
    ("low", "high", "noise", "verdict"),
    [
        (4.22, 7.86, None, COSTS),
        (4.22, 7.86, 0.0002, COSTS),
        (0.01, 0.03, None, COSTS),
        (0.01, 0.03, 0.0002, OPEN),
        (0.01, 0.03, 0.0004, NO_COST),
        (-0.02, 0.03, 0.0004, NO_COST),
        (-0.02, 0.03, 0.0001, OPEN),
        (-0.02, 0.03, None, OPEN),
        (-0.03, -0.02, None, NO_COST),
        (0.0, 0.0, None, NO_COST),
    ],
)
def test_the_interval_is_held_against_the_end_of_the_noise_floor(
    low: float, high: float, noise: float | None, verdict: QualityVerdict
) -> None:
    assert quality_verdict.decide(percent(low, high, noise), is_broken=False) is verdict
    assert quality_verdict.decide(percent(low, high, noise), is_broken=True) is BROKEN
    assert quality_verdict.decide(replace(percent(low, high), random_weights=True), is_broken=True) is NOT_JUDGED


def test_a_cost_comes_with_divergence_and_agreement() -> None:
    estimates = Estimate(0.0123, 7e-4, 0.0108, 0.0138, 9), Estimate(0.961, 0.004, 0.952, 0.970, 9)
    divergence = Divergence(0.0123, 0.005, 0.1, 128, 0.9, 0.961, "capped", *estimates)
    quality = replace(percent(0.12, 0.68, 0.0002), divergence=divergence, verdict=COSTS)
    assert quality_wording.sentence(quality, [], has_more_text=True) == (
        "Quality costs +0.40 % perplexity (+0.12 to +0.68), beyond the noise floor of 0.020 %. "
        "KLD is 0.0123 nats (0.0108 to 0.0138, lower bound). Top-1 agreement is 96.1 % (95.2 to 97.0)."
    )
    exact = replace(quality, divergence=replace(divergence, kind="reference ids"))
    assert "nats (0.0108 to 0.0138)." in quality_wording.sentence(exact, [], has_more_text=True)


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.12, 0.68), "+0.40 % (+0.12 to +0.68)"),
        ((-2.0, 10.0), "+4 % (-2 to +10)"),
        ((0.04, 1.96), "+1.00 % (+0.04 to +1.96)"),
        ((0.0, 0.0), "+0.0 % (+0.0 to +0.0)"),
        ((-0.0013, 0.0005), "-0.0004 % (-0.0013 to +0.0005)"),
    ],
)
def test_ends_have_two_digits_of_their_distance_and_show_their_side_of_0(ends: tuple[float, float], text: str) -> None:
    assert quality_wording.bounded(sum(ends) / 2, ends, " %", sign="+") == text


def test_a_cost_of_six_per_cent_is_one(tmp_path: Path) -> None:
    quality = compared(tmp_path, worse=0.0585, spread=0.02)
    assert quality.verdict is COSTS
    assert re.match(r"Quality costs \+6\.0\d* % perplexity \(\+[34]\.\d+ to \+[78]\.\d+\), beyond", quality.sentence)


def test_an_open_cost_says_how_large_it_may_be_and_what_settles_it(tmp_path: Path) -> None:
    quality = compared(tmp_path, worse=0.01, spread=0.02)
    assert quality.verdict is OPEN
    (most,) = re.findall(
        r"No quality cost was found beyond the noise floor of 0\.\d+ %, and it is at most (\S+) %", quality.sentence
    )
    assert float(most) == pytest.approx(100 * math.expm1(quality.ln_ppl_ratio.high), rel=0.1)
    assert f"to {most}). Score more windows (--num_chunks) to settle it." in quality.sentence
    whole = quality_wording.sentence(quality, [], has_more_text=False)
    assert "Score a larger data set to settle it." in whole


def test_no_cost_and_no_noise_floor_are_told(tmp_path: Path) -> None:
    same = compared(tmp_path)
    assert same.verdict is NO_COST
    assert same.sentence.startswith("Quality costs nothing beyond the noise floor of 0.0")
    alone = compared(tmp_path, noise_floor=False, worse=0.05)
    assert alone.verdict is COSTS
    assert "No noise floor was measured." in alone.sentence


def test_a_lower_precision_that_scores_better_costs_nothing_and_is_flagged(tmp_path: Path) -> None:
    quality = compared(tmp_path, worse=-0.05)
    assert quality.verdict is NO_COST
    assert "implausible" in str(quality.flag)
    assert "Implausible: better than the reference by 0.05" in quality.sentence


@pytest.mark.parametrize("factor", [30, 1 / 30, 2.05, 0.48])
def test_a_perplexity_far_from_the_reference_s_is_broken(tmp_path: Path, factor: float) -> None:
    quality = compared(tmp_path, worse=math.log(factor) if abs(math.log(factor)) < 1 else 0.0, spread=0.0)
    if abs(math.log(factor)) > 1:  # the double's top tokens hold no larger change
        reference, arm = arms(tmp_path)
        of = made.scores()
        of = replace(of, logprobs=of.logprobs - np.float32(math.log(factor)))
        of.save(tmp_path / "ppl_fp8_cpu.npz")
        quality = compare(reference, replace(arm, quality=made.quality("fp8", of)))
    assert quality.verdict is BROKEN
    assert f"the perplexity of fp8 is {factor:.3g} times that of bf16" in quality.sentence


def test_a_perplexity_inside_the_band_is_not(tmp_path: Path) -> None:
    assert compared(tmp_path, worse=math.log(1.9)).verdict is COSTS
    assert compared(tmp_path, worse=math.log(0.55)).verdict is NO_COST


@pytest.mark.parametrize(("agreement", "verdict"), [(0.62, BROKEN), (0.68, BROKEN), (0.72, COSTS)])
def test_an_arm_that_answers_otherwise_is_broken(tmp_path: Path, agreement: float, verdict: QualityVerdict) -> None:
    quality = compared(tmp_path, worse=0.05, agreement=agreement)
    assert quality.verdict is verdict
    clause = f"fp8 agrees with bf16 on only {100 * agreement:.1f} % of the most probable tokens"
    assert (clause in quality.sentence) == (verdict is BROKEN)


def test_an_arm_that_guesses_is_broken_whichever_side_it_is(tmp_path: Path) -> None:
    reference, arm = arms(tmp_path)
    for at, name in enumerate(("bf16", "fp8")):
        both = [reference, arm]
        figures = replace(both[at].quality.figures, perplexity=1234.0)
        both[at] = replace(both[at], quality=replace(both[at].quality, figures=figures))
        quality = compare(*both)
        assert quality.verdict is BROKEN
        assert (
            f"the perplexity of {name} is 1,234, worse than a guess among the 1,000 tokens of its vocabulary"
            in quality.sentence
        )


def test_a_perplexity_that_is_no_number_is_broken(tmp_path: Path) -> None:
    reference, arm = arms(tmp_path)
    figures = replace(arm.quality.figures, perplexity=None)
    quality = compare(reference, replace(arm, quality=replace(arm.quality, figures=figures)))
    assert (quality.verdict, "the perplexity of fp8 is no number" in quality.sentence) == (BROKEN, True)


def test_random_weights_and_one_document_are_not_judged(tmp_path: Path) -> None:
    random = compared(tmp_path, worse=3.0, weights="random")
    assert (random.verdict, random.sentence) == (NOT_JUDGED, "Quality was not judged: the weights are random.")
    first, second = arms(tmp_path)
    plain = compare(replace(first, folder=None), replace(second, folder=None))
    assert plain.verdict is NOT_JUDGED
    assert "(no interval). The scores of the tokens are not at hand." in plain.sentence


def test_lists_with_nothing_in_common_are_far_from_the_reference(tmp_path: Path) -> None:
    reference, arm = arms(tmp_path)
    of = made.scores()
    replace(of, top_ids=of.top_ids + 500).save(tmp_path / "ppl_fp8_cpu.npz")
    quality = compare(reference, arm)
    assert quality.divergence.mean > 0.5
    assert (quality.divergence.same_top1, quality.verdict) == (0, BROKEN)
