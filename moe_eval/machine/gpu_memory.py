"""GPU memory in use before an arm is loaded and after its process has ended."""

from __future__ import annotations

import time

from moe_eval.machine.nvml import Nvml

# how long the driver may take to give memory back, and how much it may keep
_FREED_SECONDS, _FREED_BYTES = 10.0, 256 << 20


def used(nvml: Nvml) -> int | None:
    """Bytes in use on all GPUs of an arm together. None if NVML does not know."""
    used_bytes = [count for count in nvml.used_bytes() if count is not None]
    return sum(used_bytes) if used_bytes else None


def freed(nvml: Nvml, before: int | None) -> int | None:
    """Bytes in use after a process has ended. The driver takes a moment to give them back."""
    end = time.monotonic() + _FREED_SECONDS
    while True:
        in_use = used(nvml)
        if in_use is None or before is None or in_use <= before + _FREED_BYTES or time.monotonic() > end:
            return in_use
        time.sleep(0.2)
