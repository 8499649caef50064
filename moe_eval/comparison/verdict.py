"""What a comparison comes to: rules over its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_eval.comparison import ratios
from moe_eval.comparison import wording as words
from moe_eval.stats import CONFIDENCE

PAYS, DOES_NOT, OPEN, APART = VERDICTS = ("pays", "does not pay", "inconclusive", "not comparable")
# an interval that holds 1 and stays within this factor of it says that there is nothing to gain
_MARGIN = 1.05
_MOST_BLOCKS = 64  # more than anybody waits for
_Dict = Mapping[str, Any]


def shape(row: _Dict, schedule: _Dict | None) -> tuple[str, str]:
    """The verdict on one shape and its reason.

    It pays where the interval of the e2e ratio lies above 1; it does not where the interval lies below 1, or holds it
    and stays within 5 % of it, so that nothing worth having hides in it; else it is inconclusive. The interval is at
    least as wide as ratios.allowance; where it does not hold drift (ratios.loose), one with 1 in it is inconclusive.
    Arms whose tokens spread over different numbers of experts are not comparable.

    Args:
        row: a shape of compare.make; `schedule` is its pair's.
    """
    ratio = row["speed"]["e2e_ms"]
    if ratio is None:
        return OPEN, "not timed on both sides"
    if row["fair"] is False:
        return APART, str(row["fair_reason"])
    low, high = ratios.bounds(ratio, schedule)
    loose = ratios.loose(ratio, schedule)
    what = ratios.basis(ratio, schedule)
    if low > 1:
        found, reason = PAYS, f"{what} lies above 1"
    elif high < 1:
        found, reason = DOES_NOT, f"{what} lies below 1"
    elif loose:
        found, reason = OPEN, ratios.holds_one(ratio, schedule)
    elif low >= 1 / _MARGIN and high <= _MARGIN:
        found, reason = DOES_NOT, f"{ratios.holds_one(ratio, schedule)} and stays within 5 % of it"
    else:
        found, reason = OPEN, f"{ratios.holds_one(ratio, schedule)} and reaches further than 5 % from it"
    if loose:
        reason += f"; {loose}"
    if row["fair"] is None:
        reason += f"; whether both went through as many experts was not checked ({row['fair_reason']})"
    return found, reason


def pair(found: _Dict, arms: Mapping[str, _Dict]) -> dict[str, Any]:
    """The verdict on two arms.

    It pays where at least one shape pays and none is slower beyond its interval; it does not where one is slower, or
    where no shape pays and none is open. Quality is told and decides nothing: what it may cost is for the reader, or
    for a gate. An emulated arm has no speed, so there the verdict is inconclusive.

    Args:
        found: a pair of compare.make without what this adds; `arms` by name, as there.

    Returns:
        `verdict` (one of VERDICTS); `sentence`; `because`, by the kernels of a decode step, empty where they were not
        traced; `settled_by`, None where nothing is open; `differs`, with reasons that all shapes share; `shapes` with
        their `verdict` and `reason`.
    """
    schedule = found["schedule"]
    differs = list(found["differs"])
    shapes = []
    for row in found["shapes"]:
        decided, reason = (APART, "; ".join(differs)) if differs else shape(row, schedule)
        shapes.append({**row, "verdict": decided, "reason": reason})
    timed = [row for row in shapes if row["speed"]["e2e_ms"] is not None]
    emulated = [name for name in (found["reference"], found["other"]) if arms[name]["emulated"]]
    if timed and not emulated and all(row["verdict"] == APART for row in timed):
        differs = differs or list(dict.fromkeys(row["reason"] for row in timed))
    settled_by, because = None, ""
    if differs:
        decided, sentence = APART, words.apart(found, differs)
    elif emulated or not timed:
        decided = OPEN
        sentence, settled_by = words.untimed(found, arms, emulated)
    elif found["again"]:
        off = any(not _holds_one(row, schedule) for row in timed)
        decided, sentence = (OPEN if off else _decided(timed, schedule)), words.again(found, timed)
        settled_by = "more blocks, with nothing else on the machine" if off else _settled_by(timed, schedule)
    else:
        decided = _decided(timed, schedule)
        sentence = words.timed(found, timed, decided) + words.broken(found, arms)
        because = words.because(found, timed)
        settled_by = _settled_by(timed, schedule)
    return {
        **{"verdict": decided, "sentence": sentence, "because": because, "settled_by": settled_by},
        **{"differs": differs, "shapes": shapes},
    }


def _decided(rows: Sequence[_Dict], schedule: _Dict | None) -> str:
    verdicts = {row["verdict"] for row in rows}
    if any(ratios.slower(row, schedule) for row in rows):
        return DOES_NOT
    if PAYS in verdicts:
        return PAYS
    return OPEN if OPEN in verdicts else DOES_NOT


def _holds_one(row: _Dict, schedule: _Dict | None) -> bool:
    low, high = ratios.bounds(row["speed"]["e2e_ms"], schedule)
    return low <= 1 <= high


def _settled_by(rows: Sequence[_Dict], schedule: _Dict | None) -> str | None:
    """What would decide the shapes that are open; None where none is."""
    still = [row["speed"]["e2e_ms"] for row in rows if row["verdict"] == OPEN]
    if not still:
        return None
    if schedule is None or not schedule["one_run"]:
        return "one run of both arms, so that they take turns"
    if schedule["mode"] == "sequential":
        return "more blocks: give --blocks 4"
    need = max(map(_blocks, still))
    if need > _MOST_BLOCKS:
        return f"more than {_MOST_BLOCKS} blocks would: look for what disturbs the measurement first"
    if schedule["mode"] == "interleaved":
        return f"more iterations: give --num_iterations {need * schedule['per_block']}"
    return f"more blocks: give --blocks {need}"


def _blocks(ratio: _Dict) -> int:
    """How many blocks make the interval narrow enough, if they scatter as those there are; at least twice as many.

    Its half width is t(n - 1) s / sqrt(n) with Student's t, all in logarithms. It has to get below the distance from 1,
    or so small that the interval fits into the margin, whichever comes first.
    """
    from scipy.stats import t

    now = ratio["blocks"]
    if ratio["low"] is None or now < 2:
        return 4

    def reach(blocks: int) -> float:
        return float(t.ppf(0.5 + CONFIDENCE / 2, blocks - 1)) / math.sqrt(blocks)

    spread = math.log(ratio["high"] / ratio["low"]) / 2 / reach(now)
    away = abs(math.log(ratio["value"]))
    enough = max(away, math.log(_MARGIN) - away)
    return next((n for n in range(2 * now, _MOST_BLOCKS + 1) if spread * reach(n) < enough), _MOST_BLOCKS + 1)
