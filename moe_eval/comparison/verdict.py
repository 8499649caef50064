"""What a comparison comes to: rules over its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_eval.comparison import allowances, wording
from moe_eval.comparison.because import because
from moe_eval.records.comparison import ComparedArm, Pair, PairSchedule, Ratio, ShapeComparison, Verdict
from moe_eval.stats import CONFIDENCE

# an interval that holds 1 and stays within this factor of it says that there is nothing to gain
_MARGIN = 1.05
_MOST_BLOCKS = 64  # more than anybody waits for


def of_shape(shape: ShapeComparison, schedule: PairSchedule | None) -> tuple[Verdict, str]:
    """The verdict on one shape and its reason.

    It pays where the interval of the e2e ratio lies above 1. It does not where the interval lies below 1, or holds it
    and stays within 5 % of it: then there is no gain worth having. Else it is inconclusive. The interval is at
    least as wide as allowances.allowance. Where it does not hold drift, one with 1 in it is inconclusive. Arms whose
    tokens spread over different numbers of experts are not comparable.
    """
    ratio = shape.speed.e2e_ms
    if ratio is None:
        return Verdict.INCONCLUSIVE, "It was not timed on both sides."
    if shape.fairness.is_fair is False:
        return Verdict.NOT_COMPARABLE, shape.fairness.reason or ""
    verdict, predicate = _by_bounds(ratio, schedule)
    sentences = [wording.bounds_sentence(ratio, schedule, predicate), allowances.drift(ratio, schedule)]
    if shape.fairness.is_fair is None:
        sentences.append(f"Whether both went through as many experts was not checked ({shape.fairness.reason}).")
    return verdict, " ".join(filter(None, sentences))


def _by_bounds(ratio: Ratio, schedule: PairSchedule | None) -> tuple[Verdict, str]:
    """The verdict, and the predicate of its sentence."""
    low, high = allowances.bounds(ratio, schedule)
    if low > 1:
        return Verdict.PAYS, "lies above 1"
    if high < 1:
        return Verdict.DOES_NOT_PAY, "lies below 1"
    if allowances.drift(ratio, schedule):
        return Verdict.INCONCLUSIVE, ""
    if low >= 1 / _MARGIN and high <= _MARGIN:
        return Verdict.DOES_NOT_PAY, " and stays within 5 % of it"
    return Verdict.INCONCLUSIVE, " and reaches further than 5 % from it"


def decide(pair: Pair, arms: Mapping[str, ComparedArm]) -> Pair:
    """A pair with the verdict on it and on its shapes.

    It pays where at least one shape pays and none is slower beyond its interval. It does not where one is slower, or
    where no shape pays and none is open. Quality is told and decides nothing: what it may cost is for the reader, or
    for a gate. An emulated arm has no speed, so there the verdict is inconclusive.
    """
    shapes = []
    for shape in pair.shapes:
        ruling = (Verdict.NOT_COMPARABLE, " ".join(pair.differs)) if pair.differs else of_shape(shape, pair.schedule)
        shapes.append(replace(shape, verdict=ruling[0], reason=ruling[1]))
    timed = [shape for shape in shapes if shape.speed.e2e_ms is not None]
    emulated = [name for name in (pair.reference, pair.other) if arms[name].emulated]
    differs = list(pair.differs)
    if timed and not emulated and all(shape.verdict is Verdict.NOT_COMPARABLE for shape in timed):
        differs = differs or list(dict.fromkeys(shape.reason for shape in timed))
    reason, settled_by = "", None
    if differs:
        verdict = Verdict.NOT_COMPARABLE
        sentence = " ".join([f"{pair.other} cannot be compared with {pair.reference}.", *differs])
    elif emulated or not timed:
        verdict = Verdict.INCONCLUSIVE
        sentence, settled_by = wording.without_speed(pair, arms, emulated)
    elif pair.is_repeat:
        ratios = [shape.speed.e2e_ms for shape in timed if shape.speed.e2e_ms]
        sentence = wording.repeat(pair, timed)
        if all(allowances.holds_one(ratio, pair.schedule) for ratio in ratios):
            verdict, settled_by = _of_shapes(timed, pair.schedule), _settled_by(timed, pair.schedule)
        else:
            verdict = Verdict.INCONCLUSIVE
            settled_by = "Measure more blocks, with nothing else on the machine."
    else:
        verdict = _of_shapes(timed, pair.schedule)
        sentence = " ".join([wording.with_speed(pair, timed, verdict), *wording.unfinished_arms(pair, arms)])
        reason = because(pair, timed)
        settled_by = _settled_by(timed, pair.schedule)
    pair = replace(pair, verdict=verdict, sentence=sentence, because=reason, settled_by=settled_by)
    return replace(pair, differs=tuple(differs), shapes=tuple(shapes))


def _of_shapes(shapes: Sequence[ShapeComparison], schedule: PairSchedule | None) -> Verdict:
    verdicts = {shape.verdict for shape in shapes}
    if any(allowances.is_slower(shape, schedule) for shape in shapes):
        return Verdict.DOES_NOT_PAY
    if Verdict.PAYS in verdicts:
        return Verdict.PAYS
    return Verdict.INCONCLUSIVE if Verdict.INCONCLUSIVE in verdicts else Verdict.DOES_NOT_PAY


def _settled_by(shapes: Sequence[ShapeComparison], schedule: PairSchedule | None) -> str | None:
    """What would decide the shapes that are open. None where none is."""
    ratios = [shape.speed.e2e_ms for shape in shapes if shape.verdict is Verdict.INCONCLUSIVE]
    if not ratios:
        return None
    if schedule is None or not schedule.one_run:
        return "Measure both arms in one run, so that they take turns."
    if schedule.mode == "sequential":
        return "Give --blocks 4 for more blocks."
    blocks = max(_blocks(ratio) for ratio in ratios if ratio)
    if blocks > _MOST_BLOCKS:
        return f"It takes more than {_MOST_BLOCKS} blocks. Look for what disturbs the measurement first."
    if schedule.mode == "interleaved":
        return f"Give --num_iterations {blocks * schedule.per_block} for more iterations."
    return f"Give --blocks {blocks} for more blocks."


def _blocks(ratio: Ratio) -> int:
    """How many blocks make the interval narrow enough, if they scatter as those there are. At least twice as many.

    Its half width is t(n - 1) s / sqrt(n) with Student's t, all in logarithms. It has to get below the distance from 1,
    or so small that the interval fits into the margin, whichever comes first.
    """
    from scipy.stats import t

    if ratio.low is None or ratio.high is None or ratio.blocks < 2:
        return 4

    def reach(blocks: int) -> float:
        return float(t.ppf(0.5 + CONFIDENCE / 2, blocks - 1)) / math.sqrt(blocks)

    spread = math.log(ratio.high / ratio.low) / 2 / reach(ratio.blocks)
    away = abs(math.log(ratio.value))
    enough = max(away, math.log(_MARGIN) - away)
    counts = range(2 * ratio.blocks, _MOST_BLOCKS + 1)
    return next((count for count in counts if spread * reach(count) < enough), _MOST_BLOCKS + 1)
