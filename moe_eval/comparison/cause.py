"""Why an arm is as fast as it is, by the kernels of a decode step."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.comparison import wording
from moe_eval.records.comparison import Pair, PairSchedule, PhaseChange, ShapeComparison, Verdict

# what a lower precision adds to a step, in a reader's words
_COSTS = {"quant_dequant": "quantisation", "routing_permute": "permutation"}
_LEAST_MS = 0.005  # less is not worth a word


def because(pair: Pair, shapes: Sequence[ShapeComparison]) -> str:
    """The sentences for the smallest batch that does not pay, else for the largest that does.

    Empty where no such shape was traced on both sides.

    Args:
        shapes: those that were timed on both sides, by size, with their verdicts.
    """
    traced = [
        (shape, shape.kernels["decode"])
        for shape in shapes
        if shape.kernels and "decode" in shape.kernels and shape.verdict is not Verdict.NOT_COMPARABLE
    ]
    if not traced:
        return ""
    shape, decode = next((entry for entry in traced if entry[0].verdict is not Verdict.PAYS), traced[-1])
    experts = decode.categories.get("expert_gemm")
    step_ms = decode.step_ms[0] if decode.step_ms else sum(change.before_ms for change in decode.categories.values())
    if experts is None or not step_ms:
        return ""
    gained_ms = -experts.change_ms
    where = wording.capitalised(wording.place(shape, shapes))
    sentences = [
        f"{where} the expert GEMMs are {100 * experts.before_ms / step_ms:.0f} % of a decode step of {pair.reference} "
        f"({step_ms:.2f} ms).",
        f"Those of {pair.other} take {abs(gained_ms):.2f} ms {'less' if gained_ms >= 0 else 'more'}.",
    ]
    return " ".join([*sentences, *_taken_back(decode, gained_ms), *_prediction(shape, pair.schedule)])


def _taken_back(decode: PhaseChange, gained_ms: float) -> list[str]:
    """What other kernels take back of the gain, or add to the loss, and what they save."""
    changes = {name: change.change_ms for name, change in decode.categories.items()}
    parts = {text: changes.get(name, 0.0) for name, text in _COSTS.items()}
    if decode.waiting_change_ms is not None:
        parts["gaps between kernels"] = decode.waiting_change_ms
    named_ms = sum(changes.get(name, 0.0) for name in ("expert_gemm", *_COSTS))
    parts["all other kernels"] = decode.kernel_change_ms - named_ms
    parts = {name: ms for name, ms in parts.items() if abs(ms) >= _LEAST_MS}
    costs = [
        f"{name} {ms:.2f} ms" + (f" ({100 * ms / gained_ms:.0f} %)" if gained_ms > 0 else "")
        for name, ms in parts.items()
        if ms > 0
    ]
    savings = [f"{name} {-ms:.2f} ms" for name, ms in parts.items() if ms < 0]
    sentences = [f"{'Taken back' if gained_ms > 0 else 'Added'}: {', '.join(costs)}."] if costs else []
    return [*sentences, *([f"Saved: {', '.join(savings)}."] if savings else [])]


def _prediction(shape: ShapeComparison, schedule: PairSchedule | None) -> list[str]:
    if shape.predicted is None or shape.predicted.step is None:
        return []
    traced = f"The traced step is {shape.predicted.step:.2f}x as fast ({shape.predicted.busy:.2f}x by kernels alone)."
    tpot = shape.speed.tpot_ms
    return [traced, *([f"Without a profiler it is {wording.ratio_text(tpot, schedule)}."] if tpot else [])]
