"""Options from a YAML file: the same words as on the command line, which come after them and win."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError

_CONFIG = "--config"
_NOT_HERE = ("config", "help")


def expanded(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """A command's words with the options of its --config file before its own.

    Args:
        words: the command's name first. `parser`: of this command.

    Raises:
        UsageError: there are two such files, or one cannot be read or holds what is no option with its value.
    """
    words = list(words)
    options = parser._option_string_actions
    places = [at for at, word in enumerate(words) if word.partition("=")[0] == _CONFIG]
    if not places or _CONFIG not in options:
        return words
    if len(places) > 1:
        raise UsageError("--config is given twice; write all options into one file.")
    (at,) = places
    _, sign, value = words[at].partition("=")
    if not sign and at + 1 == len(words):
        return words  # argparse says that its value is missing
    file = Path(value if sign else words[at + 1])
    rest = [word for place, word in enumerate(words) if place != at and (sign or place != at + 1)]
    found: list[str] = []
    for name, each in _content(file).items():
        action = options.get(f"--{name}")
        if action is None or name in _NOT_HERE:
            named = " ".join(name.split())[:100]
            raise UsageError(f"--config {file}: {named} is no option of moe-eval {words[0]}; --help lists them.")
        if each is not None:
            found += _option(file, name, each, action)
    return [rest[0], *found, *rest[1:]]


def _content(file: Path) -> dict[str, Any]:
    """The options of a file by name. What it holds is never shown: there may be secrets in it."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        top = yaml.compose(text, yaml.SafeLoader)
        found = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read ({error.strerror}); give another file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"--config {file} is no YAML{where}; mend it.") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"--config {file} has to hold options by name, such as `batch_size: [1, 8]`.")
    names = [key.value for key, _ in top.value]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--config {file}: {twice} is given twice; take one of them out.")
    return found


def _option(file: Path, name: str, value: Any, action: argparse.Action) -> list[str]:
    """The words of one option."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"--config {file}: {name} has to be true or false, without quotes.")
        return [f"--{name}"] if value else []
    kinds: tuple[type, ...] = {int: (int,), float: (int, float)}.get(action.type, (str, int, float))  # type: ignore[call-overload]
    parts = value if isinstance(value, list) and str in kinds else [value]
    if not all(isinstance(part, kinds) and not isinstance(part, bool) for part in parts):
        what = {int: "a whole number", float: "a number"}.get(action.type, "text, a number or a list of them")  # type: ignore[call-overload]
        raise UsageError(f"--config {file}: {name} has to be {what}.")
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"--config {file}: {name} has to be one of {', '.join(map(str, action.choices))}.")
    return [f"--{name}={','.join(map(str, parts))}"]
