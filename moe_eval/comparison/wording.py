"""The sentences of a verdict. Every number in them stands with its interval, where it has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_eval.comparison import ratios

_Dict = Mapping[str, Any]
# what a lower precision adds to a step, in a reader's words
_COSTS = {"quant_dequant": "quantisation", "routing_permute": "permutation"}


def change(quality: _Dict | None) -> str:
    """What precision costs, such as "+0.40 % perplexity (+0.12 to +0.68)"; empty where nobody can tell."""
    if quality is None or quality["random_weights"]:
        return ""
    text = f"{100 * quality['ppl_change']:+.2f} % perplexity"
    ratio = quality["ln_ppl_ratio"]
    flag = f", {quality['flag']}" if quality["flag"] else ""
    if ratio is None:
        return f"{text} (no interval{flag})"
    low, high = (100 * math.expm1(ratio[name]) for name in ("low", "high"))
    return f"{text} ({low:+.2f} to {high:+.2f}{flag})"


def apart(found: _Dict, differs: Sequence[str]) -> str:
    """Two arms that cannot be compared."""
    return f"{found['other']} cannot be compared with {found['reference']}: {'; '.join(differs)}"


def untimed(found: _Dict, arms: Mapping[str, _Dict], emulated: Sequence[str]) -> tuple[str, str]:
    """Where there is no speed to tell: the sentence, and what would settle it."""
    cost = change(found["quality"])
    if emulated:
        who = " and ".join(emulated)
        why = f"{who} {'are' if len(emulated) > 1 else 'is'} emulated, which says nothing about speed"
        settled = f"an engine that runs {who} natively tells its speed"
    else:
        failed = broken(found, arms).removeprefix("; ")
        why = failed or f"speed was not measured of both {found['reference']} and {found['other']}"
        settled = "a run in which every arm finishes" if failed else "moe-eval perf with both arms"
    if not cost:
        return f"inconclusive, as nothing is known of {found['other']} against {found['reference']}: {why}", settled
    return f"inconclusive, quality only: {cost}; {why}", settled


def broken(found: _Dict, arms: Mapping[str, _Dict]) -> str:
    """Which arm did not finish, and why; empty where both did."""
    parts = []
    for name in (found["reference"], found["other"]):
        arm = arms[name]
        if arm["status"] != "finished":
            parts.append(f"; {unfinished({**arm, 'name': name})}")
    return "".join(parts)


def unfinished(arm: _Dict) -> str:
    """What became of an arm that did not finish, such as "fp8 failed (out of memory)"."""
    said = {"skipped": "was left out", "running": "did not finish"}.get(arm["status"], arm["status"])
    return f"{arm['name']} {said}" + (f" ({str(arm['error']).rstrip('.')})" if arm["error"] else "")


def timed(found: _Dict, rows: Sequence[_Dict], decided: str) -> str:
    """The verdict by batch size, with what it costs in quality.

    Args:
        rows: the shapes that were timed on both sides, by size, with their verdicts.
        decided: the pair's verdict.
    """
    other, schedule = found["other"], found["schedule"]
    paying = [row for row in rows if row["verdict"] == "pays"]
    rest = [_told(row, rows, schedule) for row in rows if row["verdict"] != "pays"]
    cost = change(found["quality"])
    unknown = "what it costs in quality was not measured"
    if found["quality"] and found["quality"]["random_weights"]:
        unknown = "what it costs in quality cannot be said of random weights"
    if not paying:
        head = "does not pay" if decided == "does not pay" else "may pay or not"
        return "; ".join([f"{other} {head}: {rest[0]}", *rest[1:], f"it comes at {cost}" if cost else unknown])
    head = "pays" if decided == "pays" else "does not pay at every batch size: it pays"
    text = f"{other} {head} {_where_it_pays(paying, rows, schedule)}"
    return "; ".join([f"{text} at {cost}" if cost else text, *rest, *([] if cost else [unknown])])


def _where_it_pays(paying: Sequence[_Dict], rows: Sequence[_Dict], schedule: _Dict | None) -> str:
    first, most = paying[0], max(paying, key=lambda row: row["speed"]["e2e_ms"]["value"])
    told = ratios.told(first["speed"]["e2e_ms"], schedule)
    at_end = list(rows[len(rows) - len(paying) :]) == list(paying)
    if len(paying) == 1 and not (at_end and len(rows) > 1):
        return f"{place(first, rows)} ({told})"
    if at_end and _one_size(rows):
        if most is not first:
            told += f"; {ratios.told(most['speed']['e2e_ms'], schedule)} {place(most, rows)}"
        everywhere = "at every batch size measured, " if len(paying) == len(rows) else ""
        return f"{everywhere}from batch {first['batch_size']} ({told})"
    return ", ".join(f"{place(row, rows)} ({ratios.told(row['speed']['e2e_ms'], schedule)})" for row in paying)


def _told(row: _Dict, rows: Sequence[_Dict], schedule: _Dict | None) -> str:
    """One shape that does not pay, as "at batch 1 it does not (1.01x, 0.99 to 1.03: the interval holds 1)"."""
    ratio = row["speed"]["e2e_ms"]
    if row["verdict"] == "not comparable":
        return f"{place(row, rows)} there is no verdict ({row['reason']})"
    number = ratios.told(ratio, schedule)
    if row["verdict"] == "inconclusive":
        return f"{place(row, rows)} it is open ({number})"
    if ratios.slower(row, schedule):
        return f"{place(row, rows)} it is slower ({number})"
    return f"{place(row, rows)} it does not ({number}: {ratios.holds_one(ratio, schedule)})"


def again(found: _Dict, rows: Sequence[_Dict]) -> str:
    """An arm against itself: what has to come out as 1."""
    schedule = found["schedule"]
    listed = ", ".join(f"{place(row, rows)} {ratios.told(row['speed']['e2e_ms'], schedule)}" for row in rows)
    off = []
    for row in rows:
        low, high = ratios.bounds(row["speed"]["e2e_ms"], schedule)
        if not low <= 1 <= high:
            off.append(place(row, rows))
    why = "something disturbs the measurement"
    if schedule is not None and not schedule["one_run"]:
        why = f"something changed between the two runs, or {why.replace('disturbs', 'disturbed')}"
    end = f"not 1 {' and '.join(off)}, so {why}" if off else "1 within the intervals"
    return f"{found['other']} is {found['reference']} measured a second time: {listed}; {end}"


def _one_size(rows: Sequence[_Dict]) -> bool:
    return len({row["batch_size"] for row in rows}) == len(rows)


def place(row: _Dict, rows: Sequence[_Dict]) -> str:
    """Where a row is: its batch size where that names it, else its shape."""
    return f"at batch {row['batch_size']}" if _one_size(rows) else f"at {row['name']}"


def because(found: _Dict, rows: Sequence[_Dict]) -> str:
    """Why, by the kernels of a decode step: at the smallest batch that does not pay, else at the largest that does.

    Empty where no such shape was traced on both sides.
    """
    traced = [row for row in rows if (row["kernels"] or {}).get("decode") and row["verdict"] != "not comparable"]
    rest = [row for row in traced if row["verdict"] != "pays"]
    if not traced:
        return ""
    row = rest[0] if rest else traced[-1]
    decode = row["kernels"]["decode"]
    experts = decode["categories"].get("expert_gemm")
    before = decode["step_ms"][0] if decode["step_ms"] else sum(
        each["before_ms"] for each in decode["categories"].values()
    )  # fmt: skip
    if experts is None or not before:
        return ""
    gained = -experts["change_ms"]
    share = f"{100 * experts['before_ms'] / before:.0f} %"
    text = (
        f"{place(row, rows)} the expert GEMMs are {share} of a decode step of {found['reference']} ({before:.2f} ms), "
        f"and those of {found['other']} take {abs(gained):.2f} ms {'less' if gained >= 0 else 'more'}"
    )
    return text + _taken(decode, gained) + _predicted(row, found["schedule"])


def _taken(decode: _Dict, gained: float) -> str:
    """What the rest of a step takes back of the gain, or adds to the loss."""
    parts = {words: decode["categories"].get(key, {}).get("change_ms", 0.0) for key, words in _COSTS.items()}
    if decode["waiting_change_ms"] is not None:
        parts["gaps between kernels"] = decode["waiting_change_ms"]
    known = sum(decode["categories"].get(key, {}).get("change_ms", 0.0) for key in ("expert_gemm", *_COSTS))
    parts["all other kernels"] = decode["kernel_change_ms"] - known
    named = [(name, ms) for name, ms in parts.items() if abs(ms) >= 0.005]

    def told(name: str, ms: float) -> str:
        return f"{name} {ms:.2f} ms" + (f" ({100 * ms / gained:.0f} %)" if gained > 0 else "")

    costs = ", ".join(told(name, ms) for name, ms in named if ms > 0)
    gains = ", ".join(f"{name} {-ms:.2f} ms" for name, ms in named if ms < 0)
    taken = f"; of that is taken back by {costs}" if gained > 0 else f"; more is taken by {costs}"
    return (taken if costs else "") + (f"; less is taken by {gains}" if gains else "")


def _predicted(row: _Dict, schedule: _Dict | None) -> str:
    if row["predicted"] is None or row["predicted"]["step"] is None:
        return ""
    text = f"; the traced step is {row['predicted']['step']:.2f}x as fast ({row['predicted']['busy']:.2f}x by kernels)"
    tpot = row["speed"]["tpot_ms"]
    return text + (f", measured without a profiler {ratios.told(tpot, schedule)}" if tpot else "")
