"""What a precision is called, and which of them an engine computes in."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from moe_eval.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "fp8_block", "nvfp4")
# kernels that unpack weights and multiply in 16 bits: another precision, whatever the checkpoint is called
WEIGHT_ONLY = {"nvfp4": "nvfp4-w4a16", "fp8": "fp8-w8a16"}
_WEIGHT_ONLY_BACKENDS = ("MARLIN",)

# dtype names as torch and checkpoints spell them
OF_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
DTYPE_OF = {precision: dtype for dtype, precision in OF_DTYPE.items()}
# bytes of a number in the key-value cache, as TensorRT-LLM and vLLM spell its type; NVFP4 has a byte of scale for 16
_CACHE_BYTES = {
    **{"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0},
    **{"fp8_inc": 1.0, "int8": 1.0, "nvfp4": 0.5 + 1 / 16},
}


def cache_bytes(dtype: str) -> float | None:
    """Bytes that a number of this type takes in a key-value cache; None for a type that is not known."""
    return _CACHE_BYTES.get(dtype.lower())


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
        versions: of the engine, as a specifier of PEP 440; empty for all.
        source: where that is written.
    """

    engine: str
    precision: str
    sm: tuple[tuple[int, int], ...]
    moe_backends: tuple[str, ...]
    versions: str
    source: str

    def runs_on(self, sm: int) -> bool:
        """Whether a GPU of this compute capability is in the row."""
        return any(first <= sm <= last for first, last in self.sm)

    def runs_in(self, version: str | None) -> bool:
        """Whether a version is in the row; one that is not known is."""
        if version is None or not self.versions:
            return True
        try:
            # parsed here: newer releases of packaging call a text that is no version outside of every specifier
            return SpecifierSet(self.versions).contains(Version(version), prereleases=True)
        except InvalidVersion:
            return True  # a build of one's own


@cache
def support() -> tuple[Support, ...]:
    """The rows of support.toml."""
    text = resources.files("moe_eval.checkpoint").joinpath("support.toml").read_text(encoding="utf-8")
    return tuple(
        Support(
            row["engine"],
            row["precision"],
            tuple((first, last) for first, last in row["sm"]),
            tuple(row["moe_backends"]),
            row.get("versions", ""),
            row["source"],
        )
        for row in tomllib.loads(text)["row"]
    )


def executed(held: str, moe_backend: str | None) -> str:
    """The precision that a checkpoint of `held` computes in with an implementation of experts."""
    weight_only = moe_backend is not None and moe_backend.upper() in _WEIGHT_ONLY_BACKENDS
    return WEIGHT_ONLY.get(held, held) if weight_only else held


def why_not(
    engine: str, precision: str, sm: int, moe_backend: str | None = None, version: str | None = None
) -> str | None:
    """Why this precision cannot run on a GPU, in a few words; None where it can, or where no row speaks of it.

    Args:
        sm: compute capability as one number, 90 for 9.0.
        moe_backend: as the engine calls it; None for any.
        version: of the engine; None for any.
    """
    rows = [row for row in support() if (row.engine, row.precision) == (engine, precision)]
    there = [row for row in rows if row.runs_on(sm)]
    now = [row for row in there if row.runs_in(version)]
    if not rows or any(moe_backend is None or moe_backend.upper() in row.moe_backends for row in now):
        return None
    if now:
        able = sorted({backend for row in now for backend in row.moe_backends})
        return f"not supported on SM{sm} with moe_backend={moe_backend} ({', '.join(able)} can)"
    if there:
        return f"not supported on SM{sm} by {engine} {version} (it needs {there[0].versions})"
    every = {each for row in rows for each in row.sm}
    ranges = sorted(one for one in every if not any(o != one and o[0] <= one[0] and one[1] <= o[1] for o in every))
    weight_only = WEIGHT_ONLY.get(precision)
    others = sorted(
        {
            backend
            for row in support()
            if (row.engine, row.precision) == (engine, weight_only) and row.runs_on(sm) and row.runs_in(version)
            for backend in row.moe_backends
        }
    )
    more = f"; weight-only, as {weight_only}, moe_backend={' or '.join(others)} can" if others else ""
    return f"not supported on SM{sm} (it needs {_words(ranges)}{more})"


def _words(ranges: list[tuple[int, int]]) -> str:
    parts = [
        f"SM{first} or newer" if last >= 999 else f"SM{first}" if first == last else f"SM{first} to SM{last}"
        for first, last in ranges
    ]
    return " or ".join(parts)
