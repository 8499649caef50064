"""Options for the arms that are loaded."""

from __future__ import annotations

from typing import Literal

from moe_eval.cli.options import arm_text
from moe_eval.cli.options.option import option
from moe_eval.frozen import frozen

ARMS = "arms"
# those of their rooms, which are imported where they are needed
_PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "fp8_channel", "fp8_block", "nvfp4")
_ENGINES = ("trtllm", "vllm", "transformers")
_FP8, _NVFP4 = ("precisions", "fp8", "fp8_block", "fp8_channel"), ("precisions", "nvfp4")


@frozen(kw_only=True)
class ArmOptions:
    """Which arms are loaded. Paths are folders or names on the hub."""

    model_path: str | None = option(
        None, "the checkpoint in BF16. Without it the shipped model runs on Transformers", ARMS, is_path=True
    )
    fp8_model_path: str | None = option(
        None, "a checkpoint in FP8, per tensor or in blocks", ARMS, is_path=True, needs=_FP8
    )
    nvfp4_model_path: str | None = option(None, "a checkpoint in NVFP4", ARMS, is_path=True, needs=_NVFP4)
    precisions: tuple[str, ...] = option(
        ("bf16", "fp8", "nvfp4"),
        "what to run, in this order. The first is the reference",
        ARMS,
        metavar="NAME,...",
        suggestions=_PRECISIONS,
    )
    arms: tuple[str, ...] = option(
        (),
        "an arm by its settings, in place of --precisions. Give one --arm for each. The first is the reference",
        ARMS,
        metavar="NAME:KEY=VALUE,...",
        spelling="arm",
        reader=arm_text.texts,
    )
    engine: str | None = option(
        None,
        "trtllm, vllm or transformers. Without it trtllm, or transformers for the shipped model",
        ARMS,
        suggestions=_ENGINES,
    )
    moe_backend: str = option("auto", "the engine's implementation of the experts", ARMS)
    disable_fusion: bool = option(False, "TensorRT-LLM: use no fused all-reduce", ARMS)
    stall_timeout: float | None = option(
        None, "TensorRT-LLM and vLLM: seconds without a response, after which an arm ends", ARMS, minimum=0.1
    )
    model_args: str = option(
        "",
        "more model arguments for every arm, as lm_eval takes them: tokenizer=, dtype= and the engine's own",
        ARMS,
        metavar="KEY=VALUE,...",
    )


@frozen(kw_only=True)
class EmulationOptions:
    """Whether low precisions are computed from the checkpoint in BF16."""

    emulate: bool = option(False, "compute FP8 and NVFP4 from --model_path by rounding, for quality alone", ARMS)
    scope: Literal["experts", "all"] = option("experts", "what --emulate rounds", ARMS, needs=("emulate", True))
