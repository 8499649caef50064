"""`python -m moe_eval.engines.trtllm.contract`: what of an installed TensorRT-LLM is not as contract.toml has it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from moe_eval.checkpoint.precision import is_in
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import toml

_UNSEEN = ("instance", "environment")  # nothing to look up before an LLM is built


@frozen
class Name:
    """One name that the engine relies on. See the head of contract.toml."""

    kind: Literal["class", "field", "method", "instance", "environment"]
    owner: str
    name: str
    source: str
    versions: str = ""


@cache
def names() -> tuple[Name, ...]:
    """The rows of contract.toml."""
    return tuple(msgspec.convert(toml.read(Path(__file__).with_name("contract.toml"))["name"], list[Name]))


def differences(version: str) -> Iterator[str]:
    """A line for every name that the installed version lacks, or has though it was not known to."""
    for row in names():
        if row.kind in _UNSEEN:
            continue
        is_expected, is_there = is_in(row.versions, version), _has(row)
        if is_expected and not is_there:
            yield f"{row.owner} has no {row.name} (read in {row.source})"
        elif is_there and not is_expected:
            yield f"{row.owner} has {row.name}, which was expected {row.versions}"


def lines(version: str) -> list[str]:
    """The outcome as a list of Markdown."""
    sentences = list(differences(version))
    checked = sum(row.kind not in _UNSEEN for row in names())
    return [f"- {len(sentences)} of {checked} names differ", *(f"- {sentence}" for sentence in sentences)]


def _has(row: Name) -> bool:
    owner = _owner(row.owner)
    if row.kind != "field":
        return hasattr(owner, row.name)
    if dataclasses.is_dataclass(owner):
        return row.name in {field.name for field in dataclasses.fields(owner)}
    return row.name in getattr(owner, "model_fields", {})


def _owner(path: str) -> Any:
    """A module or a class in one, or None."""
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(_owner(module), name, None) if module else None


def main() -> int:
    """Print what differs.

    Returns:
        0, 1 if something differs, or 2 without a TensorRT-LLM that can be imported.
    """
    from moe_eval.engines.served.package import import_library
    from moe_eval.engines.trtllm.installed import TRTLLM

    try:
        version = str(import_library(TRTLLM).__version__)
    except UsageError as error:
        print(f"moe_eval: {error}", file=sys.stderr)
        return 2
    print("\n".join([f"TensorRT-LLM {version}", *lines(version)]))
    return 1 if any(differences(version)) else 0


if __name__ == "__main__":
    sys.exit(main())
