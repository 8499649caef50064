"""One option of a command, as a field of its dataclass declares it, and how its value is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from moe_eval.errors import nearest
from moe_eval.frozen import frozen
from moe_eval.outside import words

Scalar = bool | int | float | str | Path
Value = Scalar | tuple[Scalar, ...] | None
T = TypeVar("T")

# groups of options: those that say nothing of what is done, and those that every command has
COMMAND, PRINTED = "the command itself", "what is printed"

_LARGEST = 1_000_000_000  # of a number that says nothing else
_SCALARS = {int: "a whole number", float: "a number", str: "text, a number or a list of them", Path: "a path"}
_READERS: Mapping[type, Callable[[str], Scalar]] = {int: words.whole, float: words.real, str: str, Path: Path}
_LISTS = {int: "a whole number or a list of them", float: "numbers", Path: "paths", str: "text or a list of it"}


class Misfit(ValueError):
    """A value does not fit its option.

    Attributes:
        expected: what does, in words without the value, which may be a secret.
        problem: what follows the value in a message.
        meant: a sentence with the value that was meant. Empty for none.
    """

    def __init__(self, expected: str, problem: str = "cannot be read", meant: str | None = None) -> None:
        super().__init__(expected)
        self.expected, self.problem = expected, problem
        self.meant = f" Did you mean {meant}?" if meant else ""


@frozen
class Option:
    """One option.

    Attributes:
        kind: of one value.
        is_list: the value is a tuple of `kind`.
        choices: the only values. Empty for any.
        suggestions: values that a shell completes where there are no choices. `is_path`: it completes paths.
        group: the heading in --help.
        metavar: stands for the value in --help. None for the name.
        minimum: of a number, up to `maximum`. None for a negative one too.
        meaning: of a number, told with these limits. None where it needs no word.
        needs: the name of the option without which this one says nothing, and those of its values that go with it.
        synonyms: names that people try, and what they mean here.
        is_positional: the values stand without the option's name.
        is_verbatim: the next word is its value, also where it begins with dashes.
        spelling: on the command line, where that is not the name. Such an option is repeated for every value.
        reader: makes texts of an object of YAML or Python. None for values that are read as they are.
        word_count: of an option whose values are words of their own: a number, `+` for one or more, or `*` for any.
            None for one word, in which a list is separated by commas.
    """

    name: str
    kind: type
    is_list: bool
    choices: tuple[str, ...]
    default: Value
    help: str
    group: str
    metavar: str | None = None
    minimum: int | None = None
    maximum: float = _LARGEST
    meaning: str | None = None
    needs: tuple[str, ...] | tuple[str, bool] | None = None
    synonyms: Mapping[str, str] = field(default_factory=dict)
    suggestions: tuple[str, ...] = ()
    is_path: bool = False
    is_positional: bool = False
    is_verbatim: bool = False
    spelling: str | None = None
    reader: Callable[[object], tuple[str, ...]] | None = None
    word_count: int | Literal["+", "*"] | None = None

    @property
    def label(self) -> str:
        """As the command line spells it."""
        return self.name if self.is_positional else f"--{self.spelling or self.name}"

    @property
    def expected(self) -> str:
        """What its value has to be, in words."""
        if self.kind is bool:
            return "nothing"
        if self.choices:
            return f"{'some' if self.is_list else 'one'} of {', '.join(self.choices)}"
        return (_LISTS if self.is_list else _SCALARS)[self.kind]

    def from_word(self, word: str) -> Value:
        """The value of one word of the command line.

        Raises:
            Misfit: it is no such value.
        """
        if not self.is_list or self.word_count is not None:
            return self.scalar(word)
        parts = [part.strip() for part in word.split(",")]
        if self.kind is str:
            parts = [part for part in parts if part]
        if self.choices and not parts:
            raise Misfit(self.expected)
        return tuple(map(self.scalar, parts))

    def from_object(self, value: object) -> Value:
        """The value of an object of YAML or Python.

        Raises:
            Misfit: it is no such value.
        """
        if self.reader is not None:
            return tuple(str(self.scalar(text)) for text in self.reader(value))
        if self.kind is bool:
            if not isinstance(value, bool):
                raise Misfit("true or false, without quotes")
            return value
        is_sequence = isinstance(value, (list, tuple))
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        kinds = {int: (int,), float: (int, float), Path: (str, Path)}.get(self.kind, (str, int, float))
        is_text = isinstance(value, str) and self.is_list
        are_fitting = all(isinstance(part, kinds) and not isinstance(part, bool) for part in parts)
        if not (is_text or are_fitting) or (is_sequence and not self.is_list and self.kind is not str):
            raise Misfit(self.expected)
        return self.from_word(",".join(map(str, parts)))

    def scalar(self, word: str) -> Scalar:
        """One value of one word.

        Raises:
            Misfit: it is no such value.
        """
        if self.kind in (str, Path):
            self._check_text(word)
        try:
            value = _READERS[self.kind](word)
        except ValueError:
            raise Misfit(self.expected) from None
        if self.choices and word not in self.choices:
            raise Misfit(self.expected, "is unknown", self.synonyms.get(word.lower()) or nearest(word, self.choices))
        minimum = -self.maximum if self.minimum is None else self.minimum
        if isinstance(value, (int, float)) and not minimum <= value <= self.maximum:
            is_open = self.maximum == _LARGEST
            limits = f"{minimum:g} or more" if is_open and value < minimum else f"{minimum} to {self.maximum}"
            raise Misfit(f"{limits} ({self.meaning})" if self.meaning else limits, "is out of range")
        return value

    def _check_text(self, word: str) -> None:
        if not word.strip() and (self.default != "" or self.is_positional):
            raise Misfit("text that is not empty", "is empty")
        if not words.is_writable(word):
            raise Misfit("text that can be written", "holds what is no character")


def option(default: T, text: str, group: str, **details: object) -> T:
    """A field of an options dataclass, whose help is `text`. Details are the fields of Option that have a default."""
    return field(default=default, metadata={"default": default, "help": text, "group": group, **details})


def options_of(kind: type) -> Mapping[str, Option]:
    """The options of a dataclass by name, in the order of its fields, those of every command last."""
    hints = get_type_hints(kind)
    options = [Option(entry.name, *_unfolded(hints[entry.name]), **entry.metadata) for entry in fields(kind)]
    return {option.name: option for option in sorted(options, key=lambda option: option.group == PRINTED)}


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
