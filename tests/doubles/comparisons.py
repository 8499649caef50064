"""Pairs of arms whose ratios and qualities are set, for the rules of verdicts, gates and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scipy import stats as distributions

from moe_eval.comparison import verdict
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair, PairSchedule, QualityComparison
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Interval, Ratio, Sides, SpeedRatios
from moe_eval.records.shape_comparison import CategoryChange, Fairness, PhaseChange, ShapeComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import Divergence, Estimate

Known = tuple[float, float | None, float | None]
TURNS = PairSchedule("turns", 4, 2, one_run=True)
TWO_RUNS = replace(TURNS, one_run=False)
# by the interval of a ratio, the verdict on it
ABOVE, BELOW, NO_GAIN, WIDE = (1.2, 1.1, 1.3), (0.8, 0.7, 0.9), (1.0, 0.995, 1.005), (1.02, 0.9, 1.16)
VERDICTS: dict[Known, Verdict] = {
    ABOVE: Verdict.PAYS,
    BELOW: Verdict.SLOWER,
    NO_GAIN: Verdict.NO_DIFFERENCE,
    WIDE: Verdict.OPEN,
}
QUALITY = QualityComparison(
    ln_ppl_ratio=Estimate(math.log(1.004), 1e-3, math.log(1.001), math.log(1.007), 20),
    ppl_change=0.004,
    divergence=Divergence(
        mean=0.01,
        median=0.005,
        p99=0.1,
        k=64,
        covered=0.9,
        same_top1=0.95,
        kind="reference ids",
        kld=Estimate(0.01, 0.001, 0.008, 0.012, 20),
        top1=Estimate(0.95, 0.005, 0.94, 0.96, 20),
    ),
)
RULES = Rules()
FAIR = Fairness(is_fair=True)
UNFAIR = Fairness(is_fair=False, reason="bf16 reads 50.0 experts. fp8 reads 40.0.")
UNCHECKED = Fairness(is_fair=None, reason="bf16: not measured")


def ratio(value: float, low: float | None, high: float | None, loads: int = 4) -> Ratio:
    """A ratio of times by the host's clock, with the standard error that its interval has."""
    if low is None or high is None:
        return Ratio(value, low, high, loads, "host")
    error = math.log(high / low) / 2 / float(distributions.t.ppf(0.975, loads - 1))
    return Ratio(value, low, high, loads, "host", error, loads - 1)


def shape(batch: int, interval: Known | None, fairness: Fairness = FAIR) -> ShapeComparison:
    """A shape of a comparison by its batch size and the interval of the ratio of all its times."""
    times = None if interval is None else ratio(*interval)
    return ShapeComparison(
        name=f"b{batch}_i512_o256",
        batch_size=batch,
        input_len=512,
        output_len=256,
        speed=SpeedRatios(times, times, times),
        figures={"e2e_ms": Sides(Interval(1.0), Interval(1.0))},
        fairness=fairness,
    )


def traced(batch: int, interval: Known, change: dict[str, float], waiting: float) -> ShapeComparison:
    """A shape with a decode step of 5 ms of which the experts are 2."""
    before = {"expert_gemm": 2.0, "quant_dequant": 0.0, "routing_permute": 0.5, "attention": 2.0}
    total = sum(change.values())
    decode = PhaseChange(
        categories={
            name: CategoryChange(ms, ms + change.get(name, 0.0), change.get(name, 0.0), 1.0, 1.0)
            for name, ms in before.items()
        },
        kernel_change_ms=total,
        step_is="wall",
        step_ms=(5.0, 5.0 + total + waiting),
        busy_ms=(4.5, 4.5 + total),
        overlap_change_ms=0.0,
        waiting_change_ms=waiting,
        residual_ms=0.0,
        expert_gemm_ratio=None,
        ceiling_busy=None,
        ceiling_wall=None,
        predicted_ratio_busy=4.5 / (4.5 + total),
        predicted_ratio_step=5 / (5 + total + waiting),
    )
    return replace(shape(batch, interval), kernels={"decode": decode})


def arms(**changes: dict[str, Any]) -> dict[str, ComparedArm]:
    """Two arms that finished, but for the changes of either."""
    return {
        name: replace(ComparedArm(name, name, Status.FINISHED), **changes.get(name, {})) for name in ("bf16", "fp8")
    }


def pair(
    shapes: Sequence[ShapeComparison] = (),
    schedule: PairSchedule | None = TURNS,
    quality: QualityComparison | None = QUALITY,
    **changes: Any,
) -> Pair:
    """A pair of these shapes, before its verdict."""
    undecided = Pair(
        reference="bf16",
        other="fp8",
        verdict=Verdict.PAYS,
        sentence="",
        because="",
        settled_by=None,
        differs=(),
        labels=(),
        is_repeat=False,
        schedule=schedule,
        shapes=tuple(shapes),
        quality=quality,
    )
    return replace(undecided, **changes)


def decide(
    shapes: Sequence[ShapeComparison],
    schedule: PairSchedule | None = TURNS,
    quality: QualityComparison | None = QUALITY,
    *,
    of_arms: dict[str, dict[str, Any]] | None = None,
    rules: Rules = RULES,
    **changes: Any,
) -> Pair:
    """The verdict on a pair of these shapes."""
    (decided,) = verdict.decide([pair(shapes, schedule, quality, **changes)], arms(**(of_arms or {})), rules)
    return decided


def comparison(*pairs: Pair, **changes: Any) -> ComparisonRecord:
    """A comparison of these pairs, whose arms are not described."""
    return replace(ComparisonRecord("bf16", (), pairs), **changes)
