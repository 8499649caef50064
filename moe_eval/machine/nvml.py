"""The GPUs' own sensors, read through NVML: clocks, power, temperature, energy and the reasons for a lower clock.

Nothing here fails a run. A value that the library, the driver or a GPU does not give is None, and `why_not` says why.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from moe_eval.frozen import frozen

# what Nvml.sample returns: `reasons` is a bit mask, and a pstate of 0 is the fastest
SENSORS = ("sm_mhz", "memory_mhz", "power_w", "temperature_c", "reasons", "pstate")
IDLE = 0x1  # the reason of an idle GPU
# how long the driver may take to give memory back, and how much it may keep
_FREED_SECONDS, _FREED_BYTES = 10.0, 256 << 20
# nvml.h, nvmlClocksEventReasons (nvmlClocksThrottleReasons before CUDA 12.2)
_REASONS = {
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


class GpuLost(Exception):
    """A GPU has fallen off the bus. Only the sampler catches this."""


@frozen
class DefaultClock:
    """A GPU's default SM clock in MHz, and the NVML call that gave it."""

    mhz: float
    source: str


def reason_names(mask: int) -> tuple[str, ...]:
    """The names of a mask's reasons without that of an idle GPU. A bit that has no name here keeps its number."""
    bits = (1 << position for position in range(mask.bit_length()))
    return tuple(_REASONS.get(bit, f"unknown_0x{bit:x}") for bit in bits if mask & bit and bit != IDLE)


class Nvml:
    """NVML's handles of some GPUs. `open` makes it. `close` it, or use it as a context manager.

    Attributes:
        why_not: why NVML knows none or not all of the GPUs. None if it knows them all.
    """

    def __init__(self, library: ModuleType | None, handles: Mapping[str, object], why_not: str | None) -> None:
        self._library = library
        self._handles = handles
        self.why_not = why_not

    @classmethod
    def open(cls, uuids: Sequence[str | None]) -> Nvml:
        """Look up GPUs by the UUIDs that hardware.gpus() gives. `why_not` names those that NVML does not know."""
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return cls(None, {}, "The package nvidia-ml-py is not installed. Run pip install nvidia-ml-py.")
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            return cls(None, {}, f"NVML does not start ({error}). Check that an NVIDIA driver is installed.")
        if not uuids:
            return cls(library, {}, "There is no NVIDIA GPU whose sensors NVML could read.")
        handles, unknown = {}, []
        for uuid in uuids:
            try:
                if uuid:
                    handles[uuid] = library.nvmlDeviceGetHandleByUUID(uuid)
                else:
                    unknown.append(str(uuid))
            except library.NVMLError as error:
                unknown.append(f"{uuid} ({error})")
        why_not = f"NVML does not know {', '.join(unknown)}. A MIG slice has no sensors." if unknown else None
        return cls(library, handles, why_not)

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs that NVML knows, in the order of `open`. Every tuple here has this order."""
        return tuple(self._handles)

    def energy_joules(self) -> float | None:
        """Energy since the driver was loaded, all GPUs together. None unless every GPU counts it."""
        energies_mj = [self._call(handle, "nvmlDeviceGetTotalEnergyConsumption") for handle in self._handles.values()]
        return None if self.why_not or not energies_mj or None in energies_mj else sum(energies_mj) / 1e3

    def temperatures(self) -> tuple[float, ...]:
        """Degrees Celsius of every GPU. Empty unless every GPU tells."""
        handles = self._handles.values()
        degrees = [self._call(handle, "nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU") for handle in handles]
        return () if self.why_not or None in degrees else tuple(map(float, degrees))

    def used_bytes(self) -> tuple[int | None, ...]:
        """Memory in use on every GPU, by every process on it."""
        infos = [self._call(handle, "nvmlDeviceGetMemoryInfo") for handle in self._handles.values()]
        return tuple(None if info is None else int(info.used) for info in infos)

    def memory(self) -> int | None:
        """Memory in use on all GPUs together. None if NVML does not know."""
        used_bytes = [count for count in self.used_bytes() if count is not None]
        return sum(used_bytes) if used_bytes else None

    def memory_freed(self, before: int | None) -> int | None:
        """Memory in use after a process has ended. The driver takes a moment to give it back."""
        end = time.monotonic() + _FREED_SECONDS
        while True:
            in_use = self.memory()
            if in_use is None or before is None or in_use <= before + _FREED_BYTES or time.monotonic() > end:
                return in_use
            time.sleep(0.2)

    def default_clocks(self) -> tuple[DefaultClock | None, ...]:
        """The clock that every GPU should run at: its default applications clock, else its highest clock."""
        names = ("nvmlDeviceGetDefaultApplicationsClock", "nvmlDeviceGetMaxClockInfo")
        clocks = ([(self._call(gpu, name, "NVML_CLOCK_SM"), name) for name in names] for gpu in self._handles.values())
        return tuple(next((DefaultClock(float(mhz), name) for mhz, name in pair if mhz), None) for pair in clocks)

    def sample(self, uuid: str) -> tuple[float, ...]:
        """Read a GPU's SENSORS once. A sensor that does not answer is NaN.

        Raises:
            GpuLost: the GPU is gone.
        """

        def number(name: str, *constants: str) -> float:
            value = self._call(self._handles[uuid], name, *constants, raise_lost=True)
            return float("nan") if value is None else float(value)

        reasons = number("nvmlDeviceGetCurrentClocksEventReasons")
        if np.isnan(reasons):  # older drivers know only its older name
            reasons = number("nvmlDeviceGetCurrentClocksThrottleReasons")
        return (
            number("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
            number("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
            number("nvmlDeviceGetPowerUsage") / 1e3,
            number("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
            reasons,
            number("nvmlDeviceGetPerformanceState"),
        )

    def close(self) -> None:
        """Shut NVML down. Nothing is known afterwards."""
        library, self._library, self._handles = self._library, None, {}
        if library is not None:
            with contextlib.suppress(library.NVMLError):
                library.nvmlShutdown()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, handle: object, name: str, *constants: str, raise_lost: bool = False) -> Any:
        """The answer of an NVML function, or None if it fails. With `raise_lost` a lost GPU raises GpuLost."""
        library = self._library
        call = getattr(library, name, None)
        if library is None or call is None:
            return None
        try:
            return call(handle, *(getattr(library, constant) for constant in constants))
        except library.NVMLError as error:
            if raise_lost and isinstance(error, library.NVMLError_GpuIsLost):
                raise GpuLost(str(error)) from error
            return None
