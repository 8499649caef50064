"""The model arguments of `--model trtllm_moe`, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field

from moe_eval.checkpoint import contents, precision
from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.options import flag
from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen
from moe_eval.machine import nsys

_PROFILERS = ("auto", "nsys", "torch")
_COMMON = (
    *registry.SHARED,
    *("pretrained", "engine", "precision", "max_length", "batch_size", "max_batch_size", "max_gen_toks"),
    *("add_bos_token", "prefix_token_id", "enable_thinking", "think_end_token", "track"),
    "profiler",
)


@frozen
class ModelSettings:
    """The settings in `--model_args` and in the harness's own options.

    Attributes:
        tokenizer: a folder or hub name, by default the checkpoint's own.
        max_gen_toks: tokens to generate if a task sets no number.
        add_bos_token: begin every text with the BOS token. None leaves it to the tokenizer.
        prefix_token_id: conditions the first token of a text. None for BOS, or EOS without BOS.
        enable_thinking: passed to the chat template. None leaves the template's default.
        think_end_token: the id or the text of what ends a thought. An answer is what follows the last one.
        profiler: of moe_kernels. `auto` is Nsight Systems where this process runs under it, else torch's.
        shipped: no model was named, so the shipped one is used.
        arguments: the model arguments as the harness passes them.
    """

    engine: str
    of_engine: EngineSettings
    tokenizer: str
    max_gen_toks: int = 256
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    enable_thinking: bool | None = None
    think_end_token: int | str | None = None
    track: bool = True
    profiler: str = "auto"
    shipped: bool = False
    arguments: Mapping[str, object] = field(default_factory=dict)


def read(arguments: Mapping[str, object]) -> ModelSettings:
    """Check model arguments as the harness passes them.

    Raises:
        UsageError: the first argument that cannot be met, and its alternatives.
    """
    arguments = {str(key).strip(): value for key, value in arguments.items() if value is not None}
    options = dict(arguments)  # every reader takes its arguments out, and the engine gets the rest
    engine, shipped = _engine(options)
    required = options.pop("precision", None)
    if required is not None:
        precision.check_name(str(required))
    registry.check(engine)
    checkpoint = _checkpoint(options, shipped)
    enable_thinking, think_end_token = flag(options, "enable_thinking"), options.pop("think_end_token", None)
    if enable_thinking and think_end_token is None:
        raise UsageError(
            "enable_thinking=True needs think_end_token, which ends the thought before an answer. Give its text or id."
        )
    max_gen_toks = _integer(options, "max_gen_toks")
    if max_gen_toks is not None and max_gen_toks < 1:
        raise UsageError(f"max_gen_toks={max_gen_toks} is not above 0. Give at least 1.")
    return ModelSettings(
        engine=engine,
        tokenizer=str(options.pop("tokenizer", checkpoint)),
        max_gen_toks=max_gen_toks or 256,
        add_bos_token=flag(options, "add_bos_token"),
        prefix_token_id=_integer(options, "prefix_token_id"),
        enable_thinking=enable_thinking,
        think_end_token=_token(think_end_token),
        track=flag(options, "track") is not False,
        profiler=_profiler(options),
        shipped=shipped,
        arguments=arguments,
        of_engine=_engine_settings(engine, checkpoint, required, options),  # last, since it takes the rest
    )


def _engine(options: dict[str, object]) -> tuple[str, bool]:
    """The engine's name, and whether the shipped model stands in for a checkpoint."""
    engine = options.pop("engine", None)
    if engine is not None and registry.named(str(engine)).is_endpoint:
        raise UsageError(f"engine={engine} is for arms of moe-eval run. Use lm_eval's --model local-completions.")
    if "pretrained" in options:
        return str(engine or "trtllm"), False
    if engine not in (None, "transformers"):
        raise UsageError(f"engine={engine} needs a checkpoint. Add pretrained=FOLDER_OR_HUB_NAME to --model_args.")
    return "transformers", True


def _profiler(options: dict[str, object]) -> str:
    """Which profiler traces kernels. This process cannot put itself under Nsight Systems."""
    name = str(options.pop("profiler", "auto"))
    if name not in _PROFILERS:
        fix = mended(name, _PROFILERS, "Give profiler=auto, nsys or torch.")
        raise UsageError(f"There is no profiler {name!r}. {fix}")
    if name == "nsys" and not nsys.inside():
        raise UsageError(
            f"profiler=nsys traces where lm_eval runs under Nsight Systems. Put before the command: {nsys.prefix()}"
        )
    return name


def _checkpoint(options: dict[str, object], shipped: bool) -> str:
    name = str(SHIPPED if shipped else options.pop("pretrained"))
    folder = contents.local_folder(name)
    if folder is None:
        return name
    contents.read_config(folder)
    return str(folder)


def _engine_settings(engine: str, checkpoint: str, required: object, options: dict[str, object]) -> EngineSettings:
    # an engine may claim an argument that is otherwise ours
    claimed = {name: options.pop(name) for name in registry.named(engine).claims if name in options}
    settings = EngineSettings(
        checkpoint=checkpoint,
        precision=None if required is None else str(required),
        dtype=str(options.pop("dtype", "auto")),
        device=_text(options, "device"),
        max_length=_integer(options, "max_length"),
        batch_size=_batch_size(options.pop("batch_size", None), options.pop("max_batch_size", None)),
        revision=_text(options, "revision"),
        trust_remote_code=flag(options, "trust_remote_code") is True,
        options=options | claimed,
    )
    registry.check_options(engine, options, _COMMON)
    return settings


def _text(options: dict[str, object], name: str) -> str | None:
    value = options.pop(name, None)
    return None if value is None else str(value)


def _integer(options: dict[str, object], name: str) -> int | None:
    value = options.pop(name, None)
    if value is None:
        return None
    try:
        number = int(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or (isinstance(value, float) and value != number):
        raise UsageError(f"{name}={value} is not a whole number. Give one.")
    return number


def _token(value: object) -> int | str | None:
    """A token's id, which may be written as digits, or its text."""
    return value if value is None else int(str(value)) if str(value).isdecimal() else str(value)


def _batch_size(batch_size: object, max_batch_size: object) -> int | None:
    """The maximum of sequences in a batch. None for `auto` and the harness's `auto:N`: the engine chooses."""
    name, value = "batch_size", batch_size
    if value is None or re.fullmatch(r"auto(:\d+)?", str(value)):
        name, value = "max_batch_size", max_batch_size
    if value is None:
        return None
    if not re.fullmatch(r"0*[1-9]\d*", str(value)):
        raise UsageError(f"{name}={value} is neither auto nor a number above 0. Give one of them.")
    return int(str(value))
