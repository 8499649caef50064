"""The names of precisions, and where an engine computes in them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen

PRECISIONS = ("bf16", "fp16", "fp32", "fp8", "fp8_channel", "fp8_block", "nvfp4")
# these kernels unpack weights and multiply in 16 bits, which is another precision than the checkpoint's
WEIGHT_ONLY = {
    "nvfp4": "nvfp4-w4a16",
    "fp8": "fp8-w8a16",
    "fp8_channel": "fp8_channel-w8a16",
    "fp8_block": "fp8_block-w8a16",
    "mxfp4": "mxfp4-w4a16",
    "mxfp8": "mxfp8-w8a16",
}
_WEIGHT_ONLY_BACKENDS = ("MARLIN",)
# what a trace may be said to run: the same, and MX types, which no engine is asked for here
LABELS = (*PRECISIONS, "mxfp4", "mxfp8", *WEIGHT_ONLY.values())

# dtype names as torch and checkpoints spell them
OF_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
DTYPE_OF = {precision: dtype for dtype, precision in OF_DTYPE.items()}
# bytes of a number in the key-value cache, by the type's name in TensorRT-LLM and vLLM
_CACHE_BYTES = {
    "float32": 4.0,
    **dict.fromkeys(("float16", "bfloat16"), 2.0),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8"), 1.0),
    "nvfp4": 0.5 + 1 / 16,  # a byte of scale for 16 numbers
    "fp8_ds_mla": 656 / 576,  # vLLM's for DeepSeek: 512 numbers in FP8, 4 scales in float32, 64 numbers in 16 bits
}


def cache_bytes(dtype: str) -> float | None:
    """Bytes of a number of this type in a key-value cache. None for an unknown type."""
    return _CACHE_BYTES.get(dtype.lower())


def check(precision: str, engine: str, runs: Collection[str]) -> None:
    """Raise a UsageError for a precision that does not exist or that this engine does not run."""
    check_name(precision)
    if precision not in runs:
        raise UsageError(f"The {engine} engine does not run precision {precision}. Give one of {', '.join(runs)}.")


def check_name(precision: str) -> None:
    """Raise a UsageError for a precision that does not exist."""
    if precision not in PRECISIONS:
        fix = mended(precision, PRECISIONS, f"Give one of {', '.join(PRECISIONS)}.")
        raise UsageError(f"There is no precision {precision!r}. {fix}")


@frozen
class Support:
    """One row of support.toml: where an engine runs a precision natively.

    Attributes:
        sm: inclusive ranges of compute capability as one number, 90 for 9.0. An open end is 999.
        moe_backends: the engine's names of the expert implementations that run it there.
        versions: of the engine, as a specifier of PEP 440. Empty for all.
        source: the document or file that says so.
    """

    engine: str
    precision: str
    sm: tuple[tuple[int, int], ...]
    moe_backends: tuple[str, ...]
    source: str
    versions: str = ""

    def runs_on(self, sm: int) -> bool:
        """Whether a GPU of this compute capability is in the row."""
        return any(first <= sm <= last for first, last in self.sm)

    def runs_in(self, version: str | None) -> bool:
        """Whether a version is in the row. An unknown version is."""
        return is_in(self.versions, version)


def is_in(versions: str, version: str | None) -> bool:
    """Whether a version is one of a specifier of PEP 440. An unknown version is."""
    if version is None or not versions:
        return True
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        # parsed here, since newer releases of packaging put a text that is no version outside every specifier
        return SpecifierSet(versions).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True  # the user's own build


@cache
def support() -> tuple[Support, ...]:
    """The rows of support.toml."""
    import msgspec

    from moe_eval.outside import toml

    return tuple(msgspec.convert(toml.read(Path(__file__).with_name("support.toml"))["row"], list[Support]))


def executed(held: str, moe_backend: str | None) -> str:
    """The precision in which an implementation of experts computes a checkpoint of precision `held`."""
    weight_only = moe_backend is not None and moe_backend.upper() in _WEIGHT_ONLY_BACKENDS
    return WEIGHT_ONLY.get(held, held) if weight_only else held


def why_not(
    engine: str, precision: str, sm: int, moe_backend: str | None = None, version: str | None = None
) -> str | None:
    """Why this precision cannot run on a GPU, in a few words. None if it can or if no row is about it.

    Args:
        sm: compute capability as one number, 90 for 9.0.
        moe_backend: the engine's name of it. None for any.
        version: of the engine. None for any.
    """
    rows = _rows(engine, precision)
    on_gpu = [row for row in rows if row.runs_on(sm)]
    usable = [row for row in on_gpu if row.runs_in(version)]
    if not rows or any(moe_backend is None or moe_backend.upper() in row.moe_backends for row in usable):
        return None
    if usable:
        return f"not supported on SM{sm} with moe_backend={moe_backend} ({', '.join(_backends(usable))} can)"
    if on_gpu:
        return f"not supported on SM{sm} by {engine} {version} (it needs {on_gpu[0].versions})"
    weight_only = WEIGHT_ONLY.get(precision)
    unpacking = [row for row in _rows(engine, weight_only) if row.runs_on(sm) and row.runs_in(version)]
    backends = [backend for backend in _backends(unpacking) if backend in _WEIGHT_ONLY_BACKENDS]
    way_out = f", or moe_backend={' or '.join(backends)} for weight-only {weight_only}" if backends else ""
    return f"not supported on SM{sm} (it needs {_describe_ranges(rows)}{way_out})"


def _rows(engine: str, precision: str | None) -> list[Support]:
    return [row for row in support() if (row.engine, row.precision) == (engine, precision)]


def _backends(rows: list[Support]) -> list[str]:
    return sorted({backend for row in rows for backend in row.moe_backends})


def _describe_ranges(rows: list[Support]) -> str:
    """The GPUs of the rows, without ranges that lie within another."""
    ranges = {sm_range for row in rows for sm_range in row.sm}
    inner = {a for a in ranges for b in ranges if a != b and b[0] <= a[0] and a[1] <= b[1]}
    parts = [
        f"SM{first} or newer" if last >= 999 else f"SM{first}" if first == last else f"SM{first} to SM{last}"
        for first, last in sorted(ranges - inner)
    ]
    return " or ".join(parts)
