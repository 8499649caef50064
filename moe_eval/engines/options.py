"""Model arguments that several engines read in the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping

from moe_eval.errors import UsageError
from moe_eval.outside import words

_MOST = 1_000_000_000
_SWITCH = {"on": True, "off": False, "true": True, "false": False}


def number(options: Mapping[str, object], name: str) -> int | None:
    """A whole number above 0, or None if the option is not set. Anything else is a UsageError."""
    value = options.get(name)
    if value is None:
        return None
    try:
        count = words.whole(str(value))
    except ValueError:
        count = 0
    if not 1 <= count <= _MOST:
        raise UsageError(f"{name}={words.brief(value)} is not a whole number from 1 to {_MOST}. Give one.")
    return count


def seconds(options: dict[str, object], name: str) -> float | None:
    """Take a number above 0 out of the options, or None if it is not set. Anything else is a UsageError."""
    value = options.pop(name, None)
    if value is None:
        return None
    try:
        number_of_seconds = float(str(value))
    except ValueError:
        number_of_seconds = 0.0
    if not 0 < number_of_seconds < float("inf"):
        raise UsageError(f"{name}={value} is not a number of seconds above 0. Give one.")
    return number_of_seconds


def flag(options: dict[str, object], name: str) -> bool | None:
    """Take a switch out of the options, or None if it is not set. Anything else is a UsageError."""
    value = options.pop(name, None)
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() not in _SWITCH:
        raise UsageError(f"{name}={value} is neither on nor off. Give {name}=on or {name}=off.")
    return _SWITCH[str(value).lower()]


def sizes(name: str, value: object) -> list[int]:
    """A list of whole numbers above 0, which may be written 1:8:32. Anything else is a UsageError."""
    parts = value if isinstance(value, (list, tuple)) else str(value).strip("[]").replace(",", ":").split(":")
    try:
        numbers = [words.whole(str(part)) for part in parts]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or max(numbers) > _MOST:
        raise UsageError(f"{name}={words.brief(value)} is not a list of whole numbers above 0. Write a list as 1:8:32.")
    return numbers


def parse_json(name: str, text: str) -> object:
    """A list or dictionary that is written as JSON. Anything else is a UsageError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}={words.brief(text)} is not JSON ({error}). Write it as JSON.") from None
