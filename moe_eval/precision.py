"""What a precision is called, and which of them an engine computes in."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources

from moe_eval.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


@dataclass(frozen=True)
class Support:
    """One row of support.toml: where an engine runs a precision natively.

    Attributes:
        sm: inclusive ranges of compute capability as one number, 90 for 9.0; an open end is 999.
        moe_backends: the expert implementations that do it there, as the engine calls them.
        source: where that is written.
    """

    engine: str
    precision: str
    sm: tuple[tuple[int, int], ...]
    moe_backends: tuple[str, ...]
    source: str

    def runs_on(self, sm: int) -> bool:
        """Whether a GPU of this compute capability is in the row."""
        return any(first <= sm <= last for first, last in self.sm)


@cache
def support() -> tuple[Support, ...]:
    """The rows of support.toml."""
    text = resources.files("moe_eval").joinpath("support.toml").read_text(encoding="utf-8")
    return tuple(
        Support(
            row["engine"],
            row["precision"],
            tuple((first, last) for first, last in row["sm"]),
            tuple(row["moe_backends"]),
            row["source"],
        )
        for row in tomllib.loads(text)["row"]
    )


def why_not(engine: str, precision: str, sm: int, moe_backend: str | None = None) -> str | None:
    """Why this precision cannot run on a GPU, in a few words; None where it can, or where no row speaks of it.

    Args:
        sm: compute capability as one number, 90 for 9.0.
        moe_backend: as the engine calls it; None for any.
    """
    rows = [row for row in support() if (row.engine, row.precision) == (engine, precision)]
    if not rows or any(
        row.runs_on(sm) and (moe_backend is None or moe_backend.upper() in row.moe_backends) for row in rows
    ):
        return None
    if any(row.runs_on(sm) for row in rows):
        able = sorted({backend for row in rows if row.runs_on(sm) for backend in row.moe_backends})
        return f"not with moe_backend={moe_backend} on SM{sm}; there {', '.join(able)} can"
    ranges = sorted({each for row in rows for each in row.sm})
    return f"not supported on SM{sm}; it needs {_words(ranges)}"


def _words(ranges: list[tuple[int, int]]) -> str:
    parts = [
        f"SM{first} or newer" if last >= 999 else f"SM{first}" if first == last else f"SM{first} to SM{last}"
        for first, last in ranges
    ]
    return " or ".join(parts)
