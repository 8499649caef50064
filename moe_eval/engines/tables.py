"""What engines take, from data files: model arguments by name, and environment variables that matter to them."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import toml, words


@frozen
class Variable:
    """An environment variable that chooses kernels or transports of some engines.

    Attributes:
        does: in a few words. `source`: the file or document that says so.
    """

    name: str
    engines: tuple[str, ...]
    does: str
    source: str


@frozen
class _Bound:
    """Model arguments that are numbers within bounds: `names`, separated by spaces. `meaning`: told with the bounds."""

    names: str
    minimum: float
    maximum: float
    is_whole: bool = False
    meaning: str = ""


@frozen
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
def _bounds() -> Mapping[str, _Bound]:
    """The rows of bounds.toml by every name."""
    rows = msgspec.convert(read_toml("bounds.toml")["bound"], list[_Bound])
    return {name: row for row in rows for name in row.names.split()}


def check_bounds(options: Mapping[str, object]) -> None:
    """Refuse model arguments that are to be numbers and are none, or are out of their bounds.

    Raises:
        UsageError: the first one.
    """
    for name, value in options.items():
        bound = _bounds().get(name)
        if bound is None or value is None:
            continue
        try:
            number = (words.whole if bound.is_whole else words.real)(str(value))
        except ValueError:  # also of str, for a number of thousands of digits
            number = math.nan
        if not bound.minimum <= number <= bound.maximum:
            kind = "a whole number" if bound.is_whole else "a number"
            limits = f"{kind} from {bound.minimum:.10g} to {bound.maximum:.10g}"
            meaning = f" ({bound.meaning})" if bound.meaning else ""
            raise UsageError(f"{name}={words.brief(value)} is not {limits}{meaning}. Give one.")


@cache
def settings(engine: str, package: str) -> frozenset[str]:
    """Model arguments of a served engine: those that are known here, and those of the installed source.

    The source is parsed and not imported, which would take seconds.
    """
    table = msgspec.convert(read_toml("settings.toml")[engine], _Settings)
    return frozenset((*table.names.split(), *_installed(package, table)))


def read_toml(name: str) -> dict[str, object]:
    return toml.read(Path(__file__).with_name(name))


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
