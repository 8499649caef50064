"""What a precision is called, and which of them an engine computes in."""

from __future__ import annotations

from collections.abc import Collection

from moe_eval.errors import UsageError

PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "fp8_block", "nvfp4")

# dtype names as torch and checkpoints spell them
OF_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
DTYPE_OF = {precision: dtype for dtype, precision in OF_DTYPE.items()}


def check(asked: str, engine: str, runs: Collection[str]) -> None:
    """Refuse a precision that does not exist or that this engine does not run.

    Raises:
        UsageError: with what there is instead.
    """
    if asked not in PRECISIONS:
        raise UsageError(f"There is no precision {asked!r}; choose one of {', '.join(PRECISIONS)}.")
    if asked not in runs:
        raise UsageError(f"The {engine} engine does not run precision {asked}; it runs {', '.join(runs)}.")
