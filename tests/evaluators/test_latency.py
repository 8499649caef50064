"""Timing against an engine and a clock that are made up: what counts as an iteration, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_eval.data.workload import Shape
from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import latency, warm_up
from moe_eval.evaluators.latency import Clock
from moe_eval.machine.nvml import Nvml
from moe_eval.records.labels import EngineFacts
from moe_eval.records.samples import WarmUp
from moe_eval.runner import arm_tasks
from tests.doubles.nvml import ONE, Card, Fake
from tests.doubles.timed_engine import FACTS, MadeUp

SHAPE = Shape(3, 2, 5)
PROMPTS = [[1, 2], [3, 4], [5, 6]]
BLIND = Nvml(None, {}, "none here")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    engine = MadeUp()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=engine.perf_counter))
    return engine


def test_a_sample_is_a_call_for_one_token_and_a_call_for_all(engine: MadeUp) -> None:
    (sample,) = latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)
    assert [call.max_new_tokens for call in engine.calls] == [1, 5]
    assert all(call.ignore_eos and call.timed and call.temperature == 0 for call in engine.calls)
    assert sample.first == pytest.approx({"host": 0.1})
    assert sample.last == pytest.approx({"host": 0.5})
    assert (sample.started, sample.ended) == pytest.approx((100.1, 100.6)), "of the second call"
    assert (sample.request_first, sample.energy_j) == (None, None)
    assert len(latency.measure(engine, PROMPTS, SHAPE, 4, BLIND)) == 4
    assert len(engine.calls) == 2 + 8


@pytest.mark.parametrize("wrong", [-1, 1])
def test_another_number_of_tokens_than_asked_for_is_no_timing(engine: MadeUp, wrong: int) -> None:
    engine.wrong = wrong
    with pytest.raises(EngineError, match=f"made {5 + wrong} tokens where 5 were asked for"):
        latency.warm_up(Clock(engine, BLIND), PROMPTS, SHAPE, 5)


def test_the_engines_own_times_are_of_the_slowest_request_and_the_median_one(engine: MadeUp) -> None:
    engine.times = [(0.11, 0.41), (0.15, 0.45), (0.12, 0.49)]
    (sample,) = latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)
    assert sample.first == pytest.approx({"host": 0.1, "engine": 0.15})
    assert sample.last == pytest.approx({"host": 0.5, "engine": 0.49})
    assert sample.request_first == 0.12
    engine.times = [(0.11, 0.41), None, (0.12, 0.49)]
    (sample,) = latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)
    assert set(sample.first) == set(sample.last) == {"host"}, "times of some requests are none of the batch"
    assert sample.request_first is None


@pytest.mark.parametrize(("worker", "expected"), [("in_process", {"host", "cuda_events"}), ("spawned", {"host"})])
def test_cuda_events_time_what_runs_in_this_process(
    engine: MadeUp, monkeypatch: pytest.MonkeyPatch, worker: Any, expected: set[str]
) -> None:
    events: list[str] = []
    engine.facts = replace(FACTS, device="cuda:0", worker=worker)
    engine.during = lambda: events.append("generate")

    def event(*, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        return SimpleNamespace(
            record=lambda: events.append("record"),
            synchronize=lambda: events.append("wait"),
            elapsed_time=lambda _: 480.0,
        )

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    sample, _ = Clock(engine, BLIND).time(PROMPTS, 5)
    assert set(sample) == expected
    if worker == "in_process":
        assert sample["cuda_events"] == pytest.approx(0.48), "seconds, of an event's milliseconds"
        assert events == ["synchronize", "record", "generate", "record", "wait"]


@pytest.mark.parametrize(("per_token", "fails", "joules"), [(0.25, {}, 300.0), (0.15, {}, None), (0.25, {"x"}, None)])
def test_energy_is_what_nvml_counts_over_a_call_that_is_long_enough(
    engine: MadeUp, monkeypatch: pytest.MonkeyPatch, per_token: float, fails: set[str], joules: float | None
) -> None:
    card = Card(ONE)
    if fails:
        card.fails = {"nvmlDeviceGetTotalEnergyConsumption": "NVMLError_NotSupported"}
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    engine.seconds = lambda _, tokens: per_token * tokens

    def burn() -> None:
        card.energy_mj += 300_000

    engine.during = burn
    with Nvml.open([ONE]) as nvml:
        (sample,) = latency.measure(engine, PROMPTS, SHAPE, 1, nvml)
    assert sample.energy_j == joules


@pytest.mark.parametrize(("device", "refused"), [("cuda:0", True), ("cpu", False)])
def test_nothing_is_timed_in_a_process_in_which_the_gpu_s_profiler_has_run(
    engine: MadeUp, monkeypatch: pytest.MonkeyPatch, device: str, refused: bool
) -> None:
    monkeypatch.setattr(latency, "_traced", [])
    traced = MadeUp()
    traced.facts = replace(engine.facts, device=device)
    latency.mark_traced(traced)
    if refused:
        with pytest.raises(UsageError, match="Name moe_latency before moe_kernels, or time in a fresh process"):
            latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)
    else:
        assert latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)


def warmed(engine: MadeUp, seconds: Sequence[float], minimum: int) -> WarmUp:
    engine.seconds = lambda call, _: seconds[min(call, len(seconds) - 1)]
    record = latency.warm_up(Clock(engine, BLIND), PROMPTS, SHAPE, minimum)
    assert record.seconds == pytest.approx([*seconds, *[seconds[-1]] * 999][: len(engine.calls)])
    assert {call.max_new_tokens for call in engine.calls} == {5}, "whole iterations"
    return record


@pytest.mark.parametrize(
    ("seconds", "minimum", "count"),
    [
        ([0.2], 5, 5),
        ([0.2], 9, 9),
        ([0.2], 30, 30),
        ([3.0, 0.2], 5, 6),  # the first, slow one counts for five iterations
        ([0.05], 5, 10),  # half a second at least
        ([0.001], 5, 500),
    ],
)
def test_a_warm_up_ends_when_times_have_settled(
    engine: MadeUp, seconds: Sequence[float], minimum: int, count: int
) -> None:
    settled = warmed(engine, seconds, minimum)
    assert len(settled.seconds) == pytest.approx(count, abs=1 if count >= 10 else 0)  # sums of floats
    assert settled.ended == "noise of the last 5 below 0.5 %"


@pytest.mark.parametrize(
    ("duration", "minimum", "count"),
    [(1.0, 5, 20), (1.0, 25, 25), (12.0, 5, 6), (40.0, 5, 5)],  # 20 iterations, or 15 s beyond the least
)
def test_a_warm_up_that_never_settles_ends(
    engine: MadeUp, monkeypatch: pytest.MonkeyPatch, duration: float, minimum: int, count: int
) -> None:
    monkeypatch.setattr(warm_up, "_calm", lambda _: None)
    unsettled = warmed(engine, [duration], minimum)
    assert (len(unsettled.seconds), unsettled.ended) == (count, "it did not settle")


def test_a_flat_temperature_of_the_gpu_ends_a_warm_up_early(engine: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(ONE, temperature=54)
    monkeypatch.setitem(sys.modules, "pynvml", Fake([card]))
    engine.facts = replace(FACTS, device="cuda:0", worker="spawned")
    engine.seconds = lambda *_: 1.0
    with Nvml.open([ONE]) as nvml:
        seen = latency.warm_up(Clock(engine, nvml), PROMPTS, SHAPE, 5)
    blind = latency.warm_up(Clock(engine, BLIND), PROMPTS, SHAPE, 5)
    assert (len(seen.seconds), seen.ended) == (11, "noise of the last 5 below 0.5 %, temperature flat at 54 C")
    assert (len(blind.seconds), blind.ended) == (30, "noise of the last 5 below 0.5 %, after 30 s")


@pytest.mark.parametrize(
    ("variable", "title"),
    [("NSYS_PROFILING_SESSION_ID", "Nsight Systems"), ("NV_COMPUTE_PROFILER_PERFWORKS_DIR", "Nsight Compute")],
)
def test_nothing_is_timed_under_a_profiler(
    engine: MadeUp, monkeypatch: pytest.MonkeyPatch, variable: str, title: str
) -> None:
    latency.refuse_profiler()
    monkeypatch.setenv(variable, "1")
    for timed in (
        lambda: latency.measure(engine, PROMPTS, SHAPE, 1, BLIND),
        lambda: arm_tasks.warm_up(engine, None, shape=vars(SHAPE), workload="", minimum=5, uuids=()),
    ):
        with pytest.raises(UsageError, match=f"timed under {title}"):
            timed()
    assert not engine.calls


def test_nothing_is_timed_under_torchs_profiler(engine: MadeUp) -> None:
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        pytest.raises(UsageError, match="timed under torch's profiler"),
    ):
        latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)
    assert len(latency.measure(engine, PROMPTS, SHAPE, 1, BLIND)) == 1, "once it has ended"


@pytest.mark.parametrize(
    ("shape", "facts", "sentence"),
    [
        (Shape(1, 60, 5), FACTS, "60 tokens and 5 new ones do not fit into the window of 64"),
        (Shape(5, 2, 2), FACTS, "5 sequences are more than this arm runs at once (4)"),
        (SHAPE, replace(FACTS, precision="nvfp4", emulated=True), "nvfp4 is emulated here"),
        (Shape(4, 60, 4), FACTS, None),
        (Shape(999, 2, 2), replace(FACTS, max_batch=None), None),
    ],
)
def test_a_shape_that_the_engine_cannot_run_at_once_is_refused(
    engine: MadeUp, shape: Shape, facts: EngineFacts, sentence: str | None
) -> None:
    engine.facts = facts
    if sentence is None:
        latency.check(engine, shape)
        return
    with pytest.raises(UsageError) as refused:
        latency.measure(engine, PROMPTS, shape, 1, BLIND)
    assert sentence in str(refused.value)
    assert not engine.calls
