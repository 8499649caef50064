"""A stand-in for pynvml: some cards whose sensors a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
CONSTANTS = {"NVML_CLOCK_GRAPHICS": 0, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
ERRORS = {
    "NVMLError_NotSupported": 3,
    "NVMLError_NotFound": 6,
    "NVMLError_DriverNotLoaded": 9,
    "NVMLError_LibraryNotFound": 12,
    "NVMLError_FunctionNotFound": 13,
    "NVMLError_GpuIsLost": 15,
    "NVMLError_Unknown": 999,
}


@dataclass
class Card:
    """One GPU's sensors. `fails` holds the error that a function raises, `clocks` the SM clocks of the next samples."""

    uuid: str
    clocks: list[int] = field(default_factory=lambda: [1980])
    memory_mhz: int = 2619
    default: int = 1980
    max_mhz: int = 2100
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
        self.cards = {card.uuid: card for card in cards}
        self.open = 0
        self.start_fails: str | None = None
        self.NVMLError = type("NVMLError", (Exception,), {})
        for name in ERRORS:
            setattr(self, name, type(name, (self.NVMLError,), {}))
        for name, value in CONSTANTS.items():
            setattr(self, name, value)

    def error(self, name: str) -> Exception:
        kind: type[Exception] = getattr(self, name)
        return kind(name.removeprefix("NVMLError_"))

    def _card(self, card: Card, function: str) -> Card:
        if not self.open:
            raise AssertionError("called before nvmlInit or after nvmlShutdown")
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
        return card.memory_mhz if kind == 2 else card.max_mhz

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
