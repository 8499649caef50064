"""What crosses into the worker; without torch, which the caller need not import."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request."""

    id: int
    tokens: list[int]
    max_tokens: int
    end_id: int
    stops: list[tuple[Any, list[int]]]
    sampling: dict[str, Any]
    cache_salt: str | None = None
    streaming: bool = False
    perf_metrics: bool = False
    arrival: float = field(default_factory=time.monotonic)
