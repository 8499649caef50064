"""Figures of timed iterations against arithmetic by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import scipy.stats

from moe_eval.data.workload import Shape
from moe_eval.evaluators import speed
from moe_eval.records.samples import Sample

SHAPE = Shape(4, 100, 11)


def sample(first: float, last: float, energy: float | None = None, engine: tuple[float, float] | None = None) -> Sample:
    """By the host's clock, and by the engine's where it says something."""
    if engine is None:
        return Sample(0.0, last, {"host": first}, {"host": last}, None, energy)
    by_first, by_last = {"host": first, "engine": engine[0]}, {"host": last, "engine": engine[1]}
    return Sample(0.0, last, by_first, by_last, engine[0], energy)


def test_every_figure_of_one_sample() -> None:
    figures = speed.figures([[sample(0.2, 1.2, 44.0)]], SHAPE)
    metrics = vars(figures.metrics)
    assert {name: metrics[name].median for name in speed.METRICS} == pytest.approx(
        {
            "ttft_ms": 200.0,
            "tpot_ms": 100.0,  # 1.0 s for the ten tokens after the first
            "e2e_ms": 1200.0,
            "output_tok_s": 44 / 1.2,
            "prefill_tok_s": 400 / 0.2,
            "j_per_tok": 1.0,  # 44 J for 44 tokens
        }
    )
    assert {metric.source for metric in metrics.values()} == {"host", "nvml"}
    assert (metrics["e2e_ms"].low, metrics["e2e_ms"].high) == (None, None), "one sample bounds nothing"
    assert figures.std_latency_ms is None


def test_samples_are_kept_and_the_interval_of_one_load_is_two_of_them() -> None:
    seconds = [1.0, 1.3, 1.1, 1.2, 1.5, 1.4, 0.9]
    figures = speed.figures([[sample(0.1, last) for last in seconds]], SHAPE)
    e2e = figures.metrics.e2e_ms
    assert e2e is not None
    assert e2e.samples == tuple(1000 * last for last in seconds)
    assert (e2e.low, e2e.median, e2e.high, e2e.loads) == (900.0, 1200.0, 1500.0, 1)
    assert figures.mean_latency_ms == pytest.approx(statistics.fmean(e2e.samples))
    assert figures.std_latency_ms == pytest.approx(statistics.stdev(e2e.samples))


def test_the_interval_of_several_loads_is_over_them_and_not_over_iterations() -> None:
    """Iterations that agree within a load say nothing of the next load."""
    loads = [[1.0, 1.0, 9.0], [1.1, 1.1, 1.1, 1.1], [1.3, 1.2, 1.25]]
    figures = speed.figures([[sample(0.1, last) for last in load] for load in loads], SHAPE)
    logs = [math.log(1000 * median) for median in (1.0, 1.1, 1.25)]
    mean = statistics.fmean(logs)
    low, high = scipy.stats.t.interval(0.95, 2, mean, statistics.stdev(logs) / math.sqrt(3))
    e2e = figures.metrics.e2e_ms
    assert e2e is not None
    assert (e2e.low, e2e.median, e2e.high) == pytest.approx((math.exp(low), math.exp(mean), math.exp(high)))
    assert (e2e.loads, len(e2e.samples)) == (3, 10)
    rate = figures.metrics.output_tok_s
    assert rate is not None
    assert (rate.low, rate.high) == pytest.approx((44_000 / math.exp(high), 44_000 / math.exp(low)))


def test_a_load_whose_figure_is_not_above_zero_leaves_no_interval() -> None:
    joules = [[44.0, 44.0], [0.0, 0.0], [88.0, 88.0]]
    figures = speed.figures([[sample(0.1, 1.0, energy) for energy in load] for load in joules], SHAPE)
    energy = figures.metrics.j_per_tok
    assert energy is not None
    assert (energy.median, energy.low, energy.high) == (1.0, None, None)


@pytest.mark.parametrize("engine", [None, (0.2, 1.2)])
@pytest.mark.parametrize("last", [0.2, 0.15])
def test_calls_that_noise_turns_round_have_no_time_per_token(last: float, engine: tuple[float, float] | None) -> None:
    """One of five calls for all tokens took no longer than the call for the first: TPOT would be 0 or below."""
    samples = [sample(0.2, end, engine=engine) for end in (1.2, 1.2, last, 1.2, 1.2)]
    figures = speed.figures([samples], SHAPE)
    assert figures.sources["host"].tpot_ms is None
    notes = [note for note in figures.notes if "no time per token" in note]
    if engine:  # whose clock is within one call
        assert figures.metrics.tpot_ms is not None
        assert (figures.metrics.tpot_ms.median, notes) == (pytest.approx(100.0), [])
        return
    assert figures.metrics.tpot_ms is None
    (note,) = notes
    assert "1 of 5 iterations took no longer for 11 tokens than for the first alone" in note
    assert note.endswith("Give more output tokens")


def test_tokens_are_timed_by_the_engine_and_calls_by_the_host_where_both_exist() -> None:
    figures = speed.figures([[sample(0.2, 1.2, engine=(0.19, 1.19))]], SHAPE)
    metrics = vars(figures.metrics)
    assert (metrics["ttft_ms"].source, metrics["ttft_ms"].median) == ("engine", 190.0)
    assert metrics["tpot_ms"].median == pytest.approx(100.0)
    assert (metrics["e2e_ms"].source, metrics["e2e_ms"].median) == ("host", 1200.0)
    assert set(figures.sources) == {"host", "engine"}
    (note,) = figures.notes
    assert note.startswith("ttft_ms is 200.00 by host and 190.00 by engine, more than 2 % apart")


def test_what_the_samples_lack_is_not_made_up() -> None:
    assert speed.figures([[sample(0.2, 0.2)]], Shape(1, 8, 1)).metrics.tpot_ms is None, "of one new token"
    assert speed.figures([[sample(0.2, 1.2, 44.0), sample(0.2, 1.2)]], SHAPE).metrics.j_per_tok is None
