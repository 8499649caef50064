"""The reason of a verdict: of which shape it speaks, and what it says of decode and prefill."""

from __future__ import annotations

import itertools
from dataclasses import replace

from moe_eval.comparison.because import because, deciding
from moe_eval.records.comparison import Pair
from moe_eval.records.kernels import TraceSource
from moe_eval.records.ratios import Interval, Sides
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import Verdict
from tests.doubles import comparisons as made
from tests.doubles import recorded_arms
from tests.doubles.comparisons import ABOVE, BELOW, RULES, WIDE, Known, decide, shape, traced

GAIN = {"expert_gemm": -1.0, "quant_dequant": 0.5, "routing_permute": 0.1}
# what is said of traced(1, WIDE, GAIN, 0.25), but for the place and the measured ratio
REASON = (
    "the expert GEMMs are 40 % of a {} step of bf16 (5.00 ms). Those of fp8 take 1.00 ms less. "
    "Taken back: quantisation 0.50 ms (50 %), permutation 0.10 ms (10 %), gaps between kernels 0.25 ms (25 %). "
    "The traced step is 1.03x as fast (1.10x by kernels alone). Without a profiler it is "
)


def reason(*shapes: ShapeComparison) -> str:
    return because(made.pair(shapes), shapes, RULES)


def with_phases(timed: ShapeComparison, **ratios: float | None) -> ShapeComparison:
    """The shape with its decode step as every one of these phases, and the ratio measured of each."""
    decode = (timed.kernels or {})["decode"]
    return replace(timed, kernels={name: replace(decode, measured_ratio=ratio) for name, ratio in ratios.items()})


def test_the_reason_is_in_the_kernels_of_a_decode_step() -> None:
    assert reason(traced(1, WIDE, GAIN, 0.25)) == f"At batch 1 {REASON.format('decode')}1.02x (0.90 to 1.16)."
    saved = reason(traced(32, ABOVE, {"expert_gemm": -1.5, "attention": -0.2}, 0.0))
    assert "Saved: all other kernels 0.20 ms." in saved
    half = reason(traced(1, WIDE, {"expert_gemm": -0.5, "quant_dequant": 0.1}, 0.0))
    assert "Taken back: quantisation 0.10 ms (20 %)." in half
    worse = reason(traced(1, BELOW, {"expert_gemm": 0.5, "quant_dequant": 0.4}, 0.0))
    assert "take 0.50 ms more. Added: quantisation 0.40 ms." in worse
    assert reason(shape(1, ABOVE)) == reason() == ""
    assert decide([traced(1, WIDE, GAIN, 0.25)]).because == reason(traced(1, WIDE, GAIN, 0.25))


INTERVALS: tuple[Known, ...] = (
    (0.6, 0.5, 0.7),
    BELOW,
    WIDE,
    (1.02, None, None),
    (1.5, None, None),
    ABOVE,
    (1.6, 1.5, 1.7),
)


def test_the_slowest_decides_else_the_fastest_else_the_smallest() -> None:
    rank = {INTERVALS[0]: 4, BELOW: 3, INTERVALS[6]: 2, ABOVE: 1}
    for intervals in itertools.product(INTERVALS, repeat=3):
        shapes = [shape(batch, interval) for batch, interval in zip((1, 8, 32), intervals, strict=True)]
        first = max(range(3), key=lambda at: (rank.get(intervals[at], 0), -at))
        assert deciding(shapes, RULES) is shapes[first]
        assert deciding(shapes[::-1], RULES) in [entry for entry in shapes if entry.speed == shapes[first].speed]


def test_nothing_decides_without_shapes() -> None:
    assert deciding([], RULES) is None
    assert deciding([shape(8, None), untimed := shape(1, None)], RULES) is untimed


def test_the_reason_speaks_of_the_shape_that_decides_or_says_that_it_was_not_traced() -> None:
    small, large = traced(1, WIDE, GAIN, 0.25), traced(8, ABOVE, GAIN, 0.25)
    assert reason(small, large).startswith("At batch 8 the expert GEMMs")
    assert reason(small, large, traced(32, BELOW, GAIN, 0.25)).startswith("At batch 32 the expert GEMMs")
    assert reason(small, shape(8, ABOVE)).startswith(
        "Not both arms were traced at batch 8, which decides. At batch 1 the expert GEMMs"
    )
    barred = replace(large, verdict=Verdict.NOT_COMPARABLE)
    assert reason(small, barred).startswith("At batch 1 the expert GEMMs")
    assert reason(barred) == ""


def test_kernels_that_do_not_explain_the_measurement_are_no_reason() -> None:
    steady = traced(64, ABOVE, GAIN, 0.0)  # kernels predict 4.5 / 4.1 = 1.10x, steps 5 / 4.6 = 1.09x
    unexplained = "At batch 64 the kernels do not explain the decode: they predict 1.10x, the traced steps 1.09x, and "
    assert reason(with_phases(steady, decode=0.65)) == (
        f"{unexplained}0.65x was measured. Kernels fill at least 89 % of both steps, so the timed runs may not be as "
        "the traced."
    )
    waiting = with_phases(traced(64, ABOVE, GAIN, 9.5), decode=3.0)
    # 4.1 of 14.1 ms run
    assert reason(waiting) == (
        "At batch 64 the kernels do not explain the decode: they predict 1.10x, the traced steps 0.35x, and 3.00x was "
        "measured. Nothing runs for 71 % of the step of fp8 (bf16: 10 %), so the host may be what is waited for."
    )
    assert "do not explain" not in reason(with_phases(steady, decode=1.2))


def test_two_predictions_that_read_the_same_are_told_once() -> None:
    timed = with_phases(traced(64, ABOVE, GAIN, 0.0), decode=0.65)
    decode = replace((timed.kernels or {})["decode"], predicted_ratio_busy=1.461, predicted_ratio_step=1.459)
    assert "they predict 1.46x and 0.65x was measured." in reason(replace(timed, kernels={"decode": decode}))


def test_prefill_has_a_word_where_the_first_token_is_later_or_decides() -> None:
    plain = with_phases(traced(1, ABOVE, GAIN, 0.25), decode=None, prefill=None)
    decode, prefill = (f"At batch 1 {REASON.format(phase)}" for phase in ("decode", "prefill"))
    assert reason(plain) == f"{decode}1.20x (1.10 to 1.30)."

    later = replace(plain, speed=replace(plain.speed, ttft_ms=made.ratio(0.65, 0.6, 0.7)))
    assert reason(later) == f"{decode}1.20x (1.10 to 1.30). {prefill}0.65x (0.60 to 0.70)."
    open_ttft = replace(plain, speed=replace(plain.speed, ttft_ms=made.ratio(0.95, 0.8, 1.1)))
    assert reason(open_ttft) == reason(plain)

    def by_times(first_ms: float) -> ShapeComparison:
        figures = {
            "ttft_ms": Sides(Interval(50.0), Interval(first_ms)),
            "e2e_ms": Sides(Interval(100.0), Interval(80.0)),
        }
        return replace(plain, figures=figures)

    assert prefill in reason(by_times(39.0))  # 11 of the 20 ms that are gained
    assert reason(by_times(41.0)) == reason(plain)

    host_bound = with_phases(later, decode=1.2, prefill=0.65)
    assert reason(host_bound).startswith(
        f"{decode}1.20x (1.10 to 1.30). At batch 1 the kernels do not explain the prefi"
    )


def test_traces_of_two_profilers_are_no_reason_and_say_so() -> None:
    def compared(**formats: str) -> Pair:
        arms = []
        for name, format_ in formats.items():
            record = replace(recorded_arms.kernels(name), source=TraceSource(format_))
            timed = recorded_arms.arm(name, {1: [[2.0, 2.1]] * 4})
            arms.append(replace(timed, kernels={record.shape or "": record}))
        return recorded_arms.pair(*arms)

    apart = compared(bf16="nsys sqlite", fp8="torch profiler")
    assert apart.because == (
        "The kernels are not compared: bf16 was traced by Nsight Systems and fp8 by torch's profiler. Trace both with "
        "one --profiler."
    )
    assert [(row.kernels, row.breakdown) for row in apart.shapes] == [(None, None)]
    alike = compared(bf16="nsys sqlite", fp8="nsys stats cuda_gpu_trace")
    assert [row.kernels is None for row in alike.shapes] == [False]
    assert "not compared" not in alike.because
