"""Names, numbers and tables as a reader sees them; what was not measured says so."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from moe_eval.frozen import frozen
from moe_eval.outside.words import one_line
from moe_eval.records.verdicts import Verdict

if TYPE_CHECKING:  # a trace alone needs no record of a comparison
    from moe_eval.records.comparison import ComparisonRecord, Pair
    from moe_eval.records.ratios import Interval, Ratio
    from moe_eval.records.run import Mode
    from moe_eval.records.samples import Metric

NONE = "not measured"
LONGEST_NAME, LONGEST_SENTENCE = 120, 1500
METRICS = {
    "e2e_ms": "end-to-end time",
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "j_per_tok": "energy per output token",
}
UNITS = {"e2e_ms": "ms", "ttft_ms": "ms", "tpot_ms": "ms", "j_per_tok": "J"}
MODES: Mapping[Mode, str] = {
    "turns": "Load i of all arms lived at the same time and took turns, so drift moves them alike.",
    "alternating": "One arm was loaded at a time, and the arms alternated.",
}
Row = Sequence[tuple[str, str]]  # headings and cells
_UUID = re.compile(r"\b(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # reports are shared


@frozen
class Table:
    """Cells as text, not yet escaped; the first cell of a row names it."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def without_empty_columns(caption: str, rows: Iterable[Row]) -> list[Table]:
    """The table without columns in which nothing was measured; none at all without rows."""
    columns = list(zip(*rows, strict=True))
    filled = columns[:1] + [column for column in columns[1:] if any(cell not in (NONE, "") for _, cell in column)]
    if len(filled) < 2:
        return []
    lines = tuple(tuple(cell or "-" for _, cell in row) for row in zip(*filled, strict=True))
    return [Table(caption, tuple(column[0][0] for column in filled), lines)]


def plain(value: object, longest: int = LONGEST_NAME) -> str:
    """Text from outside on one line, without control characters, changes of direction or UUIDs of GPUs, and cut."""
    text = value if isinstance(value, str) else str(value)
    cut = text[: longest + 1]  # before the loop: a name may have any length
    line = one_line(cut)
    return _UUID.sub(r"\1", f"{line[: longest - 3]}..." if len(text) > longest else line)


def block(text: str) -> str:
    """Text from outside on several lines, without control characters, changes of direction or UUIDs of GPUs."""
    return _UUID.sub(r"\1", "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text))


def apart(names: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """Names cut so that those which differ look different: names that begin alike keep the part where they differ."""
    alike: dict[str, set[str]] = {}
    for name in names:
        alike.setdefault(name[: longest - 3], set()).add(name)
    cut_names = []
    for name in names:
        others = alike[name[: longest - 3]] - {name}
        if len(name) <= longest or not others:
            cut_names.append(plain(name, longest))
            continue
        differs = max(_common(name, other) for other in others)
        head = longest // 3
        cut_names.append(f"{plain(name[:head])}...{plain(name[max(head, differs - head) :], longest - head - 3)}")
    return cut_names


def _common(text: str, other: str) -> int:
    """How many letters both begin with."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((at for at, (letter, another) in pairs if letter != another), min(len(text), len(other)))


def paragraph(text: str) -> str:
    """A sentence from outside, with a full stop."""
    line = plain(text, LONGEST_SENTENCE)
    return line if not line or line.endswith((".", "!", "?")) else f"{line}."


def named(value: object) -> str:
    """A label, or that it is not known."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value)


def finite(value: float | None) -> float | None:
    """The number, None for infinity and what is no number."""
    return None if value is None or not math.isfinite(value) else float(value)


def number(value: float | None, digits: int, *, unit: str = "", signed: bool = False) -> str:
    """A number of so many digits after the point; a zero has no sign."""
    value = finite(value)
    if value is None:
        return NONE
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return f"{text}{unit}"


def span(low: float | None, high: float | None, digits: int, *, unit: str = "", signed: bool = False) -> str:
    """An interval, "none" where a bound is missing."""
    if finite(low) is None or finite(high) is None:
        return "none"
    return f"{number(low, digits, unit=unit, signed=signed)} to {number(high, digits, unit=unit, signed=signed)}"


def percent(share: float | None) -> float | None:
    """A share of 1 in percent."""
    share = finite(share)
    return None if share is None else 100 * share


def digits_of(values: Iterable[float | None]) -> int:
    """Digits after the point that show the largest of the values to about five places."""
    largest = max((abs(size) for value in values if (size := finite(value)) is not None), default=0.0)
    return 3 if largest < 100 else 2 if largest < 1000 else 1


def comparable(comparison: ComparisonRecord) -> list[Pair]:
    """The pairs of which figures may stand side by side."""
    return [pair for pair in comparison.pairs if pair.verdict is not Verdict.NOT_COMPARABLE]


def with_speed(comparison: ComparisonRecord) -> list[Pair]:
    """The pairs of which ratios of speed say something: a broken arm has no speed."""
    return [pair for pair in comparable(comparison) if pair.verdict is not Verdict.BROKEN]


def names_of(pair: Pair) -> str:
    """The two arms of a pair."""
    return f"{named(pair.other)} against {named(pair.reference)}"


def median(figure: Interval | None) -> float | None:
    """The median of a figure that may not be there."""
    return None if figure is None else finite(figure.median)


def figure_cells(figure: Interval | Metric | None) -> tuple[str, str]:
    """The median of one arm and its interval, both with the interval's decimals."""
    if figure is None:
        return NONE, NONE
    low, high = finite(figure.low), finite(figure.high)
    if low is None or high is None:
        return number(figure.median, digits_of([figure.median])), NONE
    from moe_eval.comparison.ratio_wording import interval_digits

    digits = interval_digits(low, high) if low < high else digits_of([high])
    return number(figure.median, digits), span(low, high, digits)


def interval_head(figures: Iterable[Interval | Metric | None]) -> str:
    """What the intervals of an arm's own figures hold for, such as "95 % interval over 4 loads"."""
    from moe_eval.stats import CONFIDENCE

    loads = sorted({figure.loads for figure in figures if figure and figure.low is not None}) or [1]
    if loads[-1] == 1:
        return f"{100 * CONFIDENCE:g} % interval of this load"
    counts = " to ".join(f"{count}" for count in dict.fromkeys((loads[0], loads[-1])))
    return f"{100 * CONFIDENCE:g} % interval over {counts} loads"


def confidence_of(ratios: Iterable[Ratio | None]) -> str:
    """At which confidence the intervals of ratios are, such as "95 %" or, of some looks, "99.95 %"."""
    from moe_eval.stats import CONFIDENCE

    levels = sorted({ratio.confidence for ratio in ratios if ratio is not None and ratio.low is not None})
    ends = dict.fromkeys(f"{min(100 * level, 99.99):.4g}" for level in (levels[:1] + levels[-1:] or [CONFIDENCE]))
    return f"{' to '.join(ends)} %"
