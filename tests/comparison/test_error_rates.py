"""Error rates and power of verdicts and gates, by simulation from samples on: loads scatter by 1 %."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from moe_eval.comparison import gate, gate_text, pairs
from moe_eval.comparison.gate import GateResult
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.samples import Sample
from moe_eval.records.verdicts import Verdict
from moe_eval.stats import ERROR_RATE
from tests.doubles import recorded_arms as made

RUNS, LOADS, SCATTER, NOISE = 300, 4, 0.01, 0.003
BATCHES = (1, 8, 32, 64)
Arms = tuple[ArmRecords, ArmRecords]


def limit(runs: int) -> float:
    """The error rate and three standard errors of a simulation of so many runs."""
    return ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / runs)


@cache
def arms(batches: Sequence[int]) -> Arms:
    """Both arms before their times are drawn, which takes most of the time of a simulation."""
    ms = {batch: [[100.0]] * LOADS for batch in batches}
    return made.arm("bf16", ms), made.arm("fp8", ms)


def drawn(arm: ArmRecords, faster: float, generator: np.random.Generator) -> ArmRecords:
    """An arm whose loads have levels of their own, by shape, and whose iterations scatter around these."""
    assert arm.latency is not None
    rows = []
    for row in arm.latency.shapes:
        levels = generator.normal(-math.log(faster), SCATTER, (LOADS, 1))
        seconds = np.exp(levels + generator.normal(0, NOISE, (LOADS, 3)))
        firsts = np.exp(levels + generator.normal(0, NOISE, (LOADS, 3))) / 4
        loads = tuple(
            tuple(Sample(0.0, last, {"host": first}, {"host": last}) for first, last in zip(*times, strict=True))
            for times in zip(firsts.tolist(), seconds.tolist(), strict=True)
        )
        rows.append(replace(row, loads=loads))
    return replace(arm, latency=replace(arm.latency, shapes=tuple(rows)))


def runs(faster: float, batches: Sequence[int] = BATCHES, count: int = RUNS) -> Iterator[ComparisonRecord]:
    generator = np.random.default_rng(1)
    reference, other = arms(batches)
    for _ in range(count):
        yield pairs.compare([drawn(reference, 1.0, generator), drawn(other, faster, generator)])


def test_arms_that_are_as_fast_rarely_pay_and_rarely_are_slower() -> None:
    verdicts = [comparison.pairs[0].verdict for comparison in runs(1.0)]
    assert verdicts.count(Verdict.PAYS) / RUNS <= limit(RUNS)
    assert verdicts.count(Verdict.SLOWER) / RUNS <= limit(RUNS)
    assert {*verdicts} <= {Verdict.PAYS, Verdict.SLOWER, Verdict.OPEN, Verdict.NO_DIFFERENCE}


def test_a_gain_of_the_least_gain_rarely_pays() -> None:
    verdicts = [comparison.pairs[0].verdict for comparison in runs(1.01)]
    assert verdicts.count(Verdict.PAYS) / RUNS <= limit(RUNS)


def test_five_percent_are_found_with_four_loads_of_one_shape() -> None:
    verdicts = [comparison.pairs[0].verdict for comparison in runs(1.05, (1,))]
    assert verdicts.count(Verdict.PAYS) / RUNS > 0.9
    assert Verdict.SLOWER not in verdicts


@pytest.mark.parametrize("text", ["speed>=1.1,ttft>=1.1", "speed<=1.1,tpot<=1.1"])
def test_a_gate_at_the_truth_rarely_fails(text: str) -> None:
    """Of four shapes, so of eight bounds."""
    conditions = gate_text.parse(text)
    results = [gate.check(comparison, conditions)[0] for comparison in runs(1.1)]
    assert results.count(GateResult.FAILS) / RUNS <= limit(RUNS)
    assert results.count(GateResult.HOLDS) / RUNS <= limit(RUNS)


def test_a_gate_beyond_the_truth_fails_and_one_short_of_it_holds() -> None:
    comparisons = list(runs(1.1, (1, 8), 100))
    for text, result in (("speed>=1.25,ttft>=1.25", GateResult.FAILS), ("speed>=0.95,ttft>=0.95", GateResult.HOLDS)):
        results = [gate.check(comparison, gate_text.parse(text))[0] for comparison in comparisons]
        assert results.count(result) > 90, text
