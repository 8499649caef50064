"""Reads numbers and text of a word that somebody typed, as strictly as JSON does."""

from __future__ import annotations

import os
import re

_BRIEF = 60  # characters
# compiled when a word needs them
_LONG = r"(\S{100})\S{300,}(\S{100})"
_WHOLE = r"[+-]?[0-9]{1,30}"
_REAL = r"(?i:[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?|nan|inf))"


def whole(word: str) -> int:
    """A whole number in digits. Python's int reads `1_0` and digits of other scripts too, which are slips of a hand.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(_WHOLE, word.strip(" ")):
        raise ValueError("no whole number")
    return int(word)


def real(word: str) -> float:
    """A number in digits, with a point and an exponent, or `nan` and `inf`, which are out of any range.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(_REAL, word.strip(" ")):
        raise ValueError("no number")
    return float(word)


def is_writable(text: str) -> bool:
    """Whether a text can be the name of a file: it has no NUL, and no half of a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def lines(text: str) -> str:
    """Text for a terminal, with its lines and tabs. A space stands for all that moves a cursor, colours or turns."""
    if text.isprintable():  # as nearly all texts are, which saves a look at every letter
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)


def one_line(text: str) -> str:
    """Text for a terminal on one line, see `lines`."""
    return " ".join(lines(text).split())


def sentence(text: str) -> str:
    """A message for a terminal, see `one_line`. Of a word of hundreds of letters the ends are left."""
    return re.sub(_LONG, r"\1...\2", one_line(text))


def brief(value: object) -> str:
    """The beginning of a value's text, for a message. A number of thousands of digits has none that Python writes."""
    try:
        text = one_line(str(value))
    except ValueError:
        return "..."
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}..."
