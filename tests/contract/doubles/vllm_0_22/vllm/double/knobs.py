"""Faults to order through VLLM_DOUBLE."""

from __future__ import annotations

import os

_KNOWN = frozenset(
    [
        "oom_load",
        "no_gpu",
        "fail_at",
        "dead_at",
        "hang_at",
        "short_output",
        "shift",
        "free",
        "silent_experts",
        "drop",
        "no_states",
        "ranks",
    ]
)
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free."
)


def knob(name: str, default: str = "") -> str:
    """A fault's value, `1` where it was given without one."""
    for part in filter(None, os.environ.get("VLLM_DOUBLE", "").split(",")):
        key, _, value = part.partition("=")
        if key not in _KNOWN:
            raise LookupError(f"VLLM_DOUBLE has no knob {key!r}")
        if key == name:
            return value or "1"
    return default
