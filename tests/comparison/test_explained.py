"""Whether kernels explain a measured ratio, against traces whose times are known and those of an H100."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moe_eval.comparison import kernels
from moe_eval.comparison.explained import cause, explains
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.shape_comparison import PhaseChange
from moe_eval.traces.readers import files
from tests.doubles import timeline
from tests.doubles.comparisons import WIDE, traced
from tests.doubles.timeline import Timeline

NAMES = ("bf16", "fp8")
TRACES = Path(__file__).parents[1] / "traces" / "data"
GAPS_NS = 3 * timeline.GAP_NS


def record(gemm_ns: int, wait_ns: int) -> KernelsRecord:
    """Steps of 2 us and one expert GEMM, with a gap after each of the three kernels and a wait of the host."""
    recording = Timeline()
    for _ in range(4):
        recording.run("attention", timeline.FLASH, 1000)
        recording.run("expert_gemm", timeline.MOE, gemm_ns)
        recording.run("sampling", timeline.ARGMAX, 1000)
        recording.clock_ns += wait_ns
    return kernels_record.make("made up", recording.trace(), None)


def change(before: tuple[int, int], after: tuple[int, int], measured: float | None) -> PhaseChange:
    """The difference of two such traces by their GEMM's and their wait's time."""
    records = record(*before), record(*after)
    (phase,) = records[0].phases
    return kernels.changes(*records, NAMES, {phase: measured})[phase]


def predictions(before: tuple[int, int], after: tuple[int, int]) -> tuple[float, float]:
    """By busy time and by whole steps."""
    busy = [gemm_ns + 2000 for gemm_ns, _ in (before, after)]
    steps = [busy_ns + GAPS_NS + wait[1] for busy_ns, wait in zip(busy, (before, after), strict=True)]
    return busy[0] / busy[1], steps[0] / steps[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((200_000, 0), (100_000, 0)),  # both predict about 2x
        ((200_000, 10_000), (100_000, 300_000)),  # kernels 1.99x, steps 0.53x
        ((200_000, 900_000), (190_000, 100_000)),  # kernels 1.05x, steps 3.8x
    ],
)
def test_a_ratio_is_explained_between_the_predictions_and_up_to_15_percent_beyond(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    low, high = sorted(predictions(before, after))
    busy, step = (change(before, after, None).predicted_ratio_busy, change(before, after, None).predicted_ratio_step)
    assert (busy, step) == pytest.approx(predictions(before, after))
    for measured in (low, high, (low * high) ** 0.5, low / 1.149, high * 1.149):
        assert explains(change(before, after, measured)) is True
    for measured in (low / 1.151, high * 1.151, low / 3, high * 3):
        assert explains(change(before, after, measured)) is False
    assert explains(change(before, after, None)) is None


def test_swapping_the_arms_changes_nothing() -> None:
    sides = (200_000, 10_000), (100_000, 300_000)
    for measured in (0.3, 0.45, 0.47, 0.6, 1.0, 2.2, 2.4, 5.0):
        forth, back = change(*sides, measured), change(*sides[::-1], 1 / measured)
        assert explains(forth) == explains(back)
        assert cause(forth, NAMES) == cause(back, NAMES[::-1])


def test_nothing_runs_for_the_share_of_the_step_that_the_host_takes() -> None:
    # 100 us of a step run and 300 us do not, against 10 of 110
    sides = (98_000, 10_000 - GAPS_NS), (98_000, 300_000 - GAPS_NS)
    difference = change(*sides, 3.0)
    assert difference.idle_share == pytest.approx((10 / 110, 300 / 400))
    assert cause(difference, NAMES) == (
        "Nothing runs for 75 % of the step of fp8 (bf16: 9 %), so the host may be what is waited for."
    )
    assert cause(change(*sides[::-1], 0.1), NAMES).startswith("Nothing runs for 75 % of the step of bf16 (fp8: 9 %)")
    assert cause(change(*sides, 1.0), NAMES) == ""
    # waiting is named where without it a step would be more than 1.15 times as fast
    for waiting, is_named in ((1.14, False), (1.16, True)):
        idle_ns = round(100_000 * (waiting - 1)) - GAPS_NS
        assert cause(change((98_000, idle_ns), (98_000, idle_ns), 3.0), NAMES).startswith("Nothing runs") is is_named
    full = change((198_000, 0), (98_000, 0), 0.5)
    assert cause(full, NAMES) == (
        "Kernels fill at least 99 % of both steps, so the timed runs may not be as the traced."
    )


def test_without_times_there_is_neither_a_share_nor_a_cause() -> None:
    (difference,) = (traced(1, WIDE, {}, 0.0).kernels or {}).values()
    untimed = replace(
        difference, step_ms=None, busy_ms=None, predicted_ratio_busy=None, predicted_ratio_step=None, measured_ratio=2.0
    )
    assert (untimed.idle_share, explains(untimed), cause(untimed, NAMES)) == (None, None, "")
    assert replace(difference, step_ms=(0.0, 1.0)).idle_share is None


@pytest.mark.parametrize(
    ("batch", "ttft_ms", "is_explained"),
    [(1, (59.13, 91.17), False), (8, (85.14, 109.68), False), (32, (243.84, 199.59), True)],
)
def test_the_prefill_of_an_h100_is_explained_where_the_host_is_not_waited_for(
    batch: int, ttft_ms: tuple[float, float], is_explained: bool
) -> None:
    """Times to the first token of docs/results/h100.md."""
    records = [kernels_record.make(arm, files.read(TRACES / f"{arm}_b{batch}_i512_o9.json.gz"), None) for arm in NAMES]
    changes = kernels.changes(records[0], records[1], NAMES, {"prefill": ttft_ms[0] / ttft_ms[1]})
    assert explains(changes["prefill"]) is is_explained
    assert ("Nothing runs for" in changes["prefill"].text) is not is_explained
    assert ("The kernels explain it." in changes["prefill"].text) is is_explained
    assert explains(changes["decode"]) is None
