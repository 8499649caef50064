"""`frozen` makes of a class what `dataclasses.dataclass(frozen=True)` makes of the same body."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import pickle
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import pytest

from moe_eval.frozen import frozen

Decorator = Callable[..., Any]
Content = TypeVar("Content")


def oracle_of(kind: type | None = None, **options: Any) -> Any:
    return dataclass(kind, frozen=True, **options) if kind else dataclass(frozen=True, **options)


def plain(decorator: Decorator) -> type:
    @decorator
    class Point:
        """Has a docstring."""

        x: int
        y: float = 2.0
        names: tuple[str, ...] = ()

    return Point


def named_as_inside(decorator: Decorator) -> type:
    @decorator
    class Filled:
        fill: int
        kind: str = "a"

    return Filled


def bare(decorator: Decorator) -> type:
    @decorator
    class Empty:
        pass

    return Empty


def single(decorator: Decorator) -> type:
    @decorator
    class Single:
        only: str

    return Single


def details(decorator: Decorator) -> type:
    @decorator
    class Details:
        unit: ClassVar[str] = "ms"
        a: int
        hidden: int = field(default=3, repr=False)
        ignored: int = field(default=4, compare=False)
        unhashed: dict[str, int] = field(default_factory=dict, hash=False)
        later: list[int] = field(default_factory=list, init=False, compare=False)
        fixed: int = field(default=5, init=False)
        word: str = field(default="w", kw_only=True, metadata={"help": "a word"})

    return Details


def keywords(decorator: Decorator) -> type:
    @decorator(kw_only=True)
    class Keywords:
        a: int = 1
        b: str

    return Keywords


def checked(decorator: Decorator) -> type:
    @decorator
    class Checked:
        a: int
        double: int = field(init=False)

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("negative")
            object.__setattr__(self, "double", 2 * self.a)

    return Checked


def inherited(decorator: Decorator) -> type:
    @decorator
    class Base:
        a: int = 1
        b: int = 2

        def sum(self) -> int:
            return self.a + self.b

    @decorator
    class Mixed:
        c: int = 3

    @decorator
    class Child(Base, Mixed):
        b: int = 20
        d: int = 4

    return Child


def undecorated(decorator: Decorator) -> type:
    class Child(plain(decorator)):  # type: ignore[misc]
        pass

    return Child


def generic(decorator: Decorator) -> type:
    @decorator
    class Holder(Generic[Content]):
        content: Content

    return Holder


def explicit(decorator: Decorator) -> type:
    @decorator
    class Explicit:  # noqa: PLW1641
        a: int

        def __init__(self, a: int) -> None:
            object.__setattr__(self, "a", a + 1)

        def __repr__(self) -> str:
            return "mine"

        def __eq__(self, other: object) -> bool:
            return True

    return Explicit


def unhashable(decorator: Decorator) -> type:
    @decorator
    class Unhashable:
        a: int
        __hash__ = None  # type: ignore[assignment]

    return Unhashable


CASES = {
    plain: [((1,), {}), ((1, 2.0), {}), ((1,), {"names": ("a",)}), ((), {}), ((1, 2, 3, 4), {}), ((1,), {"z": 1})],
    bare: [((), {}), ((1,), {})],
    single: [(("a",), {}), (("b",), {}), (([],), {})],
    details: [((1,), {}), ((1, 9), {}), ((1, 3, 9), {}), ((1, 3, 4, {"k": 1}), {"word": "v"}), ((1,), {"fixed": 1})],
    keywords: [((), {"b": "x"}), ((), {"a": 3, "b": "x"}), ((1,), {"b": "x"}), ((), {})],
    checked: [((1,), {}), ((2,), {}), ((-1,), {})],
    inherited: [((1,), {}), ((5, 6, 7, 8), {}), ((1,), {"d": 9})],
    undecorated: [((1,), {}), ((2,), {"y": 1.0})],
    generic: [((1,), {}), (("a",), {})],
    explicit: [((1,), {}), ((2,), {})],
    unhashable: [((1,), {})],
    named_as_inside: [((1,), {}), ((2, "b"), {}), ((), {"fill": 3}), ((), {})],
}
bodies = pytest.mark.parametrize("body", CASES)


def outcome(action: Callable[..., object], *arguments: object, **keywords: object) -> object:
    """What an action gives, or its error in words."""
    try:
        return action(*arguments, **keywords)
    except (TypeError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def instances(kind: type, body: object) -> list[Any]:
    return [value for words, named in CASES[body] if not isinstance(value := outcome(kind, *words, **named), str)]


@bodies
def test_values_text_and_refused_arguments_are_the_same(body: Callable[[Decorator], type]) -> None:
    ours, theirs = body(frozen), body(oracle_of)
    for words, named in CASES[body]:
        mine, oracle = outcome(ours, *words, **named), outcome(theirs, *words, **named)
        assert repr(mine) == repr(oracle)
        assert getattr(mine, "__dict__", None) == getattr(oracle, "__dict__", None)
    for attribute in ("__doc__", "__match_args__", "__qualname__", "__module__", "__dataclass_params__"):
        mine, oracle = getattr(ours, attribute), getattr(theirs, attribute)
        assert repr(mine).replace("(frozen)", "") == repr(oracle).replace("(oracle_of)", "")


@bodies
def test_equality_and_hash_are_the_same(body: Callable[[Decorator], type]) -> None:
    mine, oracle = instances(body(frozen), body), instances(body(oracle_of), body)
    assert len(mine) == len(oracle) > 0
    pairs = [(i, j) for i in range(len(mine)) for j in range(len(mine))]
    assert [mine[i] == mine[j] for i, j in pairs] == [oracle[i] == oracle[j] for i, j in pairs]
    assert [mine[i] != copy.copy(mine[j]) for i, j in pairs] == [oracle[i] != copy.copy(oracle[j]) for i, j in pairs]
    assert [outcome(hash, value) for value in mine] == [outcome(hash, value) for value in oracle]
    if body is not explicit:
        assert [value == value.__dict__ for value in mine] == [False] * len(mine)
        assert mine != oracle, "equality is between the same class alone"


@bodies
def test_fields_and_signature_are_the_same(body: Callable[[Decorator], type]) -> None:
    ours, theirs = body(frozen), body(oracle_of)
    assert dataclasses.is_dataclass(ours)
    assert [repr(spec) for spec in dataclasses.fields(ours)] == [repr(spec) for spec in dataclasses.fields(theirs)]
    assert str(inspect.signature(ours)) == str(inspect.signature(theirs))
    assert inspect.get_annotations(ours.__init__) == inspect.get_annotations(theirs.__init__)
    for name in ("__init__", "__repr__", "__setattr__", "__delattr__"):
        assert getattr(ours, name).__qualname__ == getattr(theirs, name).__qualname__
        assert getattr(ours, name).__module__ in (getattr(theirs, name).__module__, frozen.__module__)
    assert typing.get_type_hints(ours.__init__) == typing.get_type_hints(theirs.__init__)


@bodies
def test_nothing_of_it_can_be_set_or_deleted(body: Callable[[Decorator], type]) -> None:
    for mine, oracle in zip(instances(body(frozen), body), instances(body(oracle_of), body), strict=True):
        for name in (*oracle.__dict__, "strange"):
            assert outcome(setattr, mine, name, 1) == outcome(setattr, oracle, name, 1)
            assert outcome(delattr, mine, name) == outcome(delattr, oracle, name)
        for name in mine.__dataclass_fields__:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(mine, name, 1)


@bodies
def test_it_is_replaced_and_turned_into_a_dictionary_alike(body: Callable[[Decorator], type]) -> None:
    for mine, oracle in zip(instances(body(frozen), body), instances(body(oracle_of), body), strict=True):
        for changes in ({}, {"a": 7}, {"b": 7, "d": 1}, {"x": 7}, {"fixed": 7}, {"strange": 1}):
            assert repr(outcome(dataclasses.replace, mine, **changes)) == repr(
                outcome(dataclasses.replace, oracle, **changes)
            )
        assert repr(dataclasses.asdict(mine)) == repr(dataclasses.asdict(oracle))
        assert repr(dataclasses.astuple(mine)) == repr(dataclasses.astuple(oracle))
        assert repr(copy.deepcopy(mine)) == repr(mine)


def test_a_value_that_is_not_equal_to_itself_is_equal_where_it_is_the_same() -> None:
    missing = generic(frozen)(float("nan"))
    assert missing == copy.copy(missing), "as in Python up to 3.12, whose dataclasses compare tuples"
    assert missing != generic(frozen)(float("nan"))


@frozen
class Stored:
    """What pickle and msgspec can find by its name."""

    name: str
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a name is missing")


def test_it_is_pickled_and_copied() -> None:
    stored = Stored("a", [1])
    for twin in (pickle.loads(pickle.dumps(stored)), copy.copy(stored), copy.deepcopy(stored)):
        assert twin == stored
        assert type(twin) is Stored


def test_msgspec_reads_and_checks_it() -> None:
    assert msgspec.json.decode(b'{"name": "a"}', type=Stored) == Stored("a")
    assert msgspec.json.encode(Stored("a", [1])) == b'{"name":"a","sizes":[1]}'
    for damaged in (b"{}", b'{"name": 1}', b'{"name": ""}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(damaged, type=Stored)


def test_it_is_matched_by_position_and_by_name() -> None:
    match Stored("a", [1]):
        case Stored(name, [size]):
            assert (name, size) == ("a", 1)
        case _:
            raise AssertionError("nothing matched")


def test_a_list_that_holds_it_is_written_once() -> None:
    stored = Stored("a")
    typing.cast(list[object], stored.sizes).append(stored)
    assert repr(stored) == "Stored(name='a', sizes=[...])"


def test_bases_and_defaults_that_cannot_be_are_refused() -> None:
    @dataclass
    class Open:
        a: int

    for decorator in (oracle_of, frozen):
        with pytest.raises(TypeError, match="cannot inherit frozen dataclass from a non-frozen one"):
            decorator(type("Child", (Open,), {}))
        with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass from a frozen one"):
            dataclass(type("Child", (decorator(type("Base", (), {})),), {}))
        with pytest.raises(ValueError, match="use default_factory"):
            decorator(type("Shared", (), {"__annotations__": {"a": list}, "a": []}))
        with pytest.raises(TypeError):
            decorator(type("Ordered", (), {"__annotations__": {"a": int, "b": int}, "a": 1}))(a=1, b=2)


def test_classes_of_both_inherit_from_each_other() -> None:
    for lower, upper in ((oracle_of, frozen), (frozen, oracle_of)):
        base = plain(lower)
        child = upper(type("Child", (base,), {"__annotations__": {"z": "int"}, "z": 9}))
        assert repr(child(1)) == "Child(x=1, y=2.0, names=(), z=9)"
        assert child(1) == child(1) != child(1, z=8)
        assert child(1) != base(1)
        assert outcome(operator.delitem, {child(1): 1}, child(1)) is None
        with pytest.raises(dataclasses.FrozenInstanceError):
            child(1).x = 2


def test_an_init_is_found_from_a_class_below_and_by_super() -> None:
    kind = plain(frozen)

    class Child(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(5)

    assert Child().x == 5
    assert Child().y == 2.0
    assert kind(5) != Child()
