"""The cells of a table of `nsys stats`: numbers with their units in the header or beside them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.traces.kernel_table import NONE, Ints

_COMMAND = "nsys stats --report cuda_gpu_trace --format csv"
MAKE = f"Make it with {_COMMAND}"

_UNITS = {
    **{"": 1, "ns": 1, "nsec": 1, "us": 1e3, "usec": 1e3, "ms": 1e6, "msec": 1e6, "s": 1e9, "sec": 1e9},
    **{"min": 60e9, "h": 3600e9},
    **{"b": 1, "byte": 1, "bytes": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30},
}
_NUMBER = r"^(?:(?P<number>nan|inf|[-+]?[0-9.][0-9.,'\s\x{a0}\x{202f}]*(?:e[-+]?[0-9]+)?)\s*(?P<unit>[a-z%]*))?$"


@frozen
class Table:
    """A report's lines as text: Arrow arrays and units by the header's text in lower case, and how many are odd."""

    path: Path
    columns: Mapping[str, Any]
    units: Mapping[str, str]
    delimiter: str
    odd: int


def encoded(texts: Any) -> tuple[list[str], Ints]:
    """Distinct texts of an Arrow array of bytes, and every row's index into them, NONE where a row has no text."""
    if not len(texts):
        return [], np.zeros(0, np.int64)
    whole = texts.dictionary_encode().combine_chunks()
    distinct = [text.decode("utf-8", "replace") for text in whole.dictionary.to_pylist()]
    index = np.frombuffer(whole.indices.buffers()[1], np.int32)[whole.indices.offset :][: len(whole)].astype(np.int64)
    empty = np.array([not text for text in distinct], np.bool_)
    return distinct, np.where(empty[index], NONE, index)


def _integers(chunks: Sequence[Any]) -> Ints:
    """By way of the buffers: Arrow's own to_numpy imports pandas."""
    whole = [chunk.cast("int64", safe=False) for chunk in chunks if len(chunk)]
    parts = [np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :][: len(chunk)] for chunk in whole]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def number(table: Table, name: str, absent: int = NONE) -> Ints:
    """A column in nanoseconds, bytes or as it is, `absent` where a cell is empty or not finite."""
    if name not in table.columns:
        return np.full(len(table.columns["name"]), absent, np.int64)
    compute = importlib.import_module("pyarrow.compute")
    text = compute.replace_substring(compute.utf8_trim_whitespace(table.columns[name]), ",", "")
    try:
        if _unit(table, name, "") == 1:
            try:
                # patterns and not comparisons: Arrow imports pandas to compare with a value of Python
                return _integers(compute.cast(compute.replace_substring_regex(text, "^$", str(absent)), "int64").chunks)
            except ValueError:
                pass  # a fraction, or units in cells
        scaled = _scaled(table, name)
    except ValueError as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{table.path} has a {name} that is no number ({problem}). {MAKE}.") from error
    good = np.abs(scaled) < 2.0**62
    return np.where(good, np.rint(np.where(good, scaled, 0)), absent).astype(np.int64)


def _scaled(table: Table, name: str) -> npt.NDArray[np.float64]:
    """A column with fractions or units in its cells, NaN where a cell is empty.

    Where the list's separator is a semicolon and cells have units, a comma stands before the fraction, unless cells
    have points as well. Elsewhere it stands between thousands.
    """
    compute = importlib.import_module("pyarrow.compute")
    text = compute.utf8_trim_whitespace(table.columns[name])
    parts = compute.extract_regex(compute.utf8_lower(text), _NUMBER)
    figure, unit = (compute.struct_field(parts, part) for part in ("number", "unit"))
    unknown = compute.filter(text, compute.is_null(parts))
    if len(unknown):
        raise ValueError(repr(unknown[0].as_py()))
    has_point = compute.any(compute.match_substring(figure, ".")).as_py()
    has_units = compute.any(compute.match_substring_regex(unit, ".")).as_py()
    is_comma = table.delimiter == ";" and has_units and not has_point
    figure = compute.replace_substring(figure, ",", "." if is_comma else "")
    figure = compute.replace_substring_regex(figure, r"['\s\x{a0}\x{202f}]", "")
    figure = compute.replace_substring_regex(figure, "^$", "nan")
    values = np.array(compute.cast(figure, "float64").to_pylist(), np.float64)
    distinct, index = encoded(compute.cast(unit, "binary"))
    factors = np.array([_unit(table, name, text) for text in distinct] + [_unit(table, name, "")], np.float64)
    return values * factors[index]  # NONE, of a cell without a unit, is the last


def _unit(table: Table, name: str, of_cell: str) -> float:
    unit = of_cell or table.units[name]
    if unit not in _UNITS:
        raise UsageError(f"{table.path} has its {name} in {unit!r}, which is no unit known here. {MAKE}.")
    return _UNITS[unit]
