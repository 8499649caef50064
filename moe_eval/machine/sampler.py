"""Watches the GPUs' sensors in a thread while something is measured, and sums them up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.frozen import frozen
from moe_eval.machine.nvml import IDLE, SENSORS, GpuLost, Nvml, reason_names

Array = npt.NDArray[Any]

# share of the default clock under which a sample counts as throttled: nvbench's --throttle-threshold, 75 by default
THROTTLED = 0.75
COLUMNS = ("time", *SENSORS)  # time in seconds of time.perf_counter


@frozen
class GpuSummary:
    """One GPU over a stretch of time. A value that the GPU did not give is None.

    Attributes:
        uuid: of the GPU.
        samples: number of samples in the stretch.
        sm_mhz_median, sm_mhz_min, sm_mhz_max, temperature_c_max: by their units.
        power_w_mean: since Ampere, except on the GA100, NVML's power is an average over the last second (nvml.h,
            nvmlDeviceGetPowerUsage). In a shorter stretch it includes the work before.
        default_mhz, default_source: the clock to compare with, and the NVML call that gave it.
        throttled_share: share of the samples with an SM clock under THROTTLED of the default.
        reasons: every reason for a lower clock that some sample has, without that of an idle GPU.
        idle_share: share of the samples in which the GPU was idle.
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


class Sampler:
    """Reads the sensors of every GPU in a thread while its context is open.

    Attributes:
        lost: why sampling stopped early, in one sentence. None while it goes on.
    """

    def __init__(self, nvml: Nvml, every: float = 0.1) -> None:
        """Sample once in `every` seconds."""
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
                    self.lost = f"NVML lost {uuid} ({error}). Its clocks are not known from then on."
                    return
                except Exception as error:  # a thread's exception would reach nobody
                    self.lost = f"Sampling {uuid} broke off ({type(error).__name__}: {error})."
                    return
            if self._stop.wait(self._every):
                return

    def arrays(self, uuid: str) -> dict[str, Array]:
        """A GPU's samples so far: one array for each of COLUMNS, float64, shape (samples,)."""
        rows = np.array(self._rows[uuid], dtype=np.float64).reshape(-1, len(COLUMNS))
        return {name: rows[:, index] for index, name in enumerate(COLUMNS)}

    def summary(self, start: float, end: float) -> tuple[GpuSummary, ...]:
        """Every GPU from `start` to `end`, in seconds of time.perf_counter."""
        return tuple(self._summary(uuid, start, end) for uuid in self._rows)

    def flagged(self, spans: Sequence[tuple[float, float]]) -> list[bool | None]:
        """Whether the mean SM clock of some GPU is under THROTTLED of its default, for every (start, end).

        Returns:
            None for a span in which no GPU has both a sample and a default clock.
        """
        gpus = [(self.arrays(uuid), default.mhz) for uuid, default in self._defaults.items() if default is not None]
        flags: list[bool | None] = []
        for start, end in spans:
            clocks = [(_within(columns, start, end)["sm_mhz"], default_mhz) for columns, default_mhz in gpus]
            slow = [bool(sm_mhz.mean() < THROTTLED * default_mhz) for sm_mhz, default_mhz in clocks if len(sm_mhz)]
            flags.append(any(slow) if slow else None)
        return flags

    def _summary(self, uuid: str, start: float, end: float) -> GpuSummary:
        part, default = _within(self.arrays(uuid), start, end), self._defaults[uuid]
        clock, masks = part["sm_mhz"], part["reasons"].astype(np.int64)
        return GpuSummary(
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
            idle_share=_of(np.mean, masks & IDLE != 0),
        )


def _within(columns: Mapping[str, Array], start: float, end: float) -> dict[str, Array]:
    """The part of every column between two times, without missing values."""
    inside = (start <= columns["time"]) & (columns["time"] <= end)
    return {name: values[inside & ~np.isnan(values)] for name, values in columns.items()}


def _of(function: Callable[[Array], Any], values: Array) -> float | None:
    return float(function(values)) if len(values) else None
