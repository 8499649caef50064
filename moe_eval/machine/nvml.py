"""The GPUs' own sensors: clocks, power, temperature, energy and why they slow down, read through NVML.

Nothing here fails a run: what the library, the driver or a GPU does not tell is None, and `why_not` or `lost` says why.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# share of the default clock under which a sample counts as throttled: nvbench's --throttle-threshold, 75 by default
THROTTLED = 0.75
# what a sample holds: seconds of time.perf_counter, then the sensors; `reasons` is a bit mask, pstate 0 the fastest
COLUMNS = ("time", "sm_mhz", "memory_mhz", "power_w", "temperature_c", "reasons", "pstate")
_IDLE = 0x1
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
_NO_LIBRARY = "the package nvidia-ml-py is not installed"


class GpuLost(Exception):
    """A GPU has fallen off the bus; only the sampler sees this."""


@dataclass(frozen=True)
class DefaultClock:
    """A GPU's default SM clock in MHz, and the NVML call that gave it."""

    mhz: float
    source: str


@dataclass(frozen=True)
class Summary:
    """One GPU over a stretch of time; None where it did not tell.

    Attributes:
        uuid: of the GPU.
        samples: how many lie in the stretch.
        sm_mhz_median, sm_mhz_min, sm_mhz_max, power_w_mean, temperature_c_max: by their units. Since Ampere (but for
            the GA100) NVML's power is itself an average over the last second (nvml.h, nvmlDeviceGetPowerUsage), so that
            of a shorter stretch it also holds what ran before.
        default_mhz, default_source: the clock to compare with, and the NVML call that gave it.
        throttled_share: of the samples, those with the SM clock under THROTTLED of the default.
        reasons: every reason for a lower clock that was given at least once, but for an idle GPU.
        idle_share: of the samples, those in which the GPU said it was idle.
    """

    uuid: str
    samples: int
    sm_mhz_median: float | None
    sm_mhz_min: float | None
    sm_mhz_max: float | None
    power_w_mean: float | None
    temperature_c_max: float | None
    default_mhz: float | None
    default_source: str | None
    throttled_share: float | None
    reasons: tuple[str, ...]
    idle_share: float | None


def reason_names(mask: int) -> tuple[str, ...]:
    """The names of a mask's reasons, without that of an idle GPU; bits unknown here by their number."""
    bits = (1 << at for at in range(mask.bit_length()))
    return tuple(_REASONS.get(bit, f"unknown_0x{bit:x}") for bit in bits if mask & bit and bit != _IDLE)


class Nvml:
    """NVML's handles of some GPUs. Made by `open`; `close` it, or use it as a context manager."""

    def __init__(self, library: ModuleType | None, handles: dict[str, Any], why_not: str | None) -> None:
        self._library = library
        self._handles = handles
        self.why_not = why_not

    @classmethod
    def open(cls, uuids: Sequence[str | None]) -> Nvml:
        """Look up GPUs by the UUIDs that hardware.gpus() gives; those NVML does not know are named in `why_not`."""
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return cls(None, {}, f"{_NO_LIBRARY}; pip install nvidia-ml-py.")
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            return cls(None, {}, f"NVML does not start ({error}); is there an NVIDIA driver?")
        handles, unknown = {}, []
        for uuid in uuids:
            try:
                handles[str(uuid)] = library.nvmlDeviceGetHandleByUUID(uuid) if uuid else None
            except library.NVMLError as error:
                unknown.append(f"{uuid} ({error})")
        unknown += [uuid for uuid, handle in handles.items() if handle is None]
        known = {uuid: handle for uuid, handle in handles.items() if handle is not None}
        why_not = (
            f"NVML does not know {', '.join(unknown)}; a MIG slice has no sensors of its own." if unknown else None
        )
        return cls(library, known, why_not if uuids else "There is no NVIDIA GPU to ask NVML about.")

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs that are known, in the order asked for; every tuple here follows it."""
        return tuple(self._handles)

    def energy_joules(self) -> float | None:
        """Energy since the driver was loaded, all GPUs together; None unless every GPU asked for counts it."""
        read = [self._ask(handle, "nvmlDeviceGetTotalEnergyConsumption") for handle in self._handles.values()]
        return None if self.why_not or not read or None in read else sum(read) / 1e3

    def used_bytes(self) -> tuple[int | None, ...]:
        """Memory in use on every GPU, by every process on it."""
        read = [self._ask(handle, "nvmlDeviceGetMemoryInfo") for handle in self._handles.values()]
        return tuple(None if each is None else int(each.used) for each in read)

    def default_clocks(self) -> tuple[DefaultClock | None, ...]:
        """The clock that every GPU is to run at: its default applications clock, else the highest there is."""
        return tuple(self._default_clock(handle) for handle in self._handles.values())

    def _default_clock(self, handle: Any) -> DefaultClock | None:
        for name in ("nvmlDeviceGetDefaultApplicationsClock", "nvmlDeviceGetMaxClockInfo"):
            mhz = self._ask(handle, name, "NVML_CLOCK_SM")
            if mhz:
                return DefaultClock(float(mhz), name)
        return None

    def sample(self, uuid: str) -> tuple[float, ...]:
        """Look at a GPU once: COLUMNS without the time, NaN where it does not tell.

        Raises:
            GpuLost: it is gone.
        """

        def number(name: str, *constants: str) -> float:
            value = self._ask(self._handles[uuid], name, *constants, lost=True)
            return float("nan") if value is None else float(value)

        reasons = number("nvmlDeviceGetCurrentClocksEventReasons")
        if np.isnan(reasons):  # older drivers know it by its older name only
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
        """Let NVML go; nothing is known afterwards."""
        library, self._library, self._handles = self._library, None, {}
        if library is not None:
            with contextlib.suppress(library.NVMLError):
                library.nvmlShutdown()

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, handle: Any, name: str, *constants: str, lost: bool = False) -> Any:
        """What a call of NVML answers, or None; with `lost`, GpuLost where the GPU is gone."""
        library = self._library
        call = getattr(library, name, None)
        if library is None or call is None:
            return None
        try:
            return call(handle, *(getattr(library, each) for each in constants))
        except library.NVMLError as error:
            if lost and isinstance(error, library.NVMLError_GpuIsLost):
                raise GpuLost(str(error)) from error
            return None


class Sampler:
    """Reads the sensors of every GPU in a thread while its context is open.

    Attributes:
        lost: why sampling stopped early, one sentence; None while it goes on.
    """

    def __init__(self, nvml: Nvml, every: float = 0.1) -> None:
        """Sample every so many seconds."""
        self.lost: str | None = None
        self._nvml = nvml
        self._every = every
        self._rows: dict[str, list[tuple[float, ...]]] = {uuid: [] for uuid in nvml.uuids}
        self._defaults = dict(zip(nvml.uuids, nvml.default_clocks(), strict=True))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moe-eval-nvml", daemon=True)

    def __enter__(self) -> Sampler:
        if self._rows:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._rows:
            self._thread.join(timeout=10)  # a driver that hangs must not hang the measurement

    def _run(self) -> None:
        while True:
            for uuid, rows in self._rows.items():
                try:
                    rows.append((time.perf_counter(), *self._nvml.sample(uuid)))
                except GpuLost as error:
                    self.lost = f"NVML lost {uuid} ({error}); no clocks are known from then on."
                    return
                except Exception as error:  # a thread's exception would reach nobody
                    self.lost = f"Sampling {uuid} broke off ({type(error).__name__}: {error})."
                    return
            if self._stop.wait(self._every):
                return

    def arrays(self, uuid: str) -> dict[str, Array]:
        """What was read of a GPU so far, by the names of COLUMNS, each float64 of shape (samples,)."""
        rows = np.array(self._rows[uuid], dtype=np.float64).reshape(-1, len(COLUMNS))
        return {name: rows[:, at] for at, name in enumerate(COLUMNS)}

    def summary(self, start: float, end: float) -> tuple[Summary, ...]:
        """Every GPU from `start` to `end`, seconds of time.perf_counter."""
        return tuple(self._summary(uuid, start, end) for uuid in self._rows)

    def flagged(self, spans: Sequence[tuple[float, float]]) -> list[bool | None]:
        """In which stretches of time the mean SM clock of some GPU is under THROTTLED of its default.

        Returns:
            For every (start, end); None where no GPU has a sample in it, or none a default clock.
        """
        known = [(self.arrays(uuid), default.mhz) for uuid, default in self._defaults.items() if default is not None]
        flags: list[bool | None] = []
        for start, end in spans:
            clocks = [(_within(found, start, end)["sm_mhz"], mhz) for found, mhz in known]
            slow = [bool(each.mean() < THROTTLED * mhz) for each, mhz in clocks if len(each)]
            flags.append(any(slow) if slow else None)
        return flags

    def _summary(self, uuid: str, start: float, end: float) -> Summary:
        part, default = _within(self.arrays(uuid), start, end), self._defaults[uuid]
        clock, masks = part["sm_mhz"], part["reasons"].astype(np.int64)
        return Summary(
            uuid=uuid,
            samples=len(part["time"]),
            sm_mhz_median=_of(np.median, clock),
            sm_mhz_min=_of(np.min, clock),
            sm_mhz_max=_of(np.max, clock),
            power_w_mean=_of(np.mean, part["power_w"]),
            temperature_c_max=_of(np.max, part["temperature_c"]),
            default_mhz=default.mhz if default else None,
            default_source=default.source if default else None,
            throttled_share=_of(np.mean, clock < THROTTLED * default.mhz) if default else None,
            reasons=reason_names(int(np.bitwise_or.reduce(masks))),
            idle_share=_of(np.mean, masks & _IDLE != 0),
        )


def _within(found: dict[str, Array], start: float, end: float) -> dict[str, Array]:
    """The part of every column between two times, without what was not told."""
    inside = (start <= found["time"]) & (found["time"] <= end)
    return {name: each[inside & ~np.isnan(each)] for name, each in found.items()}


def _of(function: Callable[[Array], Any], values: Array) -> float | None:
    return float(function(values)) if len(values) else None
