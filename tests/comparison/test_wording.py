"""The sentences of a verdict: what pays where, what it costs, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from moe_eval.comparison import wording
from moe_eval.records.labels import Status
from tests.doubles import comparisons as made
from tests.doubles.comparisons import ABOVE, BELOW, NOTHING_TO_GAIN, QUALITY, WIDE, decide, shape, traced

LARGE = "(1.20x, 1.10 to 1.30)"  # ABOVE in words
PRICE = "The change in quality is +0.40 % perplexity (+0.10 to +0.70)."


@pytest.mark.parametrize(
    ("interval", "sentences"),
    [
        ((ABOVE,), f"fp8 pays at batch 1 {LARGE}. {PRICE}"),
        (
            (NOTHING_TO_GAIN, ABOVE),
            f"fp8 pays from batch 8 on {LARGE}. "
            f"At batch 1 it does not pay (1.00x, 0.97 to 1.03). The interval holds 1. {PRICE}",
        ),
        (
            (ABOVE, (1.5, 1.4, 1.6)),
            f"fp8 pays at every batch size measured, from batch 1 on {LARGE}. "
            f"The gain is largest at batch 8 (1.50x, 1.40 to 1.60). {PRICE}",
        ),
        (
            (ABOVE, WIDE, ABOVE),
            f"fp8 pays at batch 1 {LARGE}, at batch 32 {LARGE}. "
            f"At batch 8 the result is open (1.02x, 0.90 to 1.16). {PRICE}",
        ),
        (
            (BELOW, ABOVE),
            f"fp8 does not pay at every batch size. It pays from batch 8 on {LARGE}. "
            f"At batch 1 it is slower (0.80x, 0.70 to 0.90). {PRICE}",
        ),
        ((WIDE,), f"fp8 may pay or not. At batch 1 the result is open (1.02x, 0.90 to 1.16). {PRICE}"),
        (
            (NOTHING_TO_GAIN,),
            f"fp8 does not pay. At batch 1 it does not pay (1.00x, 0.97 to 1.03). The interval holds 1. {PRICE}",
        ),
        (((1.0071, 1.001, 1.015),), f"fp8 pays at batch 1 (1.007x, 1.001 to 1.015). {PRICE}"),
        (
            ((1.0031, 1.001, 1.005),),
            "fp8 does not pay. At batch 1 it does not pay (1.003x, 1.001 to 1.005). "
            f"The ratio may be 1 with 0.5 % of difference between two processes allowed for. {PRICE}",
        ),
    ],
)
def test_sentences(interval: Sequence[tuple[float, float, float]], sentences: str) -> None:
    rows = [shape(batch, ratio) for batch, ratio in zip((1, 8, 32), interval, strict=False)]
    assert decide(rows).sentence == sentences
    assert decide(rows, quality=None).sentence == sentences.replace(PRICE, "Quality was not measured.")
    made_up = decide(rows, quality=replace(QUALITY, random_weights=True)).sentence
    assert made_up == sentences.replace(PRICE, "Quality was not judged: the weights are random.")
    flagged = decide(rows, quality=replace(QUALITY, flag="implausible: it is better")).sentence
    assert flagged == f"{sentences} Implausible: it is better."


def test_shapes_of_one_batch_size_are_told_by_their_name() -> None:
    rows = [shape(8, ABOVE), replace(shape(8, WIDE), name="b8_i9_o9")]
    assert decide(rows).sentence.startswith("fp8 pays at b8_i512_o256 (1.20x")
    assert "At b8_i9_o9 the result is open" in decide(rows).sentence


def test_a_command_prints_every_verdict_with_its_reason_and_what_would_settle_it() -> None:
    open_pair = decide([traced(1, WIDE, {"expert_gemm": -1.0}, 0.25)])
    lines = wording.summary(made.comparison(open_pair, decide([shape(1, ABOVE)]))).splitlines()
    assert [line.partition(":")[0].strip() for line in lines] == ["Verdict", "Because", "Next", "Verdict"]
    assert lines[0] == f"Verdict: {open_pair.sentence}"
    assert lines[2] == f"  Next: {open_pair.settled_by}"
    assert "one arm alone" in wording.summary(made.comparison())


def test_emulated_arms_are_judged_by_quality_alone() -> None:
    emulated = {"fp8": {"emulated": True}}
    for rows in ([], [shape(1, ABOVE)]):
        pair = decide(rows, of_arms=emulated)
        assert pair.verdict == "inconclusive"
        assert pair.sentence == (
            f"Inconclusive, quality only. {PRICE} fp8 is emulated, which says nothing about speed."
        )
        assert pair.settled_by == "Run fp8 on an engine that has it natively."
    single = decide([], quality=replace(QUALITY, ln_ppl_ratio=None), of_arms=emulated)
    assert "+0.40 % perplexity (no interval)" in single.sentence


def test_what_is_missing_is_named() -> None:
    failed = {"fp8": {"status": Status.FAILED, "error": "out of memory."}}
    pair = decide([], of_arms=failed)
    assert pair.sentence == f"Inconclusive, quality only. {PRICE} fp8 failed (out of memory)."
    skipped = {"fp8": {"status": Status.SKIPPED, "error": "needs SM100"}}
    nothing = decide([], quality=None, of_arms=skipped)
    assert nothing.sentence == "Inconclusive: nothing is known of fp8 against bf16. fp8 was left out (needs SM100)."
    assert decide([]).settled_by == "Run moe-eval perf with both arms."
