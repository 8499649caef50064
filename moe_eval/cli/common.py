"""What `moe-eval ppl` and `moe-eval perf` share: which arms are asked for, and where records go."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_eval import engines, hardware, records
from moe_eval.errors import UsageError
from moe_eval.evaluators import plan
from moe_eval.hardware import Gpu

# model arguments that are not the engine's own but fields of EngineSettings
_OF_SETTINGS = ("dtype", "device", "revision", "trust_remote_code")


@dataclass(frozen=True)
class Request:
    """The arms that a command asks for; `tokenizer` is None where each checkpoint has its own."""

    asked: plan.Asked
    tokenizer: str | None

    def tokenizer_of(self, arm: plan.Arm) -> str:
        """The folder or hub name of an arm's tokenizer."""
        return self.tokenizer or arm.settings.checkpoint


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the arms."""
    parser.add_argument("--model_path", help="the checkpoint in BF16; without it the shipped model on Transformers")
    parser.add_argument("--fp8_model_path", help="a checkpoint in FP8, per tensor or in blocks")
    parser.add_argument("--nvfp4_model_path", help="a checkpoint in NVFP4")
    parser.add_argument("--precisions", default="bf16,fp8,nvfp4", help="in this order; the first is the reference")
    parser.add_argument("--engine", help="trtllm, vllm or transformers; trtllm unless the shipped model is used")
    parser.add_argument("--moe_backend", default="auto", help="the engine's implementation of experts")
    parser.add_argument("--disable_fusion", action="store_true", help="TensorRT-LLM: no fused all-reduce")
    parser.add_argument(
        "--model_args",
        default="",
        metavar="KEY=VALUE,...",
        help="more model arguments for every arm, as lm_eval takes them: tokenizer=, dtype= and the engine's own",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_results"), help="folder of the records")


def read(args: argparse.Namespace, *, emulate: bool | None = None, scope: str = "experts") -> Request:
    """What the options ask for; says so where the shipped model stands in.

    Args:
        emulate, scope: see plan.Asked.

    Raises:
        UsageError: options that contradict each other or that the engine does not take.
    """
    from lm_eval.utils import simple_parse_args_string

    from moe_eval.harness import settings

    shipped = args.model_path is None
    engine = args.engine or ("transformers" if emulate or shipped else "trtllm")
    if shipped:
        print(f"{settings.SHIPPED_NOTE}.", file=sys.stderr)
    options: dict[str, Any] = dict(simple_parse_args_string(args.model_args))
    tokenizer = options.pop("tokenizer", None)
    common = {name: options.pop(name) for name in _OF_SETTINGS if name in options}
    if args.moe_backend != "auto":
        options["moe_backend"] = args.moe_backend
    if args.disable_fusion:
        if engine != "trtllm":
            raise UsageError("--disable_fusion is a setting of TensorRT-LLM; leave it out.")
        options["disable_fusion"] = True
    engines.check(engine)
    engines.check_options(engine, options)
    asked = plan.Asked(
        engine=engine,
        precisions=[name.strip() for name in args.precisions.split(",") if name.strip()],
        paths={
            "model": str(settings.SHIPPED) if shipped else args.model_path,
            "fp8": args.fp8_model_path,
            "nvfp4": args.nvfp4_model_path,
        },
        emulate=emulate,
        scope=scope,
        options=options,
        settings=common,
    )
    return Request(asked, tokenizer)


def shown(args: argparse.Namespace) -> dict[str, str]:
    """The command's options as a record has them, secrets removed."""
    from lm_eval.utils import simple_parse_args_string

    given = {key: str(value) for key, value in vars(args).items() if key != "run" and value is not None}
    inner = records.redact(simple_parse_args_string(args.model_args))
    given["model_args"] = ",".join(f"{key}={value}" for key, value in inner.items())
    redacted: dict[str, str] = records.redact(given)
    return redacted


def numbers(text: str) -> list[int]:
    """The sizes of a list such as 1,8,32."""
    try:
        return [int(part) for part in str(text).split(",")]
    except ValueError:
        raise UsageError(f"--batch_size {text} is not a list of whole numbers; write 1,8,32.") from None


def gpus(request: Request) -> tuple[Gpu, ...]:
    """The GPUs that the arms may use: those that torch sees, from the one on that `device` names."""
    return hardware.gpus_from(request.asked.settings.get("device"))


def make_folder(folder: Path) -> None:
    """Make the folder of the records, before anything is measured that could not be written there.

    Raises:
        UsageError: why it cannot be one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--output_dir {folder} cannot be written to ({error.strerror}); give another one.") from None


def place(gpus: Sequence[Gpu]) -> str:
    """The end of a record's file name: the first GPU's compute capability, or `cpu`."""
    return f"sm{gpus[0].sm}" if gpus else "cpu"
