"""JSON from outside, read within bounds of size, depth and numbers, with the path of what is out of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from moe_eval.errors import UsageError
from moe_eval.outside import files

_DEEPEST = 64  # levels. No file that is read has twenty
FIGURE = 1e24  # no time, count of operations or perplexity is larger
_NUMBER = 1e39  # no 32-bit float is larger
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Damaged(ValueError):
    """A text that is no JSON. The message says why."""


class Unfit(ValueError):
    """JSON that is no object, or has a number out of bounds. The message says which, and is empty for no object."""


def read_object(file: Path, fix: str, largest: float = _NUMBER) -> dict[str, object]:
    """The JSON object of a file. NaN and infinity by their names, which are no JSON, are read as null.

    Args:
        fix: the sentence that follows the problem.
        largest: number that is allowed.

    Raises:
        UsageError: the file cannot be read, holds no JSON object, or a value that is out of bounds.
    """
    try:
        return parse_object(files.read_text(file, fix), largest)
    except Damaged as problem:
        raise UsageError(f"{file} is damaged ({problem}). {fix}") from None
    except Unfit as problem:
        raise UsageError(f"{file} is unfit ({str(problem) or 'it holds no JSON object'}). {fix}") from None


def parse_object(text: str, largest: float = _NUMBER) -> dict[str, object]:
    """The JSON object of a text. Half characters become question marks.

    Raises:
        Damaged: it is no JSON, or nested too deeply.
        Unfit: it holds none, or a number that is out of bounds.
    """
    try:
        content = json.loads(text, parse_constant=lambda _: None)
        too_large = None if _is_within(content, largest) else _too_large(content, largest)
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Damaged(str(error)) from None
    except ValueError:  # of int, whose own words are advice to programmers
        raise Damaged("a number has too many digits") from None
    if too_large or not isinstance(content, dict):
        raise Unfit(f"no figure is as large as {too_large}" if too_large else "")
    if _SURROGATE.search(text):
        return dict(json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")))
    return content


def encoded(content: object, default: Callable[[object], object] | None = None) -> bytes:
    """JSON of a content, also of one with names that are no characters: a question mark stands for each.

    A number that is none (NaN, infinity) is null.

    Args:
        default: makes something of what JSON does not have.
    """
    import msgspec

    try:
        return msgspec.json.encode(content, enc_hook=default)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(content, enc_hook=default, str_keys=True)
        text = json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")
        return msgspec.json.encode(json.loads(text, parse_constant=lambda _: None))


def _is_within(content: object, largest: float) -> bool:
    """Whether no number and no depth is out of bounds, level by level: a path for each value would take far longer."""
    level = [content] if isinstance(content, (dict, list)) else []
    for _ in range(_DEEPEST):
        inner: list[dict[str, object] | list[object]] = []
        for values in level:
            for item in values.values() if isinstance(values, dict) else values:
                kind = type(item)
                if kind is float or kind is int:
                    if not -largest <= item <= largest:
                        return False
                elif kind is dict or kind is list:
                    inner.append(item)
        if not inner:
            return True
        level = inner
    return False


def _too_large(value: object, largest: float, path: str = "$", depth: int = 0) -> str | None:
    """The path of a number that is out of bounds."""
    if isinstance(value, (int, float)):
        return path if abs(value) > largest else None
    if depth > _DEEPEST:
        raise RecursionError
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        # most of a record is texts and numbers, whose path is not worth making
        if isinstance(item, str) or (isinstance(item, (int, float)) and abs(item) <= largest):
            continue
        place = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
        if wrong := _too_large(item, largest, place, depth + 1):
            return wrong
    return None
