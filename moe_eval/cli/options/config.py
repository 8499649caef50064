"""Options from a YAML file or from Python: the same names as on the command line, which wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_eval.cli.options.option import Misfit, Value, options_of
from moe_eval.errors import UsageError, mended
from moe_eval.outside import files

_LARGEST = 1 << 20  # bytes
_DEEPEST, _MOST_NODES = 20, 10_000


def read(file: Path, command: str, kind: type) -> dict[str, Value]:
    """The options of a file.

    Args:
        command: the name. `kind`: its options.

    Raises:
        UsageError: the file cannot be read, or holds something that is no option with its value.
    """
    import yaml

    text = files.read_text(files.at_home(file), "Give a YAML file of options.", _LARGEST)
    # a message never shows what the file holds: there may be secrets in it
    try:
        top = yaml.compose(text, yaml.SafeLoader)
        problem = _problem(top)
        if problem:
            raise UsageError(f"--config {file}: {problem}.")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"--config {file} is no YAML{place}. Correct it.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"--config {file} has to hold options by name, such as `batch_size: [1, 8]`.")
    for name in content:
        label = " ".join(name.split())[:100]
        if name == "config" or name not in options_of(kind):
            fix = mended(label, set(options_of(kind)) - {"config"}, "--help lists them.")
            raise UsageError(f"--config {file}: {label} is no option of moe-eval {command}. {fix}")
    return checked(content, kind, f"--config {file}: ")


def _problem(top: Any) -> str | None:
    """What no file of options has, in words: names that come twice, many levels, and anchors that multiply."""
    waiting, count = [(top, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_NODES:
            return "It holds too much. Write options by name"
        if isinstance(getattr(node, "value", None), list):
            pairs = [pair if isinstance(pair, tuple) else (None, pair) for pair in node.value]
            names = [key.value for key, _ in pairs if key is not None]
            doubled = next((name for name in names if isinstance(name, str) and names.count(name) > 1), None)
            if doubled is not None:
                return f"{' '.join(doubled.split())[:100]} is given twice. Take one of them out"
            waiting += [(value, depth + 1) for _, value in pairs]
    return None


def checked(values: Mapping[str, object], kind: type, prefix: str = "") -> dict[str, Value]:
    """Values of options by name, without those that are None. Messages never show a value: it may be a secret.

    Raises:
        UsageError: a value does not fit.
    """
    options, fitting = options_of(kind), {}
    for name, value in values.items():
        if value is not None:
            try:
                fitting[name] = options[name].from_object(value)
            except Misfit as misfit:
                raise UsageError(f"{prefix}{name} has to be {misfit.expected}.{misfit.meant}") from None
    return fitting
