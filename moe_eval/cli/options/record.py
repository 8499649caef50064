"""What a command was asked, as records keep it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from moe_eval.cli.options.measuring import MeasuringOptions
from moe_eval.cli.options.option import options_of
from moe_eval.records import disk
from moe_eval.records.labels import OptionValue


def recorded(options: MeasuringOptions) -> dict[str, OptionValue]:
    """The options by name, secrets removed, without those that have no value."""
    from lm_eval.utils import simple_parse_args_string

    inner = disk.redact(simple_parse_args_string(options.model_args))
    assert isinstance(inner, dict)
    values: dict[str, object] = {name: getattr(options, name) for name in options_of(type(options))}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    plain["model_args"] = ",".join(f"{key}={value}" for key, value in inner.items())
    redacted = disk.redact({name: value for name, value in plain.items() if value is not None})
    assert isinstance(redacted, dict)
    # redact makes lists of tuples
    return {
        name: cast(OptionValue, tuple(value) if isinstance(value, list) else value) for name, value in redacted.items()
    }
