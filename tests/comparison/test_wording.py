"""The sentences of a verdict: what pays where, what is worse, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.comparison import ratio_wording, verdict_wording
from moe_eval.records.comparison import ComparedArm
from moe_eval.records.labels import Status
from moe_eval.records.ratios import SpeedRatios
from tests.doubles import comparisons as made
from tests.doubles.comparisons import ABOVE, BELOW, NO_GAIN, QUALITY, TWO_RUNS, WIDE, decide, ratio, shape, traced

LARGE, OPEN, SAME, SMALL = (
    "1.20x (1.10 to 1.30)",
    "1.02x (0.90 to 1.16)",
    "1.0000x (0.9950 to 1.0050)",
    "0.80x (0.70 to 0.90)",
)
PRICE = "Quality costs a little."


@pytest.mark.parametrize(
    ("interval", "sentences"),
    [
        ((ABOVE,), f"fp8 pays at batch 1, end to end: {LARGE}."),
        (
            (NO_GAIN, ABOVE),
            f"fp8 pays at batch 8, end to end: {LARGE}. It makes no worthwhile difference at batch 1: {SAME}.",
        ),
        (
            (ABOVE, ABOVE),
            f"fp8 pays at every batch size measured, end to end: {LARGE} at batch 1, {LARGE} at batch 8.",
        ),
        (
            (WIDE, ABOVE, ABOVE),
            f"fp8 pays from batch 8 on, end to end: {LARGE} at batch 8, {LARGE} at batch 32. "
            f"The result is open at batch 1: {OPEN}.",
        ),
        (
            (ABOVE, WIDE, ABOVE),
            f"fp8 pays at batch 1 and at batch 32, end to end: {LARGE} at batch 1, {LARGE} at batch 32. "
            f"The result is open at batch 8: {OPEN}.",
        ),
        ((BELOW, ABOVE), f"fp8 is slower at batch 1, end to end: {SMALL}. It pays at batch 8: {LARGE}."),
        ((WIDE,), f"Whether fp8 pays at batch 1, end to end, is open: {OPEN}."),
        ((NO_GAIN,), f"fp8 makes no worthwhile difference at batch 1, end to end: {SAME}."),
    ],
)
def test_sentences(interval: Sequence[tuple[float, float, float]], sentences: str) -> None:
    rows = [_certain(shape(batch, times)) for batch, times in zip((1, 8, 32), interval, strict=False)]
    assert decide(rows, quality=replace(QUALITY, sentence=PRICE)).sentence == f"{sentences} {PRICE}"
    unmeasured = f"{sentences} Quality was not measured on both sides."
    assert decide(rows, quality=None).sentence == unmeasured
    two_runs = decide(rows, TWO_RUNS, quality=replace(QUALITY, sentence=PRICE)).sentence
    assert two_runs.startswith(f"{sentences} The arms are of two runs, so 5 % are allowed for")


def _certain(row: object) -> object:
    """The shape with its end-to-end ratio alone, so sure that Holm's procedure confirms it."""
    times = row.speed.e2e_ms  # type: ignore[attr-defined]
    return replace(row, speed=SpeedRatios(replace(times, df=1000.0, error=1e-3)))  # type: ignore[type-var]


def test_shapes_of_one_batch_size_are_told_by_their_name() -> None:
    rows = [shape(8, ABOVE), replace(shape(8, WIDE), name="b8_i9_o9")]
    sentence = decide([_certain(row) for row in rows]).sentence
    assert sentence.startswith("fp8 pays at b8_i512_o256, end to end: 1.20x")
    assert "The result is open at b8_i9_o9: 1.02x" in sentence


def test_everything_that_is_worse_is_named() -> None:
    times = SpeedRatios(
        e2e_ms=ratio(*ABOVE), ttft_ms=ratio(0.78, 0.77, 0.79), tpot_ms=ratio(*WIDE), j_per_tok=ratio(*BELOW)
    )
    heavier = {"bf16": {"weights_gib": 10.0}, "fp8": {"weights_gib": 12.0}}
    sentence = decide([replace(shape(1, ABOVE), speed=times)], of_arms=heavier).sentence
    assert "Worse is its time to first token: 0.780x (0.770 to 0.790) at batch 1." in sentence
    assert "Worse is its energy per token: 0.80x (0.70 to 0.90) at batch 1." in sentence
    assert "Its weights take more memory: 12.0 GiB, and 10.0 in bf16." in sentence
    small = decide([shape(1, ABOVE)], of_arms={"bf16": {"weights_gib": 0.01}, "fp8": {"weights_gib": 0.02}}).sentence
    assert "more memory" not in small, "both would read as 0.0"
    assert "time per output token" not in sentence


@given(st.floats(0.5, 2), st.floats(1e-5, 0.5))
def test_digits_show_the_interval(value: float, half: float) -> None:
    """Two significant digits of the width, and an end never reads as a bound that it is not."""
    low, high = value * math.exp(-half), value * math.exp(half)
    digits = ratio_wording.interval_digits(low, high, (1.0, 1.01))
    unit = 10.0**-digits
    assert digits == 6 or (high - low) >= 10 * unit * 0.99
    for end in (low, high):
        for bound in (1.0, 1.01):
            assert digits == 6 or end == bound or round(end, digits) != bound
    plain = ratio_wording.interval_digits(low, high)
    assert plain in (0, 6) or 9.9 <= (high - low) * 10**plain < 100.1


def test_a_command_prints_every_verdict_with_its_reason_and_what_would_settle_it() -> None:
    open_pair = decide([traced(1, WIDE, {"expert_gemm": -1.0}, 0.25)])
    lines = verdict_wording.summary(made.comparison(open_pair, decide([shape(1, ABOVE)]))).splitlines()
    assert [line.strip().split()[0].strip(":") for line in lines] == ["fp8", "Because", "Next", "fp8"]
    assert lines[0] == f"fp8: {open_pair.sentence}"
    assert lines[2] == f"  Next: {open_pair.settled_by}"
    alone = made.comparison(arms=(ComparedArm("bf16", "bf16", Status.FINISHED),))
    assert verdict_wording.summary(alone) == "bf16 was measured alone, and there is nothing to compare it with."


def test_emulated_arms_are_judged_by_quality_alone() -> None:
    emulated = {"fp8": {"emulated": True}}
    for rows in ([], [shape(1, ABOVE)]):
        decided = decide(rows, quality=replace(QUALITY, sentence=PRICE), of_arms=emulated)
        assert decided.verdict == "open"
        assert decided.sentence == (
            f"Quality only, the speed of fp8 is open. {PRICE} fp8 is emulated, which says nothing about speed."
        )
        assert decided.settled_by == "Run fp8 on an engine that has it natively."


def test_what_is_missing_is_named() -> None:
    failed = {"fp8": {"status": Status.FAILED, "error": "out of memory."}}
    decided = decide([], quality=replace(QUALITY, sentence=PRICE), of_arms=failed)
    assert decided.sentence == f"Quality only, the speed of fp8 is open. {PRICE} fp8 failed (out of memory)."
    skipped = {"fp8": {"status": Status.SKIPPED, "error": "needs SM100"}}
    nothing = decide([], quality=None, of_arms=skipped)
    assert nothing.sentence == "Open: nothing is known of fp8 against bf16. fp8 was left out (needs SM100)."
    assert decide([]).settled_by == "Run moe-eval perf with both arms."
