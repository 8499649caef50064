"""Faults to order through TRTLLM_DOUBLE, and the log that TRTLLM_DOUBLE_LOG names."""

from __future__ import annotations

import json
import os
from typing import Any


class NotImitatedError(RuntimeError):
    """The real package does this and its double does not."""


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free."
)
# fact sheet, additions of 2026-11-26, 6: the second manager's advice is the opposite of the first one's
KV_SHORT = {
    "KVCacheManager": (
        "Executor creation failed due to insufficient GPU memory.\n\nThe following component could not be created: KV "
        "cache\nTotal GPU memory (GiB): 79.11\nPossible options include: reduce free_gpu_memory_fraction"
    ),
    "KVCacheManagerV2": (
        "Executor creation failed due to insufficient GPU memory.\n\nThe following component could not be created: KV "
        "cache\nPossible options include: increase free_gpu_memory_fraction or reduce max_batch_size"
    ),
}
ILLEGAL_ACCESS = "CUDA error: an illegal memory access was encountered"
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
_KNOWN = frozenset(
    (  # noqa: SIM905
        "die_after end_loop_at oom_load oom_at fail_at no_gpu shift shift_logits short_output no_rank version "
        "lose_at drop_at unhealthy_at hang_import hang_load load_error hang_exit no_labels bare_fails "
        "stats_fail stats_hang kv_short"
    ).split()
)


def knobs() -> dict[str, str]:
    """The faults ordered, by name; a name without a value has the value "1"."""
    ordered = {}
    for part in filter(None, os.environ.get("TRTLLM_DOUBLE", "").split(",")):
        name, _, value = part.strip().partition("=")
        if name not in _KNOWN:
            raise LookupError(f"TRTLLM_DOUBLE has no knob {name!r}; it has {sorted(_KNOWN)}")
        ordered[name] = value or "1"
    return ordered


def number(name: str) -> int:
    """A knob's number, 0 where it was not given."""
    return int(knobs().get(name, "0"))


def own_variables() -> dict[str, str]:
    """The variables that are forwarded to workers: those with TensorRT-LLM's prefixes."""
    return {key: value for key, value in os.environ.items() if key.startswith(("TRTLLM", "TLLM"))}


def log(event: str, **what: Any) -> None:
    """Append one JSON line; a single write of O_APPEND, so that processes do not mix lines."""
    path = os.environ.get("TRTLLM_DOUBLE_LOG")
    if path:
        line = json.dumps({"event": event, "pid": os.getpid(), **what}, default=repr) + "\n"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
