"""Generation arguments by the names of the harness and of the engines' libraries, see sampling.toml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import msgspec

from moe_eval.engines import tables
from moe_eval.engines.registry import named
from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen

UNUSED = "unused"
_TYPES: Mapping[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (bool, "true or false"),
    "texts": (list[str | int | float], "a text or a list of texts"),
    "ids": (list[Annotated[int, msgspec.Meta(ge=0)]], "a token id or a list of them"),
    "id_lists": (list[list[Annotated[int, msgspec.Meta(ge=0)]]], "a list of lists of token ids"),
    "biases": (dict[int, float], "a table of numbers by token id"),
    "any": (Any, "anything"),
}
_SIGNS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}


@frozen
class Argument:
    """One generation argument. Its fields are explained in sampling.toml."""

    kind: str
    ge: int | float | None = None
    gt: int | float | None = None
    le: int | float | None = None
    lt: int | float | None = None
    field: str | None = None
    engines: tuple[str, ...] = ()
    samples: bool = False
    neutral: tuple[Any, ...] = ()
    why: str = ""

    def read(self, name: str, value: object) -> Any:
        """A value as its type. `name`: for the message.

        Raises:
            UsageError: it has another type, or is out of bounds.
        """
        kind, title = _TYPES[self.kind]
        bounds = {key: getattr(self, key) for key in _SIGNS if getattr(self, key) is not None}
        items = value if isinstance(value, list) or self.kind not in ("texts", "ids") else [value]
        try:
            converted = msgspec.convert(
                items, Annotated[kind, msgspec.Meta(**bounds)] if bounds else kind, strict=False
            )
        except msgspec.ValidationError:
            converted = math.nan
        if isinstance(converted, float) and not math.isfinite(converted):
            limits = " and ".join(f"{_SIGNS[key]} {bound}" for key, bound in bounds.items())
            domain = f"{title} {limits}".rstrip()
            raise UsageError(f"The generation argument {name}={value} does not suit. Give {domain}.")
        return [text for text in map(str, converted) if text] if self.kind == "texts" else converted


@cache
def arguments() -> Mapping[str, Argument]:
    """The rows of sampling.toml by name, in its order."""
    return msgspec.convert(tables.read_toml("sampling.toml"), dict[str, Argument])


def read(values: Mapping[str, object], engine: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Generation arguments by what takes them.

    Args:
        values: by name. One that is None is as if it was not there.
        engine: the name of an engine of the registry.

    Returns:
        Fields of GenerationRequest and of the harness's answer by name, and what the engine's library takes by its own
        name.

    Raises:
        UsageError: the first argument that this engine does not take, or whose value does not suit.
    """
    rows = arguments()
    unknown = [name for name, value in values.items() if value is not None and name not in rows]
    if unknown:
        names = [name for name, row in rows.items() if row.field or engine in row.engines]
        raise UsageError(
            f"There is no generation argument {', '.join(unknown)}. {mended(unknown[0], names, 'Leave it out.')}"
        )
    fields: dict[str, Any] = {}
    further: dict[str, Any] = {}
    for name, row in rows.items():
        value = None if row.why == UNUSED or values.get(name) is None else row.read(name, values[name])
        if value is None or value in row.neutral:
            continue
        if row.field:
            earlier = fields.get(row.field)
            fields[row.field] = value if earlier is None else [*earlier, *value] if isinstance(value, list) else earlier
        elif engine in row.engines:
            further[name] = value
        else:
            raise UsageError(_refusal(name, row, value, engine))
    return fields, further


def _refusal(name: str, row: Argument, value: object, engine: str) -> str:
    if row.why:
        remedy = f" or give {name}={row.neutral[0]}" if row.neutral else ""
        return f"{name}={value} cannot be set, because {row.why}. Leave it out{remedy}."
    return (
        f"{named(engine).title} has no generation argument {name}. Leave it out, or use an engine that has it "
        f"({', '.join(row.engines)})."
    )
