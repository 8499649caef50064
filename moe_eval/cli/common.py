"""What `moe-eval ppl` and `moe-eval perf` share: which arms are asked for, and where records go."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import shipped as shipped_model
from moe_eval.engines import registry
from moe_eval.engines.options import flag
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.machine.hardware import Gpu
from moe_eval.records import disk
from moe_eval.runner import arm_plan
from moe_eval.runner.folder import RunFolder

EARLIER = "earlier"  # the folder for records in whose place others were written


@dataclass(frozen=True)
class Request:
    """The arms that a command asks for; `tokenizer` is None where each checkpoint has its own."""

    asked: arm_plan.Asked
    tokenizer: str | None

    def tokenizer_of(self, arm: arm_plan.Arm) -> str:
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

    shipped = args.model_path is None
    engine = args.engine or ("transformers" if emulate or shipped else "trtllm")
    if shipped:
        print(f"{shipped_model.SHIPPED_NOTE}.", file=sys.stderr)
    options: dict[str, Any] = dict(simple_parse_args_string(args.model_args))
    tokenizer = options.pop("tokenizer", None)
    common = _of_settings(options)
    if args.moe_backend != "auto":
        options["moe_backend"] = args.moe_backend
    if args.disable_fusion:
        if engine != "trtllm":
            raise UsageError("--disable_fusion is a setting of TensorRT-LLM; leave it out.")
        options["disable_fusion"] = True
    registry.check(engine)
    registry.check_options(engine, options)
    asked = arm_plan.Asked(
        engine=engine,
        precisions=[name.strip() for name in args.precisions.split(",") if name.strip()],
        paths={
            "model": str(shipped_model.SHIPPED) if shipped else args.model_path,
            "fp8": args.fp8_model_path,
            "nvfp4": args.nvfp4_model_path,
        },
        emulate=emulate,
        scope=scope,
        options=options,
        settings=common,
    )
    return Request(asked, tokenizer)


def _of_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Take what is no engine's own but a field of EngineSettings out of the model arguments.

    Raises:
        UsageError: a value that no engine can take.
    """
    import torch

    trusted = flag(options, "trust_remote_code")
    found: dict[str, Any] = {}
    for name in ("dtype", "device", "revision"):
        if name in options:
            found[name] = str(options.pop(name))
    dtype = getattr(torch, found.get("dtype", "float32"), None) if found.get("dtype") != "auto" else torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(f"dtype={found['dtype']} is no floating-point type of torch; give bfloat16, for example.")
    if "device" in found:
        hardware.check_device(found["device"])
    return found if trusted is None else {**found, "trust_remote_code": trusted}


def shown(args: argparse.Namespace) -> dict[str, str]:
    """The command's options as a record has them, secrets removed."""
    from lm_eval.utils import simple_parse_args_string

    given = {key: str(value) for key, value in vars(args).items() if key != "run" and value is not None}
    inner = disk.redact(simple_parse_args_string(args.model_args))
    given["model_args"] = ",".join(f"{key}={value}" for key, value in inner.items())
    redacted: dict[str, str] = disk.redact(given)
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


@contextmanager
def own_folder(folder: Path, names: Collection[str]) -> Iterator[None]:
    """Hold a folder of records for one command, and move what is there under names that it will write.

    Args:
        names: of files without their suffixes.

    Raises:
        UsageError: the folder cannot be written to, or another command is at work in it.
    """
    make_folder(folder)
    with RunFolder(folder).locked(0):
        found = [each for each in folder.glob("*.*") if each.name.partition(".")[0] in names]
        if found:
            when = max(each.stat().st_mtime for each in found)
            aside = folder / EARLIER / f"{datetime.fromtimestamp(when, timezone.utc):%Y%m%dT%H%M%S%f}"
            aside.mkdir(parents=True, exist_ok=True)
            for each in found:
                each.rename(aside / each.name)
            print(f"moe-eval: {len(found)} files of an earlier command were moved to {aside}.", file=sys.stderr)
        yield


def place(gpus: Sequence[Gpu]) -> str:
    """The end of a record's file name: the first GPU's compute capability, or `cpu`."""
    return f"sm{gpus[0].sm}" if gpus else "cpu"
