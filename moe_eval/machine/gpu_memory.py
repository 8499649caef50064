"""GPU memory in use before an arm is loaded and after its process has ended."""

from __future__ import annotations

import time

from moe_eval.machine.nvml import Nvml

# how long the driver may take to give memory back, and what may be missing from it
_FREED_SECONDS, _FREED_BYTES = 10.0, 256 << 20


def used(nvml: Nvml) -> int | None:
    """Bytes in use on all GPUs of an arm together; None where NVML does not tell."""
    found = [each for each in nvml.used_bytes() if each is not None]
    return sum(found) if found else None


def freed(nvml: Nvml, before: int | None) -> int | None:
    """Bytes in use once a process has ended; the driver takes a moment to give them back."""
    end = time.monotonic() + _FREED_SECONDS
    while True:
        now = used(nvml)
        if now is None or before is None or now <= before + _FREED_BYTES or time.monotonic() > end:
            return now
        time.sleep(0.2)
