"""Options from a YAML file: the same words as on the command line, which come after them and win."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError


def expanded(words: Sequence[str]) -> list[str]:
    """A command's words with the options of its --config file before its own.

    Raises:
        UsageError: the file cannot be read, or is no list of options.
    """
    words = list(words)
    named = next((at for at, word in enumerate(words) if word.partition("=")[0] == "--config"), None)
    if named is None or not words or words[0].startswith("-"):
        return words
    _, sign, value = words[named].partition("=")
    if not sign and named + 1 == len(words):
        return words  # argparse says that its value is missing
    file = Path(value if sign else words[named + 1])
    rest = [word for at, word in enumerate(words) if at != named and (sign or at != named + 1)]
    return [rest[0], *_options(file), *rest[1:]]


def _options(file: Path) -> list[str]:
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read ({error.strerror}); give another file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file} is no YAML ({' '.join(str(error).split())}); mend it.") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"--config {file} has to hold options by name, such as `batch_size: [1, 8]`.")
    words: list[str] = []
    for name, value in found.items():
        if name == "config" or isinstance(value, dict):
            raise UsageError(f"--config {file}: {name} is no option with a plain value; take it out.")
        words += _option(name, value)
    return words


def _option(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    return [f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]
