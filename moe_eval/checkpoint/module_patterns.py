"""Patterns of module names, as tools write them: wildcards, regular expressions, classes and names.

Each becomes a function that says whether it holds for a module. `file` is where patterns stand, for errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import cache

import regex

from moe_eval.errors import UsageError


def everything(module: str) -> bool:
    """Holds for every module."""
    return True


def globs(patterns: Sequence[str], file: str) -> Callable[[str], bool]:
    """ModelOpt's wildcards. A name without one holds for its modules too."""
    wild = [pattern for pattern in patterns if any(sign in pattern for sign in "*?[")]
    # quick, as newer exports name every layer so
    starts = tuple(text[:-1] for text in wild if text[-1] == "*" and not any(sign in text[:-1] for sign in "*?["))
    is_named = exactly_or_under(set(patterns).difference(wild))
    rest = [pattern for pattern in wild if pattern[:-1] not in starts]
    either = "|".join(translate(form) for pattern in rest for form in (pattern, f"{pattern}.*"))
    matches = _expression([either] if rest else [], file)
    return lambda module: is_named(module) or module.startswith(starts) or matches(module)


def targets(targets: Sequence[str], file: str) -> Callable[[str], bool]:
    """Targets of compressed-tensors: regular expressions, the class of every linear module, and names."""
    if "Linear" in targets:
        return everything
    matches = _expression([target[3:] for target in targets if target.startswith("re:")], file)
    is_named = exactly_or_under(targets)
    return lambda module: is_named(module) or matches(module)


def under(names: Sequence[str], file: str) -> Callable[[str], bool]:
    """Transformers' modules_to_not_convert: a name, or a part of one between full stops, with `*` for any part."""
    plain = tuple(f".{name.strip('.')}." for name in names if "*" not in name)  # quick: there may be one a layer
    parts = [regex.escape(name.strip("."), literal_spaces=True) for name in names if "*" in name]
    wild = "|".join(part.replace(r"\*", "[^.]*") for part in parts)
    matches = _expression([rf"(?:.*\.)?(?:{wild})(?:\.|$)"] if parts else [], file)
    return lambda module: any(map(f".{module}.".__contains__, plain)) or matches(module)


def exactly_or_under(names: Iterable[str]) -> Callable[[str], bool]:
    """Names of modules, which hold for the modules inside too."""
    chosen = frozenset(names)

    def matches(module: str) -> bool:
        while chosen and module:
            if module in chosen:
                return True
            module = module.rpartition(".")[0]
        return False

    return matches


_LONGEST_MATCH = 0.5  # seconds, of what a name takes microseconds
_TELLS_DIGITS_APART = regex.compile(r"\d|\(\?P=|\\[gN]")  # a digit, its name, or a reference to what a group held
_DIGITS = str.maketrans("123456789", "0" * 9)


def _expression(patterns: Sequence[str], file: str) -> Callable[[str], bool]:
    """Whether one of these regular expressions holds from a name's beginning on."""
    try:
        compiled = [regex.compile(pattern) for pattern in patterns]
    except (regex.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{file} has a wrong regular expression ({error}). Copy the checkpoint again.") from None

    alike = [pattern for pattern in compiled if not _TELLS_DIGITS_APART.search(pattern.pattern)]
    numbered = [pattern for pattern in compiled if pattern not in alike]

    @cache  # names of thousands of experts differ in digits alone
    def matches_alike(module: str) -> bool:
        return any(pattern.match(module, timeout=_LONGEST_MATCH) for pattern in alike)

    def matches(module: str) -> bool:
        try:
            return matches_alike(module.translate(_DIGITS)) or any(
                pattern.match(module, timeout=_LONGEST_MATCH) for pattern in numbered
            )
        except TimeoutError:
            raise UsageError(f"{file} has a regular expression without an end. Copy the checkpoint again.") from None

    return matches
