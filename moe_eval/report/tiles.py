"""What is read in ten seconds: the header line, and a tile for every headline of a pair or figure of an arm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from moe_eval.frozen import frozen
from moe_eval.records.comparison import ComparedArm, Pair
from moe_eval.records.headline import Header, Headline, HeadlineFigure
from moe_eval.records.verdicts import QualityVerdict, Rules, Verdict
from moe_eval.report import readable
from moe_eval.report.text import finite, named, plain

Kind = Literal["good", "bad", "open"]

_TITLES = {
    HeadlineFigure.SPEED_UP: "Speed-up",
    HeadlineFigure.OUTPUT_TOK_S_PER_GPU: "Output per GPU",
    HeadlineFigure.TTFT_MS: "Time to first token",
    HeadlineFigure.QUALITY: "Quality",
    HeadlineFigure.MEMORY_GIB: "Weights per GPU",
    HeadlineFigure.J_PER_TOK: "Energy per token",
    HeadlineFigure.USERS_IN_TIME: "Users in time",
    HeadlineFigure.SERVED_TOK_S: "Output under load",
}
TITLES = tuple(_TITLES.values())
_UNITS = {
    HeadlineFigure.OUTPUT_TOK_S_PER_GPU: " tok/s",
    HeadlineFigure.TTFT_MS: " ms",
    HeadlineFigure.MEMORY_GIB: " GiB",
    HeadlineFigure.J_PER_TOK: " J",
    HeadlineFigure.SERVED_TOK_S: " tok/s",
}
_UNDER_LOAD = (HeadlineFigure.USERS_IN_TIME, HeadlineFigure.SERVED_TOK_S)
_DECIDE_ON = {
    "e2e": "end to end",
    "ttft": "to the first token",
    "tpot": "per output token",
    "output_tok_s": "in output tokens",
    "output_tok_s_per_gpu": "end to end",
}
# "pays" and "slower" are of the time that decides. Other figures are better or worse
_WORDS = {Verdict.PAYS.value: "better", Verdict.SLOWER.value: "worse"}
_GOOD = {Verdict.PAYS.value, QualityVerdict.NO_COST.value}
_BAD = {Verdict.SLOWER.value, Verdict.BROKEN.value, QualityVerdict.COSTS.value}


@frozen
class Tile:
    """A figure as it is read.

    Attributes:
        title, value: such as "Speed-up" and "1.44x".
        detail: its interval, and the reference's figure.
        verdict: on this figure. Empty where it has none.
        kind: of the verdict.
    """

    title: str
    value: str
    detail: str
    verdict: str
    kind: Kind = "open"

    @property
    def line(self) -> str:
        """The tile in one line, without its title."""
        figures = ", ".join(filter(None, (self.value, self.detail)))
        return f"{figures}: {self.verdict}" if self.verdict else figures


def header_line(header: Header) -> str:
    """Model, GPU, engine, date and run, as far as they are known, with what every figure has to be read with."""
    parts = [
        *(plain(name) for name in header.models),
        *(plain(name) for name in header.gpus),
        *map(readable.engine, header.engines),
        plain((header.started or "")[:10]),
        f"run {plain(header.run_id[:8])}" if header.run_id else "",
        "random weights" if header.random_weights else "",
    ]
    return " · ".join(filter(None, parts))


def kind_of(verdict: str) -> Kind:
    """Whether the word of a verdict is good, bad or neither."""
    return "good" if verdict in _GOOD else "bad" if verdict in _BAD else "open"


def of_pair(pair: Pair, rules: Rules) -> tuple[Tile, ...]:
    """The headlines of a pair, in their order. None where nothing may be compared."""
    return tuple(_tile(headline, pair, rules) for headline in pair.headlines if finite(headline.ratio))


def place_of(pair: Pair) -> str:
    """The shape that the speed of a pair's headlines is of, in words. Empty where there is none."""
    shapes = (headline.shape for headline in pair.headlines if headline.figure not in _UNDER_LOAD)
    return next((readable.shape_words(shape) for shape in shapes if shape), "")


def _tile(headline: Headline, pair: Pair, rules: Rules) -> Tile:
    figure, verdict, ratio = headline.figure, plain(headline.verdict or ""), headline.ratio or 0.0
    title, unit, kind = _TITLES[figure], _UNITS.get(figure, ""), kind_of(verdict)
    if figure is HeadlineFigure.QUALITY:
        ends = (None if end is None else 100 * (end - 1) for end in (headline.low, headline.high))
        value, interval = readable.change(100 * (ratio - 1), *ends)
        return Tile(title, value, f"perplexity, {interval or 'no interval'}", verdict, kind)
    times, interval = readable.factor(ratio, headline.low, headline.high, rules.min_gain)
    if figure is HeadlineFigure.SPEED_UP:
        return Tile(title, times, f"{interval or 'no interval'}, {_DECIDE_ON[rules.decide_on]}", verdict, kind)
    if figure is HeadlineFigure.USERS_IN_TIME and pair.serving and pair.serving.users:
        limit = f"within {pair.serving.users.tpot_ms:g} ms a token"
        return Tile(title, times, f"{interval or 'no interval'}, {limit}", verdict, kind)
    before, after = (readable.significant(side, unit=unit) for side in (headline.reference, headline.value))
    beside = f"{named(pair.reference)} {before}"
    if figure is HeadlineFigure.MEMORY_GIB:
        less = readable.significant(100 * abs(1 - 1 / ratio))
        return Tile(title, after, f"{beside}, {less} % {'less' if ratio > 1 else 'more'}", verdict, kind)
    if figure is HeadlineFigure.SERVED_TOK_S:
        beside += f", {readable.shape_words(headline.shape or '')}"
    return Tile(title, after, f"{times} ({interval or 'no interval'}), {beside}", _WORDS.get(verdict, verdict), kind)


def of_arm(arm: ComparedArm) -> tuple[Tile, ...]:
    """The figures of an arm by itself, those of speed at its largest batch. They have no verdict."""
    return tuple(_of_arm(arm))


def shape_of_arm(arm: ComparedArm) -> str | None:
    """The shape that the tiles of an arm by itself are of: the one with the most tokens a second."""
    rates = {
        name: rate
        for name, figures in arm.speed.items()
        if (rate := finite(figures["output_tok_s"].median if "output_tok_s" in figures else None)) is not None
    }
    return None if arm.emulated else max(rates, key=lambda name: rates[name], default=None)


def _of_arm(arm: ComparedArm) -> Iterator[Tile]:
    shape = shape_of_arm(arm)
    figures = arm.speed[shape] if shape else {}
    metrics = (
        (HeadlineFigure.OUTPUT_TOK_S_PER_GPU, "output_tok_s", arm.gpus or 1),
        (HeadlineFigure.TTFT_MS, "ttft_ms", 1),
        (HeadlineFigure.J_PER_TOK, "j_per_tok", 1),
    )
    for figure, metric, gpus in metrics:
        if (interval := figures.get(metric)) is not None:
            yield Tile(_TITLES[figure], *readable.with_interval(interval.per(gpus), _UNITS[figure]), "")
    rates = {
        name: rate
        for name, served in arm.serving.items()
        if (rate := served.get("output_tok_s_per_gpu") or served.get("output_tok_s")) is not None
    }
    if rates:
        name = max(rates, key=lambda name: rates[name].median)
        value, bounds = readable.with_interval(rates[name], _UNITS[HeadlineFigure.SERVED_TOK_S])
        yield Tile(_TITLES[HeadlineFigure.SERVED_TOK_S], value, f"{bounds}, {readable.shape_words(name)}", "")
    if arm.token_ppl is not None and not arm.random_weights:
        yield Tile("Perplexity", readable.significant(arm.token_ppl), "by token", "")
    if arm.weights_gib is not None:
        unit = _UNITS[HeadlineFigure.MEMORY_GIB]
        yield Tile(_TITLES[HeadlineFigure.MEMORY_GIB], readable.significant(arm.weights_gib, unit=unit), "", "")
