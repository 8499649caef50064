"""Options from a YAML file or from Python: the same names as on the command line, which wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe_eval.cli.options.option import Misfit, Value, options_of
from moe_eval.errors import UsageError, mended


def read(file: Path, command: str, kind: type) -> dict[str, Value]:
    """The options of a file.

    Args:
        command: the name. `kind`: its options.

    Raises:
        UsageError: the file cannot be read, or holds something that is no option with its value.
    """
    import yaml

    # a message never shows what the file holds: there may be secrets in it
    try:
        text = file.read_text(encoding="utf-8")
        top = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read ({error.strerror}). Give another file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"--config {file} is no YAML{place}. Correct it.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"--config {file} has to hold options by name, such as `batch_size: [1, 8]`.")
    names = [key.value for key, _ in top.value]
    for name in content:
        label = " ".join(name.split())[:100]
        if name == "config" or name not in options_of(kind):
            fix = mended(label, set(options_of(kind)) - {"config"}, "--help lists them.")
            raise UsageError(f"--config {file}: {label} is no option of moe-eval {command}. {fix}")
        if names.count(name) > 1:
            raise UsageError(f"--config {file}: {label} is given twice. Take one of them out.")
    return checked(content, kind, f"--config {file}: ")


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
