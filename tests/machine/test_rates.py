"""Rates of this machine's CPU, and how repeated times become one."""

from __future__ import annotations

import pytest
import torch

from moe_eval.machine import rates


def test_the_rates_of_this_cpu() -> None:
    reached = rates.measure_rates("cpu")
    assert reached.device == "cpu"
    assert set(reached.matrix_flops_per_s) == {"float32", "bfloat16"}
    # any machine of the last 20 years, and none of the next 10
    assert 1e8 < reached.copy_bytes_per_s < 1e13
    assert all(1e7 < flops_per_s < 1e15 for flops_per_s in reached.matrix_flops_per_s.values())


class Clock:
    """A device whose every call takes the next of some times."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.now, self.started = list(seconds), 0.0, False

    def __call__(self) -> float:
        if self.started:
            self.now += self.seconds.pop(0) if self.seconds else 1.0
        self.started = not self.started
        return self.now


def test_a_rate_is_the_best_of_several_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    # a slow start, a slow round with one call that is impossibly fast, one with a median of 25 ms, and two of 50 ms
    times = [0.1] + [0.4, 0.4, 0.4, 0.4, 1e-6] + [0.025, 0.9, 0.025, 0.025, 0.9] + [0.05] * 10
    monkeypatch.setattr("time.perf_counter", Clock(times))
    assert rates._best(lambda: None, torch.device("cpu")) == pytest.approx(0.025)


def test_a_call_that_takes_long_is_made_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr("time.perf_counter", Clock([4.0, 3.0]))
    assert rates._best(lambda: calls.append(None), torch.device("cpu")) == pytest.approx(3.0)
    assert len(calls) == 3


def test_of_several_gpus_the_slowest_counts() -> None:
    slow = rates.Rates(2e12, {"bfloat16": 9e14}, "H100", (0,), {2: 3e11})
    fast = rates.Rates(3e12, {"bfloat16": 8e14, "float8_e4m3fn": 1e15}, "H100", (1,), {2: 4e11, 4: 5e11}, "no cable")
    assert rates.slowest([slow, fast]) == rates.Rates(2e12, {"bfloat16": 8e14}, "H100", (0, 1), {2: 3e11}, "no cable")
