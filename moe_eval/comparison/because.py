"""Why an arm is as fast as it is, by the kernels of the shape that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_eval.comparison import explained
from moe_eval.comparison.ratio_wording import ratio_text
from moe_eval.comparison.speed_wording import place
from moe_eval.comparison.wording import capitalised
from moe_eval.records.comparison import Pair
from moe_eval.records.shape_comparison import PhaseChange, ShapeComparison
from moe_eval.records.verdicts import Rules, Verdict

# what a lower precision adds to a step, in a reader's words
_COSTS = {"quant_dequant": "quantisation", "routing_permute": "permutation"}
_LEAST_MS = 0.005  # less is not worth a word


def because(pair: Pair, shapes: Sequence[ShapeComparison], rules: Rules) -> str:
    """The reason in whole sentences: of a decode step, and of prefill where it decides or is slower.

    Args:
        shapes: of the pair, timed on both sides, by size, with their verdicts.

    Returns:
        Why traces are not compared where that is so. Empty where no shape was traced on both sides.
    """
    comparable = [shape for shape in shapes if shape.verdict is not Verdict.NOT_COMPARABLE]
    shape, decisive = deciding([shape for shape in comparable if shape.kernels], rules), deciding(comparable, rules)
    if shape is None or decisive is None:
        return next((row.no_kernels for row in comparable if row.no_kernels), "")
    where = capitalised(place(shape, shapes))
    sentences = _of_phase(pair, shape, "decode", where, rules)
    if _is_prefill_worth_a_word(shape):
        sentences += _of_phase(pair, shape, "prefill", where, rules)
    if sentences and shape is not decisive:
        sentences.insert(0, f"Not both arms were traced {place(decisive, shapes)}, which decides.")
    return " ".join(sentences)


def deciding(shapes: Sequence[ShapeComparison], rules: Rules) -> ShapeComparison | None:
    """The shape that decides a verdict, by the interval of the ratio of the deciding time.

    The slowest of those whose interval lies below 1, else the one that gains the most of those whose interval lies
    above 1, else the smallest batch. None where there is no shape.
    """
    ratios = [(shape, ratio) for shape in shapes if (ratio := shape.speed.deciding(rules))]
    slower = [(ratio.value, shape) for shape, ratio in ratios if ratio.high is not None and ratio.high < 1]
    faster = [(ratio.value, shape) for shape, ratio in ratios if ratio.low is not None and ratio.low > 1]
    if slower:
        return min(slower, key=lambda entry: entry[0])[1]
    if faster:
        return max(faster, key=lambda entry: entry[0])[1]
    return min(shapes, key=lambda shape: math.inf if shape.batch_size is None else shape.batch_size, default=None)


def _is_prefill_worth_a_word(shape: ShapeComparison) -> bool:
    """Whether the first token comes later beyond its interval, or has more than half of the change of the whole."""
    ttft = shape.speed.ttft_ms
    if ttft is not None and (ttft.value if ttft.high is None else ttft.high) < 1:
        return True
    first_ms, whole_ms = (_change_ms(shape, metric) for metric in ("ttft_ms", "e2e_ms"))
    return first_ms is not None and whole_ms is not None and abs(first_ms) > abs(whole_ms) / 2


def _change_ms(shape: ShapeComparison, metric: str) -> float | None:
    sides = shape.figures.get(metric)
    return sides.other.median - sides.reference.median if sides and sides.reference and sides.other else None


def _of_phase(pair: Pair, shape: ShapeComparison, phase: str, where: str, rules: Rules) -> list[str]:
    change = (shape.kernels or {}).get(phase)
    if change is None:
        return []
    if explained.explains(change) is False:
        return [
            f"{where} the kernels do not explain the {phase}: {_predictions(change)} and {change.measured_ratio:.2f}x "
            "was measured.",
            *filter(None, [explained.cause(change, (pair.reference, pair.other))]),
        ]
    experts = change.categories.get("expert_gemm")
    step_ms = change.step_ms[0] if change.step_ms else sum(part.before_ms for part in change.categories.values())
    if experts is None or not step_ms:
        return []
    gained_ms = -experts.change_ms
    sentences = [
        f"{where} the expert GEMMs are {100 * experts.before_ms / step_ms:.0f} % of a {phase} step of {pair.reference} "
        f"({step_ms:.2f} ms).",
        f"Those of {pair.other} take {abs(gained_ms):.2f} ms {'less' if gained_ms >= 0 else 'more'}.",
        *_taken_back(change, gained_ms),
    ]
    if change.predicted_ratio_busy is not None and change.predicted_ratio_step is not None:
        sentences.append(
            f"The traced step is {change.predicted_ratio_step:.2f}x as fast ({change.predicted_ratio_busy:.2f}x by "
            "kernels alone)."
        )
        ratio = explained.by_phase(shape.speed)[phase]
        sentences += [f"Without a profiler it is {ratio_text(ratio, rules)}."] if ratio else []
    return sentences


def _predictions(change: PhaseChange) -> str:
    """What kernels, and steps where these differ, predict, such as "they predict 1.46x, the traced steps 1.25x,"."""
    busy, step = (
        None if ratio is None else f"{ratio:.2f}x"
        for ratio in (change.predicted_ratio_busy, change.predicted_ratio_step)
    )
    if busy is None:
        return f"the traced steps predict {step}"
    return f"they predict {busy}" if step in (None, busy) else f"they predict {busy}, the traced steps {step},"


def _taken_back(change: PhaseChange, gained_ms: float) -> list[str]:
    """What other kernels take back of the gain, or add to the loss, and what they save."""
    changes = {name: part.change_ms for name, part in change.categories.items()}
    parts = {text: changes.get(name, 0.0) for name, text in _COSTS.items()}
    if change.waiting_change_ms is not None:
        parts["gaps between kernels"] = change.waiting_change_ms
    named_ms = sum(changes.get(name, 0.0) for name in ("expert_gemm", *_COSTS))
    parts["all other kernels"] = change.kernel_change_ms - named_ms
    parts = {name: ms for name, ms in parts.items() if abs(ms) >= _LEAST_MS}
    costs = [
        f"{name} {ms:.2f} ms" + (f" ({100 * ms / gained_ms:.0f} %)" if gained_ms > 0 else "")
        for name, ms in parts.items()
        if ms > 0
    ]
    savings = [f"{name} {-ms:.2f} ms" for name, ms in parts.items() if ms < 0]
    sentences = [f"{'Taken back' if gained_ms > 0 else 'Added'}: {', '.join(costs)}."] if costs else []
    return [*sentences, *([f"Saved: {', '.join(savings)}."] if savings else [])]
