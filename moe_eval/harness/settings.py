"""The model arguments of `--model trtllm_moe`, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moe_eval.checkpoint import contents, precision
from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag
from moe_eval.errors import UsageError


@dataclass(frozen=True)
class ModelSettings:
    """What `--model_args` and the harness's own options say.

    Attributes:
        engine: a name of engines.ENGINES.
        of_engine: what the engine is told.
        tokenizer: a folder or hub name; the checkpoint's own unless given.
        max_gen_toks: tokens to generate where a task does not say.
        add_bos_token: begin every text with the BOS token; None leaves it to the tokenizer.
        prefix_token_id: conditions the first token of a text; None for BOS, or EOS where there is no BOS.
        enable_thinking: passed to the chat template; None leaves the template's own default.
        track: log the run to MLflow.
        shipped: no model was named and the shipped one stands in.
    """

    engine: str
    of_engine: EngineSettings
    tokenizer: str
    max_gen_toks: int = 256
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    enable_thinking: bool | None = None
    track: bool = True
    shipped: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)


def read(arguments: Mapping[str, Any]) -> ModelSettings:
    """Check model arguments as the harness passes them.

    Raises:
        UsageError: the first argument that cannot be met, and what can.
    """
    left = {str(key).strip(): value for key, value in arguments.items() if value is not None}
    given = dict(left)
    named = left.pop("pretrained", None)
    engine = left.pop("engine", None)
    if engine is not None:
        registry.named(str(engine))
    shipped = named is None and engine in (None, "transformers")
    if named is None and not shipped:
        raise UsageError(f"engine={engine} needs a checkpoint: add pretrained=FOLDER_OR_HUB_NAME to --model_args.")
    engine = str(engine or ("transformers" if shipped else "trtllm"))
    asked = left.pop("precision", None)
    if asked is not None and asked not in precision.PRECISIONS:
        raise UsageError(f"There is no precision {asked!r}; choose one of {', '.join(precision.PRECISIONS)}.")
    registry.check(engine)
    name = str(SHIPPED if shipped else named)
    folder = contents.local_folder(name)
    if folder is not None:
        name = str(folder)
        contents.read_config(folder)
    harness = ModelSettings(
        engine=engine,
        of_engine=EngineSettings(name),
        tokenizer=str(left.pop("tokenizer", name)),
        max_gen_toks=_max_gen_toks(left),
        add_bos_token=flag(left, "add_bos_token"),
        prefix_token_id=_integer(left, "prefix_token_id"),
        enable_thinking=flag(left, "enable_thinking"),
        track=flag(left, "track") is not False,
        shipped=shipped,
        given=given,
    )
    claimed = {own: left.pop(own) for own in registry.named(engine).claims if own in left}
    of_engine = EngineSettings(
        checkpoint=name,
        precision=asked,
        dtype=str(left.pop("dtype", "auto")),
        device=left.pop("device", None),
        max_length=_integer(left, "max_length"),
        batch_size=_batch_size(left.pop("batch_size", None), left.pop("max_batch_size", None)),
        revision=left.pop("revision", None),
        trust_remote_code=flag(left, "trust_remote_code") is True,
        options=left | claimed,
    )
    registry.check_options(engine, left)
    return replace(harness, of_engine=of_engine)


def _integer(left: dict[str, Any], name: str) -> int | None:
    value = left.pop(name, None)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise UsageError(f"{name}={value} is not a whole number.")
    return number


def _max_gen_toks(left: dict[str, Any]) -> int:
    value = _integer(left, "max_gen_toks")
    if value is not None and value < 1:
        raise UsageError(f"max_gen_toks={value} is not above 0.")
    return value or 256


def _batch_size(value: Any, most: Any) -> int | None:
    """None where the engine is to choose (`auto` and the harness's `auto:N`), else the most sequences in a batch."""
    name = "batch_size"
    if value is None or re.fullmatch(r"auto(:\d+)?", str(value)):
        name, value = "max_batch_size", most
    if value is None:
        return None
    try:
        size = int(str(value))
    except ValueError:
        size = 0
    if size < 1:
        raise UsageError(f"{name}={value} is neither auto nor a number above 0.")
    return size
