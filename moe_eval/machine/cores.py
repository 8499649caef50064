"""CPU cores that other processes leave to this one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

_INTERVAL = 1.0  # seconds over which cores are counted, at least
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of a period, or "max"


class _Sample(NamedTuple):
    """Seconds: on a clock, of work on this process's cores, and of its own work."""

    time: float
    busy: float
    own: float


class FreeCores:
    """Counts the cores that others do not use, over the time since the last count."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        self._most = min(float(len(self._cores)), _quota())
        self._last = self._sample()
        self._free = max(1, round(self._most))

    def count(self) -> int:
        """Whole cores, at least 1. Within a second of the last count it is that count."""
        if time.monotonic() - self._last.time >= _INTERVAL:
            before, self._last = self._last, self._sample()
            others = (self._last.busy - before.busy) - (self._last.own - before.own)
            self._free = max(1, round(self._most - max(0.0, others) / (self._last.time - before.time)))
        return self._free

    def _sample(self) -> _Sample:
        every = psutil.cpu_times(percpu=True)
        idle = ("idle", "iowait", "guest", "guest_nice")  # the last two are in user and nice as well
        rows = (every[core]._asdict() for core in self._cores if core < len(every))
        busy = sum(seconds for row in rows for name, seconds in row.items() if name not in idle)
        own = self._process.cpu_times()
        return _Sample(time.monotonic(), busy, own.user + own.system)


def _quota() -> float:
    """Cores' worth of time that a container may use."""
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no container, or no limit
        return float("inf")
