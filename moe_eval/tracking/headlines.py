"""The figures that stand first: of a pair on the run of its arm, and of all pairs on the parent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_eval.records.headline import Headline, HeadlineFigure
from moe_eval.records.verdicts import Verdict

if TYPE_CHECKING:
    from moe_eval.records.comparison import ComparisonRecord, Pair

# above 1 is better for the other arm, but for the perplexity, which is a change
_KEYS: Mapping[HeadlineFigure, str] = {
    HeadlineFigure.SPEED_UP: "headline/speedup",
    HeadlineFigure.QUALITY: "headline/ppl_change_percent",
    HeadlineFigure.MEMORY_GIB: "headline/memory_ratio",
    HeadlineFigure.J_PER_TOK: "headline/energy_ratio",
    HeadlineFigure.TTFT_MS: "headline/ttft_speedup",
    HeadlineFigure.OUTPUT_TOK_S_PER_GPU: "headline/output_tok_s_per_gpu_ratio",
    HeadlineFigure.USERS_IN_TIME: "headline/users_in_time_ratio",
    HeadlineFigure.SERVED_TOK_S: "headline/served_tok_s_ratio",
}
COLUMNS = tuple(_KEYS.values())[:4]


def of_pair(pair: Pair) -> dict[str, float]:
    """The headlines of the other arm of a pair, with the bounds of their intervals."""
    by_figure = {headline.figure: headline for headline in pair.headlines}
    keys: dict[str, float] = {}
    for figure, key in _KEYS.items():
        if (headline := by_figure.get(figure)) is not None:
            keys |= _bounded(key, headline)
    return keys


def _bounded(key: str, headline: Headline) -> dict[str, float]:
    values = {key: headline.ratio, f"{key}_low": headline.low, f"{key}_high": headline.high}
    is_change = headline.figure is HeadlineFigure.QUALITY
    return {name: 100 * (value - 1) if is_change else value for name, value in values.items() if value is not None}


def of_arm(comparison: ComparisonRecord | None, arm: str) -> dict[str, float]:
    """The headlines of an arm. The reference is compared with itself, so that it lines up with the others."""
    if comparison is None:
        return {}
    if arm != comparison.reference:
        return next((of_pair(pair) for pair in comparison.pairs if pair.other == arm), {})
    present = {headline.figure for pair in comparison.pairs for headline in pair.headlines}
    return {key: 0.0 if figure is HeadlineFigure.QUALITY else 1.0 for figure, key in _KEYS.items() if figure in present}


def of_parent(comparison: ComparisonRecord | None) -> dict[str, float]:
    """The headlines of the best pair by the keys of its arm. Those of all pairs follow where there are several."""
    if comparison is None:
        return {}
    pair = best(comparison)
    keys = {} if pair is None else of_pair(pair)
    for entry in comparison.pairs if len(comparison.pairs) > 1 else ():
        keys |= {f"{entry.other}/{key}": value for key, value in of_pair(entry).items()}
    return keys


def best(comparison: ComparisonRecord) -> Pair | None:
    """The pair that pays the most. Without one that pays, the first that has headlines."""
    compared = [pair for pair in comparison.pairs if pair.headlines]

    def gain(pair: Pair) -> float:
        figures, under_load = of_pair(pair), _KEYS[HeadlineFigure.SERVED_TOK_S]
        gain = figures.get(_KEYS[HeadlineFigure.SPEED_UP], figures.get(under_load, 0.0))
        return gain if pair.verdict is Verdict.PAYS else 0.0

    return max(compared, key=gain, default=None)
