"""Names and numbers as a reader sees them; what was not measured says so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "not measured"
LONGEST_NAME, LONGEST_SENTENCE = 120, 1500
METRICS = {
    "e2e_ms": "end-to-end time",
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "j_per_tok": "energy per output token",
}
UNITS = {"e2e_ms": "ms", "ttft_ms": "ms", "tpot_ms": "ms", "j_per_tok": "J"}
MODES = {
    "interleaved": "all arms were loaded at once and took turns, so drift moves them alike",
    "reloaded": "the arms do not fit together, so each was loaded again in every block",
    "sequential": "each arm was loaded once, so drift between them is in no interval",
}


def plain(value: Any, longest: int = LONGEST_NAME) -> str:
    """Text from outside on one line, without control characters, lone surrogates or changes of direction, and cut."""
    text = value if isinstance(value, str) else str(value)
    cut = text[: longest + 1]  # before the loop: a name may have any length
    shown = " ".join("".join(each if each.isprintable() else " " for each in cut).split())
    return f"{shown[: longest - 3]}..." if len(text) > longest else shown


def named(value: Any) -> str:
    """A label, or that it is not known."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value)


def finite(value: Any) -> float | None:
    """The number, None for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def pair_of(values: Any) -> tuple[float | None, float | None]:
    """Two numbers, each None where it is missing."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2:
        return None, None
    return finite(values[0]), finite(values[1])


def number(value: Any, digits: int, *, unit: str = "", signed: bool = False) -> str:
    """A number of so many digits after the point; a zero has no sign."""
    found = finite(value)
    if found is None:
        return NONE
    shown = f"{found:{'+' if signed else ''},.{digits}f}"
    if not any(each in shown for each in "123456789"):
        shown = shown.lstrip("+-")
    return f"{shown}{unit}"


def span(low: Any, high: Any, digits: int, *, unit: str = "", signed: bool = False) -> str:
    """An interval, "none" where a bound is missing."""
    if finite(low) is None or finite(high) is None:
        return "none"
    return f"{number(low, digits, unit=unit, signed=signed)} to {number(high, digits, unit=unit, signed=signed)}"


def digits_of(values: Iterable[Any]) -> int:
    """Digits after the point that show the largest of the values to about five places."""
    largest = max((abs(found) for each in values if (found := finite(each)) is not None), default=0.0)
    return 3 if largest < 100 else 2 if largest < 1000 else 1


def category(name: Any) -> str:
    """A function of the taxonomy in words."""
    return plain(str(name)[: LONGEST_NAME + 1].replace("_", " ").replace("gemm", "GEMM"))


def comparable(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pairs of which figures may stand side by side."""
    return [pair for pair in comparison.get("pairs") or () if pair.get("verdict") != "not comparable"]


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines, such as ("gpus 1 name", "NVIDIA H100")."""
    inner: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value, 1)
    else:
        return [(path, named(value))]
    return [line for key, each in inner for line in flat(each, f"{path} {plain(key)}".strip())]
