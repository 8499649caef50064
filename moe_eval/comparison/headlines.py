"""The header of a comparison and the headlines of its pairs: what somebody with ten seconds reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from moe_eval.comparison import verdict
from moe_eval.comparison.because import deciding
from moe_eval.records.comparison import ComparedArm, Pair
from moe_eval.records.headline import Header, Headline, HeadlineFigure
from moe_eval.records.ratios import Ratio
from moe_eval.records.run import RunRecord
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import TIME_OF, Rules, Verdict

_METRICS = ("e2e_ms", "ttft_ms", "tpot_ms", "j_per_tok", "output_tok_s_per_gpu")


def header(arms: Sequence[ComparedArm], runs: Sequence[RunRecord]) -> Header:
    """What was compared, where and when.

    Args:
        runs: of the arms, in the order in which they were given.
    """
    engines = [" ".join(filter(None, (arm.engine, arm.engine_version))) for arm in arms]
    gpus = [f"{arm.gpus} x {arm.gpu}" if arm.gpu and (arm.gpus or 0) > 1 else arm.gpu for arm in arms]
    first = next(iter(runs), None)
    return Header(
        models=_distinct([arm.model for arm in arms]),
        gpus=_distinct(gpus),
        engines=_distinct(engines),
        started=first.started if first else None,
        run_id=first.run_id if first else None,
        random_weights=any(arm.random_weights for arm in arms),
        emulated=any(arm.emulated for arm in arms),
    )


def _distinct(names: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, names)))


def with_headlines(pairs: Sequence[Pair], arms: Mapping[str, ComparedArm], rules: Rules) -> list[Pair]:
    """Pairs, which have their verdicts, with headlines. A figure that says nothing of a pair is left out."""
    judged = {metric: _verdicts(pairs, metric, rules) for metric in _METRICS}
    return [
        # an arm measured a second time pays nothing against itself
        replace(pair, headlines=tuple(replace(line, verdict=None) if pair.is_repeat else line for line in headlines))
        for pair in pairs
        for headlines in [tuple(_headlines(pair, arms, rules, judged))]
    ]


def _verdicts(pairs: Sequence[Pair], metric: str, rules: Rules) -> dict[tuple[str, str], Verdict]:
    """The verdict on a figure at every shape of every pair, as one family."""
    ratios = {
        (pair.other, shape.name): ratio
        for pair in pairs
        if not pair.is_repeat
        for shape in pair.shapes
        if (ratio := getattr(shape.speed, metric)) and shape.verdict is not Verdict.NOT_COMPARABLE
    }
    return dict(zip(ratios, verdict.of_family(list(ratios.values()), rules), strict=True))


def _headlines(
    pair: Pair,
    arms: Mapping[str, ComparedArm],
    rules: Rules,
    judged: Mapping[str, Mapping[tuple[str, str], Verdict]],
) -> Iterator[Headline]:
    if pair.verdict in (Verdict.NOT_COMPARABLE, Verdict.BROKEN):
        return
    reference, candidate = arms[pair.reference], arms[pair.other]
    timed = [
        shape for shape in pair.shapes if shape.speed.deciding(rules) and not (reference.emulated or candidate.emulated)
    ]
    shape = deciding([shape for shape in timed if shape.verdict is not Verdict.NOT_COMPARABLE], rules)
    if shape is not None:
        verdicts = {metric: by_shape.get((pair.other, shape.name)) for metric, by_shape in judged.items()}
        yield from _of_time(shape, (reference, candidate), rules, verdicts)
        yield from _secondary(HeadlineFigure.TTFT_MS, shape, verdicts)
    yield from _quality(pair, reference, candidate)
    is_measured = all(arm.speed or arm.token_ppl for arm in (reference, candidate))
    if (
        is_measured
        and reference.weights_gib
        and candidate.weights_gib
        and not (reference.emulated or candidate.emulated)
    ):
        ratio = reference.weights_gib / candidate.weights_gib
        yield Headline(HeadlineFigure.MEMORY_GIB, None, reference.weights_gib, candidate.weights_gib, ratio)
    if shape is not None:
        yield from _secondary(HeadlineFigure.J_PER_TOK, shape, verdicts)
    yield from _served(pair)


def _served(pair: Pair) -> Iterator[Headline]:
    """The users in time, and the throughput at the point with the most users."""
    serving = pair.serving
    if serving is None or serving.verdict is Verdict.NOT_COMPARABLE:
        return
    users = serving.users
    if users is not None and users.ratio is not None:
        ratio = users.ratio
        sides = users.reference, users.other
        yield Headline(HeadlineFigure.USERS_IN_TIME, None, *sides, ratio.value, ratio.low, ratio.high)
    closed = [point for point in serving.points if point.point.concurrency and point.ratios.output_tok_s]
    for point in closed[-1:]:
        served = point.ratios.output_tok_s
        figures = point.figures.get("output_tok_s_per_gpu") or point.figures.get("output_tok_s")
        if served is not None and figures is not None:
            reference, other = (side.median if side else None for side in (figures.reference, figures.other))
            ends = served.value, served.low, served.high
            yield Headline(
                HeadlineFigure.SERVED_TOK_S, point.name, reference, other, *ends, verdict=point.verdict.value
            )


def _of_time(
    shape: ShapeComparison,
    sides: tuple[ComparedArm, ComparedArm],
    rules: Rules,
    verdicts: Mapping[str, Verdict | None],
) -> Iterator[Headline]:
    """The time that decides, and the tokens that it comes to on each GPU."""
    metric = TIME_OF[rules.decide_on]
    is_per_gpu = shape.speed.decided_by(rules) != metric
    ratio: Ratio | None = getattr(shape.speed, metric)
    assert ratio is not None
    judged = verdicts[metric] if is_per_gpu else shape.verdict
    yield _of_ratio(HeadlineFigure.SPEED_UP, shape, _sides(shape, metric), ratio, judged)
    rates = [arm.speed.get(shape.name, {}).get("output_tok_s") for arm in sides]
    whole = shape.speed.e2e_ms
    if rates[0] and rates[1] and whole:
        gpus = [arm.gpus or 1 for arm in sides]
        per_gpu = (rates[0].median / gpus[0], rates[1].median / gpus[1])
        ratio = shape.speed.output_tok_s_per_gpu or whole
        alone = verdicts["output_tok_s_per_gpu" if shape.speed.output_tok_s_per_gpu else "e2e_ms"]
        judged = shape.verdict if ratio is shape.speed.deciding(rules) else alone
        yield _of_ratio(HeadlineFigure.OUTPUT_TOK_S_PER_GPU, shape, per_gpu, ratio, judged)


def _secondary(
    figure: HeadlineFigure, shape: ShapeComparison, verdicts: Mapping[str, Verdict | None]
) -> Iterator[Headline]:
    metric = figure.value
    ratio: Ratio | None = getattr(shape.speed, metric)
    if ratio is not None:
        yield _of_ratio(figure, shape, _sides(shape, metric), ratio, verdicts[metric])


def _of_ratio(
    figure: HeadlineFigure,
    shape: ShapeComparison,
    sides: tuple[float | None, float | None],
    ratio: Ratio,
    judged: Verdict | None,
) -> Headline:
    word = judged.value if judged else None
    return Headline(figure, shape.name, *sides, ratio.value, ratio.low, ratio.high, word)


def _sides(shape: ShapeComparison, metric: str) -> tuple[float | None, float | None]:
    sides = shape.figures.get(metric)
    if sides is None:
        return None, None
    return sides.reference.median if sides.reference else None, sides.other.median if sides.other else None


def _quality(pair: Pair, reference: ComparedArm, candidate: ComparedArm) -> Iterator[Headline]:
    """The change of perplexity. Scores of random weights say nothing."""
    quality = pair.quality
    if quality is None or quality.random_weights or quality.ppl_change is None:
        return
    ln_ratio = quality.ln_ppl_ratio
    yield Headline(
        HeadlineFigure.QUALITY,
        shape=None,
        reference=reference.token_ppl,
        value=candidate.token_ppl,
        ratio=1 + quality.ppl_change,
        low=math.exp(ln_ratio.low) if ln_ratio else None,
        high=math.exp(ln_ratio.high) if ln_ratio else None,
        verdict=quality.verdict.value,
    )
