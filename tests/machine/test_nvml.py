"""The layer over NVML, against a stand-in for pynvml whose names, constants and errors are checked with its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from moe_eval.machine import nvml
from moe_eval.machine.nvml import Nvml
from moe_eval.machine.sampler import Sampler
from tests.doubles.nvml import CONSTANTS, ERRORS, ONE, TWO, Card, Fake


def test_the_stand_in_has_the_real_librarys_names() -> None:
    real = pytest.importorskip("pynvml")
    assert {name: getattr(real, name) for name in CONSTANTS} == CONSTANTS
    for name in [attribute for attribute in dir(Fake) if attribute.startswith("nvml")]:
        assert callable(getattr(real, name))
    for name, code in ERRORS.items():
        assert issubclass(getattr(real, name), real.NVMLError)
        assert getattr(real, name)().value == code


def test_the_reasons_have_the_real_librarys_bits() -> None:
    real = pytest.importorskip("pynvml")
    for name in dir(real):
        mask = getattr(real, name)
        stem = name.removeprefix("nvmlClocksThrottleReason")
        if stem == name or stem in ("None", "All", "GpuIdle", "UserDefinedClocks"):
            continue
        (reason,) = nvml.reason_names(mask)
        assert reason.replace("_", "") == stem.lower()
    assert nvml.reason_names(real.nvmlClocksThrottleReasonGpuIdle) == ()


def test_reasons_are_named_in_order_and_strange_bits_by_number() -> None:
    assert nvml.reason_names(0) == ()
    assert nvml.reason_names(0x1 | 0x40 | 0x4) == ("sw_power_cap", "hw_thermal_slowdown")
    assert nvml.reason_names(1 << 20) == ("unknown_0x100000",)


def nothing(opened: Nvml, why: str) -> None:
    """Every call says why, and none fails."""
    assert opened.why_not is not None
    assert why in opened.why_not
    assert (opened.uuids, opened.energy_joules(), opened.used_bytes(), opened.default_clocks()) == ((), None, (), ())
    assert opened.temperatures() == ()
    with Sampler(opened) as sampler:
        assert sampler.flagged([(0, time.perf_counter())]) == [None]
    assert (sampler.summary(0, 1e9), sampler.lost) == ((), None)
    opened.close()


def test_without_library_driver_or_gpu_everything_is_unknown(
    fake: Callable[..., Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    nothing(Nvml.open([]), "There is no NVIDIA GPU")
    for why in ("LibraryNotFound", "DriverNotLoaded"):
        fake(Card(ONE)).start_fails = f"NVMLError_{why}"
        nothing(Nvml.open([ONE]), f"NVML does not start ({why}). Check that an NVIDIA driver is installed.")
    for uuid in ("MIG-33333333", None):
        fake(Card(ONE))
        nothing(Nvml.open([uuid]), f"NVML does not know {uuid}")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nothing(Nvml.open([ONE]), "nvidia-ml-py is not installed. Run pip install nvidia-ml-py")


def test_energy_and_memory_of_two_gpus(fake: Callable[..., Fake]) -> None:
    library = fake(Card(ONE, energy_mj=1_500, used=3), Card(TWO, energy_mj=2_250, used=5))
    with Nvml.open([TWO, ONE]) as opened:
        assert (opened.why_not, opened.uuids) == (None, (TWO, ONE))
        assert opened.energy_joules() == 3.75
        assert opened.used_bytes() == (5, 3)
        library.cards[ONE].fails["nvmlDeviceGetTotalEnergyConsumption"] = "NVMLError_NotSupported"
        library.cards[ONE].fails["nvmlDeviceGetMemoryInfo"] = "NVMLError_Unknown"
        assert opened.energy_joules() is None
        assert opened.used_bytes() == (5, None)
    assert library.open == 0
    assert opened.energy_joules() is None


def test_temperatures_are_of_all_gpus_or_of_none(fake: Callable[..., Fake]) -> None:
    library = fake(Card(ONE, temperature=54), Card(TWO, temperature=61))
    with Nvml.open([TWO, ONE]) as opened:
        assert opened.temperatures() == (61.0, 54.0)
        library.cards[ONE].fails["nvmlDeviceGetTemperature"] = "NVMLError_NotSupported"
        assert opened.temperatures() == ()
    with Nvml.open([TWO, "GPU-unknown"]) as partly:
        assert partly.temperatures() == ()


def test_energy_of_some_of_the_gpus_is_not_energy(fake: Callable[..., Fake]) -> None:
    fake(Card(ONE))
    opened = Nvml.open([ONE, TWO])
    assert opened.uuids == (ONE,)
    assert opened.energy_joules() is None
    assert opened.used_bytes() == (7 << 30,)


def test_the_default_clock_says_where_it_is_from(fake: Callable[..., Fake]) -> None:
    missing = {"nvmlDeviceGetDefaultApplicationsClock": "NVMLError_NotSupported"}
    fake(Card(ONE, default=1755), Card(TWO, max_mhz=2520, fails=missing))
    first, second = Nvml.open([ONE, TWO]).default_clocks()
    assert first == nvml.DefaultClock(1755, "nvmlDeviceGetDefaultApplicationsClock")
    assert second == nvml.DefaultClock(2520, "nvmlDeviceGetMaxClockInfo")
