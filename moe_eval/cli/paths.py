"""Paths that are not there, and their neighbours."""

from __future__ import annotations

from pathlib import Path

from moe_eval.errors import nearest


def meant(path: Path) -> str:
    """The sentence " Did you mean ...?" with the neighbour of a path that is not there. Empty where none is near."""
    try:
        name = None if path.exists() else nearest(path.name, [neighbour.name for neighbour in path.parent.iterdir()])
    except OSError:
        return ""
    return "" if name is None else f" Did you mean {path.with_name(name)}?"
