"""Settings as texts, KEY=VALUE,..., and arms, NAME:KEY=VALUE,..., which the command line, YAML and records share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from moe_eval.cli.options.option import Misfit
from moe_eval.errors import UsageError

DEFAULTS = "defaults"  # of a mapping: the settings that all arms share
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EXPECTED = "settings by the names of arms, or a list of arms that have a name"


def read(text: str) -> tuple[str, dict[str, str]]:
    """The name of an arm, and its settings as texts by key. Messages show no value: it may be a secret.

    Raises:
        UsageError: it has no name that a file could have, or a setting without a value, or one twice.
    """
    name, _, rest = (part.strip() for part in text.partition(":"))
    if not name or "=" in name:
        raise UsageError("An --arm has no name. Write NAME:KEY=VALUE,... for each.")
    if not _NAME.fullmatch(name) or name == DEFAULTS:
        raise UsageError(
            f"{name!r} cannot name an arm, as files are named after it. Give up to 64 letters, digits, dots, dashes "
            f"and underscores, but not {DEFAULTS}."
        )
    settings: dict[str, str] = {}
    for part in filter(None, _parts(rest)):
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not key:
            raise UsageError(f"The arm {name} has a setting without a value. Write KEY=VALUE, separated by commas.")
        if key in settings:
            raise UsageError(f"The arm {name} has {key} twice. Give it once.")
        settings[key] = value
    return name, settings


def model_args(text: str) -> dict[str, object]:
    """What --model_args sets: values as the harness reads them, and commas in brackets or quotes belong to a value.

    Raises:
        UsageError: a setting is there twice.
    """
    from lm_eval.utils import handle_arg_string

    settings: dict[str, object] = {}
    for part in filter(None, map(str.strip, _parts(text))):
        key, _, value = part.partition("=")
        if key.strip() in settings:
            raise UsageError(f"--model_args has {key.strip()} twice. Give it once.")
        settings[key.strip()] = handle_arg_string(value)
    return settings


def write(name: str, settings: Mapping[str, object]) -> str:
    """The text of an arm."""
    return f"{name}:{','.join(f'{key}={_text(value)}' for key, value in settings.items())}"


def texts(value: object) -> tuple[str, ...]:
    """The texts of arms that YAML or Python have as objects.

    Args:
        value: a mapping of settings by name, with those of all arms under `defaults`. Or a list of texts and of
            mappings, each with its `name`, of which one may be `defaults` alone.

    Raises:
        Misfit: it is neither.
    """
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        entries = [entry if key == DEFAULTS else (key, entry) for key, entry in value.items()]
        shared = value.get(DEFAULTS)
        arms = [entry for entry in entries if isinstance(entry, tuple)]
    elif isinstance(value, (list, tuple)):
        alone = [entry[DEFAULTS] for entry in value if isinstance(entry, Mapping) and list(entry) == [DEFAULTS]]
        shared = alone[0] if alone else None
        arms = [_entry(entry) for entry in value if not (isinstance(entry, Mapping) and list(entry) == [DEFAULTS])]
    else:
        raise Misfit(_EXPECTED)
    return tuple(write(str(name), {**_settings(shared), **_settings(settings)}) for name, settings in arms)


def _entry(entry: object) -> tuple[object, object]:
    if isinstance(entry, str):
        return read(entry)
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise Misfit(_EXPECTED)
    return entry["name"], {key: value for key, value in entry.items() if key != "name"}


def _settings(entry: object) -> Mapping[str, object]:
    """Settings by key. Those of a mapping `env` are environment variables."""
    if entry is None:
        return {}
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        raise Misfit(_EXPECTED)
    variables = entry.get("env")
    if not isinstance(variables, Mapping):
        return entry
    return {key: value for key, value in entry.items() if key != "env"} | {
        f"env.{name}": value for name, value in variables.items()
    }


def _text(value: object) -> str:
    if isinstance(value, (bool, list, tuple, dict)):
        return json.dumps(value)
    text = str(value)
    is_whole = len(list(_parts(text))) == 1
    return text if is_whole else json.dumps(text)


def _parts(text: str) -> Iterator[str]:
    """A text split at the commas outside of brackets and quotes."""
    part, depth, quote = "", 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield part
            part = ""
            continue
        part += sign
    yield part
