"""Figures of servers against closed forms, and against an enumeration of made-up requests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from moe_eval.evaluators import serving_figures
from moe_eval.machine.sampler import GpuSummary
from moe_eval.records.serving import RequestTimes, ServingLimits
from tests.doubles import served
from tests.doubles.arm_process import FACTS
from tests.doubles.served import OUTPUT

GPU = GpuSummary("GPU-0", 5, 1980.0, 1980.0, 1980.0, 400.0, 60.0, 1980.0, "nvmlDeviceGetClock", 0.0, (), 0.0)


def value(metric: object) -> float:
    return float(metric.median)  # type: ignore[attr-defined]


def test_users_in_lock_step_have_a_closed_form() -> None:
    load = replace(served.load(40, 4, tpot_ms=20.0, ttft_ms=100.0), gpus=(GPU, GPU))
    metrics = serving_figures.metrics([load], 2, ServingLimits(ttft_ms=100.0, tpot_ms=20.0))
    seconds = 10 * (0.1 + 10 * 0.02)
    assert value(metrics.output_tok_s) == pytest.approx(40 * OUTPUT / seconds)
    assert value(metrics.output_tok_s_per_gpu) == pytest.approx(40 * OUTPUT / seconds / 2)
    assert value(metrics.tok_s_per_user) == pytest.approx(50)
    assert [value(metrics.ttft_p50_ms), value(metrics.tpot_p90_ms)] == pytest.approx([100, 20])
    assert value(metrics.e2e_p50_ms) == pytest.approx(300)
    assert value(metrics.goodput_req_s) == pytest.approx(40 / seconds)
    assert value(metrics.j_per_tok) == pytest.approx(2 * 400 * seconds / (40 * OUTPUT))
    assert metrics.e2e_p99_ms is None


def test_quantiles_rates_and_goodput_are_those_of_an_enumeration() -> None:
    random = np.random.default_rng(3)
    starts = np.sort(random.uniform(0, 5, 200))
    ttft = random.uniform(20, 200, 200)
    tokens = random.integers(1, 9, 200)
    e2e = ttft + (tokens - 1) * random.uniform(5, 60, 200)
    times = RequestTimes(*map(tuple, (starts, ttft, e2e, tokens, tokens)))  # type: ignore[arg-type]
    limits = ServingLimits(ttft_ms=120.0, tpot_ms=30.0)
    ends = [start + ms / 1000 for start, ms in zip(starts, e2e, strict=True)]
    seconds = max(ends) - min(starts)
    tpot = [(whole - first) / (n - 1) for first, whole, n in zip(ttft, e2e, tokens, strict=True) if n > 1]
    good = sum(
        first <= 120 and (n == 1 or (whole - first) / (n - 1) <= 30)
        for first, whole, n in zip(ttft, e2e, tokens, strict=True)
    )
    assert serving_figures.goodput(times, limits) == pytest.approx(good / seconds)
    assert serving_figures.goodput(times, ServingLimits()) is None
    assert serving_figures.goodput(times, ServingLimits(tpot_ms=1e9)) == pytest.approx(200 / seconds)
    load = replace(served.load(1, 1, tpot_ms=1.0), times=times)
    metrics = serving_figures.metrics([load], 0, limits)
    assert value(metrics.output_tok_s) == pytest.approx(sum(tokens) / seconds)
    assert metrics.output_tok_s_per_gpu is None
    assert value(metrics.tpot_p50_ms) == pytest.approx(sorted(tpot)[len(tpot) // 2], rel=0.05)
    assert value(metrics.ttft_p90_ms) == pytest.approx(np.quantile(ttft, 0.9))
    assert metrics.j_per_tok is None


def test_intervals_are_students_over_loads() -> None:
    tpots = [20.0, 21.0, 22.0]
    metrics = serving_figures.metrics([served.load(10, 1, tpot_ms=ms) for ms in tpots], 1, ServingLimits())
    logs = np.log(tpots)
    reach = 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)  # t(2) at 0.975
    metric = metrics.tpot_p50_ms
    assert metric is not None
    assert (metric.low, metric.high) == pytest.approx((math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)))
    assert metric.loads == 3


def test_a_p99_takes_as_many_requests_as_mlperf_wants() -> None:
    """The table of inference_policies/inference_rules.adoc: 23,886, 50,425 and 262,742 inferences."""
    assert [serving_figures._enough(quantile) for quantile in (0.9, 0.95, 0.99)] == [23_886, 50_425, 262_742]
    assert serving_figures.ENOUGH == 262_742
    whole = served.load(131_371, 131_371, tpot_ms=10.0)
    assert serving_figures.metrics([whole, whole], 0, ServingLimits()).ttft_p99_ms is not None
    of_server = (
        "by the server's metrics 3.0 requests ran in the mean, at most 4 ran, 25.0 % of the KV cache were in use, "
        "0 were preempted"
    )
    assert serving_figures.notes([whole, whole], [OUTPUT] * 131_371) == [of_server]
    note, _ = serving_figures.notes([whole], [OUTPUT] * 131_371)
    assert note == "no p99: it takes 262,742 requests of a point by MLPerf's rule"


def test_answers_that_come_as_a_whole_have_no_speed_of_a_user() -> None:
    metrics = serving_figures.metrics([served.load(10, 1, tpot_ms=0.0)] * 3, 1, ServingLimits(tpot_ms=1.0))
    assert metrics.tok_s_per_user is None
    assert value(metrics.tpot_p50_ms) == 0
    assert value(metrics.goodput_req_s) == pytest.approx(10)


@pytest.mark.parametrize(("rate", "grows"), [(4.0, False), (20.0, True)])
def test_a_rate_that_a_server_cannot_keep_up_with_is_told(rate: float, grows: bool) -> None:
    """One request at a time takes 100 ms. Where they come every 50 ms, request k takes 100 + 50 k."""
    starts, free, e2e = [number / rate for number in range(100)], 0.0, []
    for start in starts:
        free = max(free, start) + 0.1
        e2e.append(1000 * (free - start))
    load = served.load(100, 1, tpot_ms=1.0)
    load = replace(load, times=replace(load.times, started_s=tuple(starts), e2e_ms=tuple(e2e)))
    notes = serving_figures.overload([load])
    assert [note.startswith(f"the last requests take {4450 / 700:.1f} times") for note in notes] == [True] * grows


def test_prompts_that_a_cache_knew_are_told() -> None:
    load = served.load(10, 1, tpot_ms=10.0)
    known = replace(load, state=replace(load.state, cached_share=0.125))
    (note,) = (note for note in serving_figures.notes([load, known], [OUTPUT] * 10) if "metrics" in note)
    assert ", 12.5 % of the tokens of prompts came from the prefix cache," in note


def test_answers_of_another_length_are_told() -> None:
    short = served.load(10, 1, tpot_ms=10.0, output=5)
    assert "answers have 50 tokens by load where 110 were asked for" in serving_figures.notes([short], [OUTPUT] * 10)


@pytest.mark.parametrize(
    ("tpot_ms", "saturated"), [((10, 10, 10, 10), None), ((10, 10, 19.5, 40), "c4"), ((10, 30, 60, 120), "c2")]
)
def test_the_first_users_that_add_nothing_are_told(tpot_ms: tuple[float, ...], saturated: str | None) -> None:
    """c users make tokens in c / tpot: from 2 to 4 users 2 / 1.95 times as many add 2.6 %."""
    loads = {users: [float(ms)] for users, ms in zip((1, 2, 4, 8), tpot_ms, strict=True)}
    points = served.record("bf16", loads, FACTS).points
    told = {point.point.name: note for point in points for note in point.notes if "saturated" in note}
    ((name, note),) = told.items()
    assert name == (saturated or "c8")
    assert ("not saturated" in note) == (saturated is None)


def test_a_few_users_more_saturate_no_server_that_they_fill_in_full() -> None:
    """From 30 to 31 users a token takes as long: they add 3 %, and twice as many would double the tokens."""
    steps = {30: [10.0], 31: [10.0], 32: [10.0]}
    notes = [
        note for point in served.record("bf16", steps, FACTS).points for note in point.notes if "saturated" in note
    ]
    assert [note.startswith("the server is not saturated") for note in notes] == [True]
    wide = {1: [10.0], 16: [10.0 * 16 / 1.1]}  # four doublings add a tenth
    (note,) = (
        note for point in served.record("bf16", wide, FACTS).points for note in point.notes if "saturated" in note
    )
    assert note.startswith("the server is saturated: twice the users add less than 5 %")
