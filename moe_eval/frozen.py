"""Frozen dataclasses that cost little to make.

Python before 3.13 runs `exec` once for every method of `@dataclass(frozen=True)`: 1.3 ms for six fields, each start.
Here equality, hash, text and refusals are closures, and `__init__` alone is source code, written when it is looked up.
"""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from typing import dataclass_transform
else:  # Python 3.10 has none, and only type checkers read it

    def dataclass_transform(**_: object) -> Callable[[Callable], Callable]:
        return lambda decorator: decorator


Kind = TypeVar("Kind")


@overload
def frozen(kind: type[Kind]) -> type[Kind]: ...
@overload
def frozen(*, kw_only: bool = False) -> Callable[[type[Kind]], type[Kind]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen(kind: type[Any] | None = None, *, kw_only: bool = False) -> Any:
    """Make a class what `dataclasses.dataclass(frozen=True)` makes of it, without `InitVar`.

    Raises:
        TypeError: as `dataclass` does, for a base that is not frozen. ValueError: for a default that can change.
    """
    if kind is None:
        return lambda kind: _make(kind, kw_only)
    return _make(kind, kw_only)


def _make(kind: type[Any], kw_only: bool) -> type[Any]:
    explicit = set(vars(kind))
    if "__init__" not in explicit:
        kind.__init__ = _Init(kind)
    # it refuses bases of the other sort, and knows from its own argument alone whether this class is frozen
    inherits = any(map(dataclasses.is_dataclass, kind.__mro__[1:]))
    dataclasses.dataclass(init=False, repr=False, eq=False, frozen=inherits, kw_only=kw_only)(kind)
    parameters = kind.__dataclass_params__
    parameters.init = parameters.repr = parameters.eq = parameters.frozen = True
    if "__eq__" in explicit and kind.__hash__ is None:  # Python wrote it, beside the class's own equality
        explicit.remove("__hash__")
    for method in _methods(kind):
        if method.__name__ not in explicit:
            method.__qualname__ = f"{kind.__qualname__}.{method.__name__}"
            setattr(kind, method.__name__, method)
    return kind


def _methods(kind: type[Any]) -> Iterator[Callable[..., Any]]:
    fields = dataclasses.fields(kind)
    names = frozenset(field.name for field in fields)
    printed = [field.name for field in fields if field.repr]
    compared = _values(field.name for field in fields if field.compare)
    hashed = _values(field.name for field in fields if (field.compare if field.hash is None else field.hash))

    def __eq__(self: object, peer: object) -> bool:
        return compared(self) == compared(peer) if peer.__class__ is self.__class__ else NotImplemented

    def __hash__(self: object) -> int:
        return hash(hashed(self))

    @reprlib.recursive_repr()
    def __repr__(self: object) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in printed)
        return f"{self.__class__.__qualname__}({values})"

    def __setattr__(self: object, name: str, value: object) -> None:
        if type(self) is kind or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(kind, self).__setattr__(name, value)

    def __delattr__(self: object, name: str) -> None:
        if type(self) is kind or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(kind, self).__delattr__(name)

    yield from (__eq__, __hash__, __repr__, __setattr__, __delattr__)


def _values(names: Iterable[str]) -> Callable[[object], tuple[object, ...]]:
    """What reads these attributes as a tuple."""
    match tuple(names):
        case ():
            return lambda _: ()
        case (name,):
            return lambda instance: (getattr(instance, name),)
        case several:
            return attrgetter(*several)


class _Init:
    """Stands for the `__init__` of a class until it is looked up. Readers of JSON and of pickles never do."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    def __get__(self, instance: object, owner: type[Any]) -> Callable[..., None]:
        self._kind.__init__ = function = _init(self._kind)
        method: Callable[..., None] = function if instance is None else function.__get__(instance, owner)
        return method


class _Factory:
    """The default of a parameter whose value is made anew."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY = _Factory()


def _init(kind: type[Any]) -> Any:
    """The `__init__` that dataclasses would write: in the class's module, with its annotations."""
    fields = dataclasses.fields(kind)
    positional = [field for field in fields if field.init and not field.kw_only]
    keyword = [field for field in fields if field.init and field.kw_only]
    first, last = ([field.name for field in part] for part in (positional, keyword))
    defaults = _defaults(positional)
    if (names := first[len(first) - len(defaults) :]) != [*defaults]:
        raise TypeError(f"{kind.__name__} has a field without a default behind one with a default, among {names}")
    # the source has names alone: Python compiles it in half the time that an assignment of each takes
    parameters = ", ".join(["self", *first, *(["*"] if last else []), *last])
    values = ", ".join(["self", *first, *last])
    make = eval(f"lambda _fill_: lambda {parameters}: _fill_({values})", vars(sys.modules[kind.__module__]))
    function = make(_fill(kind, [*first, *last]))
    function.__defaults__ = tuple(defaults.values())
    function.__kwdefaults__ = _defaults(keyword)
    function.__name__ = "__init__"
    function.__qualname__ = f"{kind.__qualname__}.__init__"
    function.__annotations__ = {field.name: field.type for field in (*positional, *keyword)} | {"return": None}
    return function


def _defaults(fields: Iterable[dataclasses.Field[Any]]) -> dict[str, object]:
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else _FACTORY for field in fields
    }
    return {name: default for name, default in defaults.items() if default is not dataclasses.MISSING}


def _fill(kind: type[Any], parameters: Sequence[str]) -> Callable[..., None]:
    """What gives an instance the values of the parameters, and what factories make where there is none."""
    factories: dict[str, Any] = {
        field.name: field.default_factory
        for field in dataclasses.fields(kind)
        if field.default_factory is not dataclasses.MISSING
    }
    unasked = factories.keys() - set(parameters)
    is_checked, set_field = hasattr(kind, "__post_init__"), object.__setattr__

    def fill(instance: Any, *values: object) -> None:
        for name, value in zip(parameters, values, strict=True):
            set_field(instance, name, factories[name]() if value is _FACTORY else value)
        for name in unasked:
            set_field(instance, name, factories[name]())
        if is_checked:
            instance.__post_init__()

    return fill
