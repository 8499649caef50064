"""One option of a command, as a field of its dataclass declares it, and how its value is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Scalar = bool | int | float | str | Path
Value = Scalar | tuple[Scalar, ...] | None
T = TypeVar("T")

_DECLARED = "option"
_SCALARS = {int: "a whole number", float: "a number", str: "text, a number or a list of them", Path: "a path"}
_LISTS = {int: "a whole number or a list of them", str: "text or a list of it", Path: "a path or a list of them"}


class Misfit(ValueError):
    """A value does not fit its option.

    Attributes:
        expected: what does, in words without the value, which may be a secret.
        problem: what follows the value in a message.
        meant: a value that was meant, perhaps.
    """

    def __init__(self, expected: str, problem: str = "cannot be read", meant: str | None = None) -> None:
        super().__init__(expected)
        self.expected, self.problem = expected, problem
        self.meant = f" Did you mean {meant}?" if meant else ""


@dataclass(frozen=True)
class Declared:
    """What a field says of its option beside type and default.

    Attributes:
        group: the heading in --help.
        metavar: stands for the value in --help. None for the name.
        bounds: the least and the greatest number. None where there is no such bound.
        unit: of a number, in the plural.
        synonyms: names that people try, and what they mean here.
        is_positional: the values stand without the option's name.
        word_count: of an option whose values are words of their own: a number, or `+` for one or more. None for one
            word, in which a list is separated by commas.
    """

    help: str
    group: str = "Options"
    metavar: str | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    unit: str = ""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    is_positional: bool = False
    word_count: int | Literal["+", "?"] | None = None


def option(default: T, declared: Declared) -> T:
    """A field of an options dataclass."""
    return field(default=default, metadata={_DECLARED: declared})


@dataclass(frozen=True)
class Option:
    """One option: its field, read once.

    Attributes:
        kind: of one value.
        is_list: the value is a tuple of `kind`.
        choices: the only values. Empty for any.
    """

    name: str
    kind: type
    is_list: bool
    choices: tuple[str, ...]
    default: Value
    declared: Declared

    @property
    def label(self) -> str:
        """As the command line spells it."""
        return self.name if self.declared.is_positional else f"--{self.name}"

    @property
    def expected(self) -> str:
        """What its value has to be, in words."""
        if self.choices:
            return f"{'some' if self.is_list else 'one'} of {', '.join(self.choices)}"
        return (_LISTS if self.is_list else _SCALARS).get(self.kind, "a value")

    def from_word(self, word: str) -> Value:
        """The value of one word of the command line.

        Raises:
            Misfit: it is no such value.
        """
        if not self.is_list or self.declared.word_count is not None:
            return self._scalar(word)
        parts = [part.strip() for part in word.split(",")]
        if self.kind is str:
            parts = [part for part in parts if part]
        if self.choices and not parts:
            raise Misfit(self.expected)
        return tuple(self._scalar(part) for part in parts)

    def from_object(self, value: object) -> Value:
        """The value of an object of YAML or Python.

        Raises:
            Misfit: it is no such value.
        """
        if self.kind is bool:
            if not isinstance(value, bool):
                raise Misfit("true or false, without quotes")
            return value
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        kinds = {int: (int,), float: (int, float), Path: (str, Path)}.get(self.kind, (str, int, float))
        text = isinstance(value, str) and self.is_list
        if not text and not all(isinstance(part, kinds) and not isinstance(part, bool) for part in parts):
            raise Misfit(self.expected)
        if isinstance(value, (list, tuple)) and not self.is_list and self.kind is not str:
            raise Misfit(self.expected)
        if self.declared.word_count is not None and self.is_list:
            return tuple(self._scalar(str(part)) for part in parts)
        return self.from_word(",".join(map(str, parts)))

    def _scalar(self, word: str) -> Scalar:
        try:
            value: Scalar = word if self.kind is str else self.kind(word)
        except ValueError:
            raise Misfit(self.expected) from None
        if self.choices and word not in self.choices:
            raise Misfit(self.expected, "is unknown", self.declared.synonyms.get(word))
        low, high = self.declared.bounds
        if isinstance(value, (int, float)) and not ((low is None or value >= low) and (high is None or value <= high)):
            raise Misfit(self._range(), "is out of range")
        return value

    def _range(self) -> str:
        low, high = (None if bound is None else f"{bound:.0f}" for bound in self.declared.bounds)
        unit = f" {self.declared.unit}" if self.declared.unit else ""
        return f"{low} or more{unit}" if high is None else f"{low} to {high}{unit}"


def options_of(kind: type) -> Mapping[str, Option]:
    """The options of a dataclass by name, in the order of its fields."""
    hints = get_type_hints(kind)
    options = {}
    for entry in fields(kind):
        value_kind, is_list, choices = _unfolded(hints[entry.name])
        default: Value = entry.default  # type: ignore[assignment]  # every option has one
        options[entry.name] = Option(entry.name, value_kind, is_list, choices, default, entry.metadata[_DECLARED])
    return options


def _unfolded(hint: object) -> tuple[type, bool, tuple[str, ...]]:
    """The type of one value, whether there are several, and the choices."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _unfolded(next(part for part in inner if part is not NoneType))
    if origin is tuple:
        kind, _, choices = _unfolded(inner[0])
        return kind, True, choices
    if origin is Literal:
        return str, False, inner
    assert isinstance(hint, type)
    return hint, False, ()
