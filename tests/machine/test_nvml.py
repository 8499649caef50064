"""The layer over NVML, against a stand-in for pynvml whose names, constants and errors are checked with its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe_eval.machine import nvml
from moe_eval.machine.nvml import Nvml, Sampler

ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
CONSTANTS = {"NVML_CLOCK_GRAPHICS": 0, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
ERRORS = {
    "NVMLError_NotSupported": 3, "NVMLError_NotFound": 6, "NVMLError_DriverNotLoaded": 9,
    "NVMLError_LibraryNotFound": 12, "NVMLError_FunctionNotFound": 13, "NVMLError_GpuIsLost": 15,
    "NVMLError_Unknown": 999,
}  # fmt: skip


@dataclass
class Card:
    """One GPU's sensors; `fails` holds the error that a function raises, `clocks` the SM clocks of coming looks."""

    uuid: str
    clocks: list[int] = field(default_factory=lambda: [1980])
    memory_mhz: int = 2619
    default: int = 1980
    most: int = 2100
    power_mw: int = 350_000
    pstate: int = 2
    temperature: int = 60
    reasons: list[int] = field(default_factory=lambda: [0])
    energy_mj: int = 5_000_000
    used: int = 7 << 30
    fails: dict[str, str] = field(default_factory=dict)

    def following(self, values: list[int]) -> int:
        return values.pop(0) if len(values) > 1 else values[0]


class Fake(ModuleType):
    """pynvml with some cards."""

    def __init__(self, cards: list[Card]) -> None:
        super().__init__("pynvml")
        self.cards = {each.uuid: each for each in cards}
        self.open = 0
        self.start_fails: str | None = None
        self.NVMLError = type("NVMLError", (Exception,), {})
        for name in ERRORS:
            setattr(self, name, type(name, (self.NVMLError,), {}))
        for name, value in CONSTANTS.items():
            setattr(self, name, value)

    def error(self, name: str) -> Exception:
        made: Exception = getattr(self, name)(name.removeprefix("NVMLError_"))
        return made

    def _card(self, card: Card, function: str) -> Card:
        if not self.open:
            raise AssertionError("asked before nvmlInit or after nvmlShutdown")
        if function in card.fails:
            raise self.error(card.fails[function])
        return card

    def nvmlInit(self) -> None:
        if self.start_fails:
            raise self.error(self.start_fails)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        if uuid not in self.cards:
            raise self.error("NVMLError_NotFound")
        return self.cards[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        return self._card(card, "nvmlDeviceGetTotalEnergyConsumption").energy_mj

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        used = self._card(card, "nvmlDeviceGetMemoryInfo").used
        return SimpleNamespace(total=80 << 30, free=(80 << 30) - used, used=used)

    def nvmlDeviceGetDefaultApplicationsClock(self, card: Card, kind: int) -> int:
        self._card(card, "nvmlDeviceGetDefaultApplicationsClock")
        return card.memory_mhz if kind == 2 else card.default

    def nvmlDeviceGetMaxClockInfo(self, card: Card, kind: int) -> int:
        self._card(card, "nvmlDeviceGetMaxClockInfo")
        return card.memory_mhz if kind == 2 else card.most

    def nvmlDeviceGetClockInfo(self, card: Card, kind: int) -> int:
        self._card(card, "nvmlDeviceGetClockInfo")
        return card.following(card.clocks) if kind == 1 else card.memory_mhz

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        return self._card(card, "nvmlDeviceGetPowerUsage").power_mw

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:
        assert sensor == 0
        return self._card(card, "nvmlDeviceGetTemperature").temperature

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: Card) -> int:
        return card.following(self._card(card, "nvmlDeviceGetCurrentClocksEventReasons").reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> int:
        return card.following(self._card(card, "nvmlDeviceGetCurrentClocksThrottleReasons").reasons)

    def nvmlDeviceGetPerformanceState(self, card: Card) -> int:
        return self._card(card, "nvmlDeviceGetPerformanceState").pstate


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    def install(*cards: Card) -> Fake:
        library = Fake(list(cards))
        monkeypatch.setitem(sys.modules, "pynvml", library)
        return library

    return install


def sampled(opened: Nvml, enough: Callable[[Sampler], bool]) -> Sampler:
    with Sampler(opened, every=0.001) as sampler:
        until = time.monotonic() + 5
        while not enough(sampler) and time.monotonic() < until:
            time.sleep(0.002)
    return sampler


def after(count: int, uuid: str = ONE) -> Callable[[Sampler], bool]:
    return lambda sampler: len(sampler.arrays(uuid)["time"]) >= count


def test_the_stand_in_has_the_real_librarys_names() -> None:
    real = pytest.importorskip("pynvml")
    assert {name: getattr(real, name) for name in CONSTANTS} == CONSTANTS
    for name in [each for each in dir(Fake) if each.startswith("nvml")]:
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
        (found,) = nvml.reason_names(mask)
        assert found.replace("_", "") == stem.lower()
    assert nvml.reason_names(real.nvmlClocksThrottleReasonGpuIdle) == ()


def test_reasons_are_named_in_order_and_strange_bits_by_number() -> None:
    assert nvml.reason_names(0) == ()
    assert nvml.reason_names(0x1 | 0x40 | 0x4) == ("sw_power_cap", "hw_thermal_slowdown")
    assert nvml.reason_names(1 << 20) == ("unknown_0x100000",)


def test_without_the_library_everything_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nothing(Nvml.open([ONE]), "nvidia-ml-py is not installed; pip install nvidia-ml-py")


@pytest.mark.parametrize("why", ["NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded"])
def test_without_a_driver_everything_is_unknown(fake: Callable[..., Fake], why: str) -> None:
    fake(Card(ONE)).start_fails = why
    nothing(Nvml.open([ONE]), f"NVML does not start ({why.removeprefix('NVMLError_')}); is there an NVIDIA driver?")


def test_without_a_gpu_everything_is_unknown(fake: Callable[..., Fake]) -> None:
    fake()
    nothing(Nvml.open([]), "There is no NVIDIA GPU")


@pytest.mark.parametrize("uuid", ["MIG-33333333", None])
def test_a_gpu_that_nvml_does_not_know_is_named(fake: Callable[..., Fake], uuid: str | None) -> None:
    fake(Card(ONE))
    nothing(Nvml.open([uuid]), f"NVML does not know {uuid}")


def nothing(opened: Nvml, why: str) -> None:
    """Asking everything of it says why, and fails nowhere."""
    assert opened.why_not is not None
    assert why in opened.why_not
    assert (opened.uuids, opened.energy_joules(), opened.used_bytes(), opened.default_clocks()) == ((), None, (), ())
    with Sampler(opened) as sampler:
        assert sampler.flagged([(0, time.perf_counter())]) == [None]
    assert (sampler.summary(0, 1e9), sampler.lost) == ((), None)
    opened.close()


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


def test_energy_of_some_of_the_gpus_is_not_energy(fake: Callable[..., Fake]) -> None:
    fake(Card(ONE))
    opened = Nvml.open([ONE, TWO])
    assert opened.uuids == (ONE,)
    assert opened.energy_joules() is None
    assert opened.used_bytes() == (7 << 30,)


def test_the_default_clock_says_where_it_is_from(fake: Callable[..., Fake]) -> None:
    missing = {"nvmlDeviceGetDefaultApplicationsClock": "NVMLError_NotSupported"}
    fake(Card(ONE, default=1755), Card(TWO, most=2520, fails=missing))
    first, second = Nvml.open([ONE, TWO]).default_clocks()
    assert first == nvml.DefaultClock(1755, "nvmlDeviceGetDefaultApplicationsClock")
    assert second == nvml.DefaultClock(2520, "nvmlDeviceGetMaxClockInfo")


def test_a_summary_of_what_was_sampled(fake: Callable[..., Fake]) -> None:
    card = Card(ONE, clocks=[1980, 1400, 1500, 1600], default=2000, reasons=[0x1, 0x4, 0x0, 0x20], power_mw=412_500)
    fake(card)
    before = time.perf_counter()
    sampler = sampled(Nvml.open([ONE]), after(4))
    found = sampler.arrays(ONE)
    times = found["time"]
    assert list(found["sm_mhz"][:4]) == [1980, 1400, 1500, 1600]
    assert set(found["memory_mhz"]) == {2619}
    assert set(found["pstate"]) == {2}
    assert set(found) == set(nvml.COLUMNS)
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
    assert [each.throttled_share for each in sampler.summary(0, 1e9)] == [0, 1]


def test_sensors_that_do_not_answer_are_absent(fake: Callable[..., Fake]) -> None:
    silent = ("PowerUsage", "Temperature", "CurrentClocksEventReasons", "PerformanceState", "MaxClockInfo")
    fails = {f"nvmlDeviceGet{name}": "NVMLError_NotSupported" for name in silent}
    card = Card(ONE, fails={**fails, "nvmlDeviceGetDefaultApplicationsClock": "NVMLError_NotSupported"}, reasons=[0x8])
    fake(card)
    sampler = sampled(Nvml.open([ONE]), after(3))
    (found,) = sampler.summary(0, 1e9)
    assert (found.power_w_mean, found.temperature_c_max, found.sm_mhz_median) == (None, None, 1980)
    assert (found.default_mhz, found.default_source, found.throttled_share) == (None, None, None)
    # the older name of the same mask answers
    assert found.reasons == ("hw_slowdown",)
    assert sampler.flagged([(0, 1e9)]) == [None]
    assert np.isnan(sampler.arrays(ONE)["pstate"]).all()
    assert sampler.lost is None


def test_a_library_without_the_newer_name_uses_the_older(fake: Callable[..., Fake], request: Any) -> None:
    taken = Fake.nvmlDeviceGetCurrentClocksEventReasons
    request.addfinalizer(lambda: setattr(Fake, "nvmlDeviceGetCurrentClocksEventReasons", taken))
    del Fake.nvmlDeviceGetCurrentClocksEventReasons
    fake(Card(ONE, reasons=[0x80]))
    (found,) = sampled(Nvml.open([ONE]), after(2)).summary(0, 1e9)
    assert found.reasons == ("hw_power_brake_slowdown",)


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
    assert sampler.lost == f"NVML lost {ONE} (GpuIsLost); no clocks are known from then on."
    (found,) = sampler.summary(0, 1e9)
    assert found.samples == held >= 3
    card.fails["nvmlDeviceGetTotalEnergyConsumption"] = "NVMLError_GpuIsLost"
    assert opened.energy_joules() is None


def wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not ready() and time.monotonic() < until:
        time.sleep(0.001)
    assert ready()


def test_the_thread_ends_with_its_context(fake: Callable[..., Fake]) -> None:
    import threading

    fake(Card(ONE))

    def alive() -> Iterator[str]:
        return (each.name for each in threading.enumerate() if each.name == "moe-eval-nvml")

    with Sampler(Nvml.open([ONE]), every=60) as sampler:
        assert list(alive())
        wait(lambda: len(sampler.arrays(ONE)["time"]) == 1)
    assert not list(alive())
