"""What the commands can be asked that are about this machine."""

from __future__ import annotations

from typing import Literal

from moe_eval.cli.options.option import option
from moe_eval.cli.options.output import INPUT, OutputOptions
from moe_eval.frozen import frozen


@frozen(kw_only=True)
class DoctorOptions(OutputOptions):
    """What `moe-eval doctor` can be asked."""

    checkpoint: str | None = option(
        None,
        "say what this checkpoint's experts, cache and the rest are in, without any engine",
        INPUT,
        metavar="PATH",
    )
    selftest: bool = option(False, "exercise TensorRT-LLM", INPUT)
    model_args: str = option(
        "",
        "model arguments of --selftest, as lm_eval takes them. Without pretrained= the shipped model is used",
        INPUT,
        metavar="KEY=VALUE,...",
        needs=("selftest", True),
    )


@frozen(kw_only=True)
class CompletionOptions(OutputOptions):
    """What `moe-eval completion` can be asked."""

    shell: Literal["bash", "zsh", "fish"] = option(
        "bash", "the shell that the script is for", INPUT, is_positional=True
    )
