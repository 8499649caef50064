"""What engines take, from data files: model arguments by name, and environment variables that matter to them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Variable:
    """An environment variable that chooses kernels or transports of some engines.

    Attributes:
        does: in a few words. `source`: the file or document that says so.
    """

    name: str
    engines: tuple[str, ...]
    does: str
    source: str


@dataclass(frozen=True)
class _Settings:
    """Model arguments of an engine: `names`, separated by spaces, and fields of classes in a file of its package."""

    file: str
    classes: tuple[str, ...]
    names: str


@cache
def variables() -> tuple[Variable, ...]:
    """The rows of environment.toml."""
    return tuple(msgspec.convert(read_toml("environment.toml")["variable"], list[Variable]))


@cache
def settings(engine: str, package: str) -> frozenset[str]:
    """Model arguments of a served engine: those that are known here, and those of the installed source.

    The source is parsed and not imported, which would take seconds.
    """
    table = msgspec.convert(read_toml("settings.toml")[engine], _Settings)
    return frozenset((*table.names.split(), *_installed(package, table)))


def read_toml(name: str) -> dict[str, object]:
    return tomllib.loads(resources.files("moe_eval.engines").joinpath(name).read_text(encoding="utf-8"))


def _installed(package: str, table: _Settings) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        try:
            tree = ast.parse((Path(folder) / table.file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):  # another version keeps it elsewhere
            continue
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in table.classes]
        for entry in (entry for node in classes for entry in node.body):
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and entry.target.id[0] != "_":
                yield entry.target.id
