"""The thread that samples the GPUs, against a stand-in for pynvml."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from moe_eval.machine import sampler as sampling
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from tests.doubles.nvml import ONE, TWO, Card, Fake


def sampled(opened: Nvml, enough: Callable[[Sampler], bool]) -> Sampler:
    with Sampler(opened, every=0.001) as sampler:
        until = time.monotonic() + 5
        while not enough(sampler) and time.monotonic() < until:
            time.sleep(0.002)
    return sampler


def after(count: int, uuid: str = ONE) -> Callable[[Sampler], bool]:
    return lambda sampler: len(sampler.arrays(uuid)["time"]) >= count


def test_a_summary_of_what_was_sampled(fake: Callable[..., Fake]) -> None:
    card = Card(ONE, clocks=[1980, 1400, 1500, 1600], default=2000, reasons=[0x1, 0x4, 0x0, 0x20], power_mw=412_500)
    fake(card)
    before = time.perf_counter()
    sampler = sampled(Nvml.open([ONE]), after(4))
    columns = sampler.arrays(ONE)
    times = columns["time"]
    assert list(columns["sm_mhz"][:4]) == [1980, 1400, 1500, 1600]
    assert set(columns["memory_mhz"]) == {2619}
    assert set(columns["pstate"]) == {2}
    assert set(columns) == set(sampling.COLUMNS)
    assert before < times[0]
    assert (np.diff(times) > 0.0009).all()
    (whole,) = sampler.summary(times[0], times[3])
    assert (whole.uuid, whole.samples) == (ONE, 4)
    assert (whole.sm_mhz_median, whole.sm_mhz_min, whole.sm_mhz_max) == (1550, 1400, 1980)
    # 75 % of 2000 MHz is 1500: only 1400 is under it
    assert (whole.default_mhz, whole.throttled_share) == (2000, 0.25)
    assert (whole.power_w_mean, whole.temperature_c_max) == (412.5, 60)
    assert (whole.reasons, whole.idle_share) == (("sw_power_cap", "sw_thermal_slowdown"), 0.25)
    (part,) = sampler.summary(times[1], times[2])
    assert (part.samples, part.sm_mhz_max, part.reasons) == (2, 1500, ("sw_power_cap",))
    (none,) = sampler.summary(before - 9, before - 8)
    assert (none.samples, none.sm_mhz_median, none.throttled_share, none.reasons) == (0, None, None, ())


def test_spans_with_slow_clocks_are_flagged(fake: Callable[..., Fake]) -> None:
    fake(Card(ONE, clocks=[1980, 1980, 1000, 1000, 1980, 1100], default=2000))
    sampler = sampled(Nvml.open([ONE]), after(6))
    at = sampler.arrays(ONE)["time"]
    # the fourth span's mean is 1490, the last's 1540
    spans = [(at[0], at[1]), (at[2], at[3]), (at[0] - 2, at[0] - 1), (at[3], at[4]), (at[4], at[5])]
    assert sampler.flagged([*spans, (at[2] + 1e-7, at[3] - 1e-7)]) == [False, True, None, True, False, None]


def test_one_slow_gpu_of_two_flags_a_span(fake: Callable[..., Fake]) -> None:
    fake(Card(ONE), Card(TWO, clocks=[900]))
    sampler = sampled(Nvml.open([ONE, TWO]), after(2, TWO))
    assert sampler.flagged([(0, 1e9)]) == [True]
    assert [gpu.throttled_share for gpu in sampler.summary(0, 1e9)] == [0, 1]


def test_sensors_that_do_not_answer_are_absent(fake: Callable[..., Fake]) -> None:
    silent = ("PowerUsage", "Temperature", "CurrentClocksEventReasons", "PerformanceState", "MaxClockInfo")
    fails = {f"nvmlDeviceGet{name}": "NVMLError_NotSupported" for name in silent}
    card = Card(ONE, fails={**fails, "nvmlDeviceGetDefaultApplicationsClock": "NVMLError_NotSupported"}, reasons=[0x8])
    fake(card)
    sampler = sampled(Nvml.open([ONE]), after(3))
    (summary,) = sampler.summary(0, 1e9)
    assert (summary.power_w_mean, summary.temperature_c_max, summary.sm_mhz_median) == (None, None, 1980)
    assert (summary.default_mhz, summary.default_source, summary.throttled_share) == (None, None, None)
    # the older name of the same mask answers
    assert summary.reasons == ("hw_slowdown",)
    assert sampler.flagged([(0, 1e9)]) == [None]
    assert np.isnan(sampler.arrays(ONE)["pstate"]).all()
    assert sampler.lost is None


def test_a_library_without_the_newer_name_uses_the_older(
    fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Fake, "nvmlDeviceGetCurrentClocksEventReasons")
    fake(Card(ONE, reasons=[0x80]))
    (summary,) = sampled(Nvml.open([ONE]), after(2)).summary(0, 1e9)
    assert summary.reasons == ("hw_power_brake_slowdown",)


def test_a_gpu_that_disappears_ends_sampling_with_a_sentence(fake: Callable[..., Fake]) -> None:
    card = Card(ONE)
    fake(card)
    opened = Nvml.open([ONE])
    with Sampler(opened, every=0.001) as sampler:
        wait(lambda: len(sampler.arrays(ONE)["time"]) >= 3)
        card.fails["nvmlDeviceGetClockInfo"] = "NVMLError_GpuIsLost"
        wait(lambda: sampler.lost is not None)
        held = len(sampler.arrays(ONE)["time"])
        time.sleep(0.02)
    assert sampler.lost == f"NVML lost {ONE} (GpuIsLost). Its clocks are not known from then on."
    (summary,) = sampler.summary(0, 1e9)
    assert summary.samples == held >= 3
    card.fails["nvmlDeviceGetTotalEnergyConsumption"] = "NVMLError_GpuIsLost"
    assert opened.energy_joules() is None


def wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not ready() and time.monotonic() < until:
        time.sleep(0.001)
    assert ready()


def test_the_thread_ends_with_its_context(fake: Callable[..., Fake]) -> None:
    fake(Card(ONE))

    def alive() -> Iterator[str]:
        return (thread.name for thread in threading.enumerate() if thread.name == "moe-eval-nvml")

    with Sampler(Nvml.open([ONE]), every=60) as sampler:
        assert list(alive())
        wait(lambda: len(sampler.arrays(ONE)["time"]) == 1)
    assert not list(alive())
