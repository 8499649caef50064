"""What a command was asked, as records keep it."""

from __future__ import annotations

from moe_eval.cli.options.measuring import MeasuringOptions
from moe_eval.cli.options.option import options_of
from moe_eval.records import disk
from moe_eval.records.labels import OptionValue


def recorded(options: MeasuringOptions) -> dict[str, OptionValue]:
    """The options by name, secrets removed, without those that have no value."""
    from lm_eval.utils import simple_parse_args_string

    arguments = disk.redact(simple_parse_args_string(options.model_args))
    values: dict[str, object] = {name: getattr(options, name) for name in options_of(type(options))}
    values["model_args"] = ",".join(f"{key}={value}" for key, value in arguments.items())
    redacted = disk.redact({name: value for name, value in values.items() if value is not None})
    return {name: _plain(value) for name, value in redacted.items()}


def _plain(value: object) -> OptionValue:
    if isinstance(value, list):  # redact makes lists of tuples
        return tuple(value)
    return value if isinstance(value, (bool, int, float)) else str(value)
