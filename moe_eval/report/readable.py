"""Numbers, shapes, categories and engines in words that need no manual."""

from __future__ import annotations

import math
import re

from moe_eval.comparison.ratio_wording import ratio_digits
from moe_eval.records.ratios import Interval
from moe_eval.report.text import LONGEST_NAME, NONE, figure_cells, finite, number, plain, span

_SHAPE = re.compile(r"b(\d+)_i(\d+)_o(\d+)")
_POINT = re.compile(r"(?:c(\d+)|r([\d.e+-]+))_(?:i(\d+)_o(\d+)|mixed)")
_CATEGORIES = {
    "expert_gemm": "expert GEMMs",
    "gate_gemm": "router GEMM",
    "dense_gemm": "dense GEMMs",
    "routing_permute": "routing and permutation",
    "quant_dequant": "quantisation",
    "norm": "norms",
    "rope_kv": "RoPE and KV cache",
    "activation": "activations",
    "allreduce": "all-reduce",
    "memory": "copies and memsets",
}
_ENGINES = {"hf": "Transformers", "transformers": "Transformers", "trtllm": "TensorRT-LLM", "vllm": "vLLM"}


def shape_words(name: str) -> str:
    """A shape or load point by its name, such as "batch 32, 512 tokens in, 128 out"."""
    point = _POINT.fullmatch(name)
    if point:
        load = f"{point[1]} user{'s' * (point[1] != '1')}" if point[1] else f"{point[2]} requests/s"
        return f"{load}, {point[3]} tokens in, {point[4]} out" if point[3] else f"{load}, mixed lengths"
    sizes = _SHAPE.fullmatch(name)
    return "batch {}, {} tokens in, {} out".format(*sizes.groups()) if sizes else plain(name)


def category(name: str) -> str:
    """A function of the taxonomy, such as "expert GEMMs"."""
    return _CATEGORIES.get(name) or plain(name[: LONGEST_NAME + 1].replace("_", " "))


def engine(name: str) -> str:
    """An engine with its version, such as "vLLM 0.22.1"."""
    first, _, rest = plain(name).partition(" ")
    return " ".join(filter(None, (_ENGINES.get(first, first), rest)))


def significant(value: float | None, *, unit: str = "", signed: bool = False) -> str:
    """A figure to two significant digits, such as "2,400 tok/s"."""
    value = finite(value)
    if value is None:
        return NONE
    rounded = float(f"{value:.1e}")
    return number(rounded, decimals(rounded), unit=unit, signed=signed)


def with_interval(figure: Interval, unit: str) -> tuple[str, str]:
    """A figure and its interval, to two significant digits of the interval's width. Without one, of the figure."""
    value, bounds = figure_cells(figure)
    return (significant(figure.median, unit=unit), "no interval") if bounds == NONE else (f"{value}{unit}", bounds)


def decimals(size: float) -> int:
    """Decimals that show two significant digits of a size."""
    return max(0, 1 - math.floor(math.log10(abs(size)))) if size else 0


def factor(value: float, low: float | None, high: float | None, min_gain: float) -> tuple[str, str]:
    """How many times better, to two significant digits of what it gains or loses, and its interval or "".

    Both have one more digit where an end would read as 1 or as the least gain.
    """
    low, high = finite(low), finite(high)
    fewest = min(3, max(0 if value >= 2 else 2, decimals(float(f"{value - 1:.1e}"))))
    if low is None or high is None:
        return f"{value:.{fewest}f}x", ""
    digits = next(
        (
            count
            for count in range(fewest, ratio_digits(low, high, min_gain) + 1)
            if all(round(end, count) not in (1, 1 + min_gain) or end in (1, 1 + min_gain) for end in (low, high))
        ),
        fewest,
    )
    return f"{value:.{digits}f}x", f"{low:.{digits}f} to {high:.{digits}f}"


def change(value: float, low: float | None, high: float | None) -> tuple[str, str]:
    """What something adds or takes in percent, to two significant digits, and its interval or "".

    Both have one more digit where an end would read as 0.
    """
    low, high = finite(low), finite(high)
    fewest = min(4, decimals(float(f"{value:.1e}"))) if abs(value) >= 1e-4 else 2
    ends = [end for end in (low, high) if end]
    digits = next((count for count in range(fewest, fewest + 3) if all(round(end, count) for end in ends)), fewest)
    text = number(value, digits, unit=" %", signed=True)
    if low is None or high is None:
        return text, ""
    return text, span(low, high, digits, signed=True)
