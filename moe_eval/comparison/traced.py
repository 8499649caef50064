"""Which trace of an arm belongs to a timed shape."""

from __future__ import annotations

import re
from collections.abc import Iterable

from moe_eval.data.workload import Shape

_SHAPE = re.compile(r"b(\d+)_i(\d+)_o(\d+)")


def matching(name: str, among: Iterable[str]) -> str | None:
    """The traced shape that belongs to a timed one: its own, else the only one with another output length.

    A trace of a few tokens has the same prefill and the same decode steps as a timed run that makes hundreds.
    """
    traced = list(among)
    if name in traced:
        return name
    shape = sizes(name)
    if shape is None:
        return None
    candidates = [
        candidate
        for candidate in traced
        if (size := sizes(candidate)) and (size.batch_size, size.input_len) == (shape.batch_size, shape.input_len)
    ]
    return candidates[0] if len(candidates) == 1 else None


def sizes(name: str) -> Shape | None:
    """The shape of a name such as b8_i512_o256. None where it is no such name."""
    match = _SHAPE.fullmatch(name)
    return Shape(*map(int, match.groups())) if match else None
