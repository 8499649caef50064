"""The tables of a report, which the page and the Markdown share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    NONE,
    UNITS,
    category,
    comparable,
    digits_of,
    finite,
    named,
    number,
    pair_of,
    plain,
    span,
)

_UNREAD = "not read"
_REMARKS = ("flag", "calibration", "no_interval")  # sentences beside a pair's quality


@dataclass(frozen=True)
class Table:
    """Cells as text, not yet escaped; the first cell of a row names it."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def made(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Table]:
    """The table without columns in which nothing was measured; none at all without rows."""
    found = [tuple(row) for row in rows]
    kept = [at for at in range(len(heads)) if at == 0 or any(row[at] not in (NONE, "") for row in found)]
    if not found or len(kept) < 2:
        return []
    cells = tuple(tuple(row[at] or "-" for at in kept) for row in found)
    return [Table(caption, tuple(heads[at] for at in kept), cells)]


def verdicts(pair: Mapping[str, Any]) -> list[Table]:
    """The verdict of every shape."""
    rows = [
        (named(shape.get("name")), named(shape.get("batch_size")), named(shape.get("input_len")),
         named(shape.get("output_len")), named(shape.get("verdict")),
         plain(shape.get("reason") or "", LONGEST_SENTENCE))
        for shape in pair.get("shapes") or ()
    ]  # fmt: skip
    heads = ("shape", "batch size", "tokens in", "tokens out", "verdict", "reason")
    return made(f"Verdict by shape: {names_of(pair)}", heads, rows)


def timed(pair: Mapping[str, Any]) -> bool:
    """Whether any shape was timed with both arms."""
    medians = [each for shape in pair.get("shapes") or () for each in (shape.get("medians") or {}).values()]
    return any(None not in pair_of(each) for each in medians)


def speed(pair: Mapping[str, Any]) -> list[Table]:
    """Medians of both arms and their ratio, a row for every shape and metric; none where one arm alone was timed."""
    if not timed(pair):
        return []
    one, two = named(pair.get("reference")), named(pair.get("other"))
    rows = []
    for shape in pair.get("shapes") or ():
        for metric, words in METRICS.items():
            medians = pair_of((shape.get("medians") or {}).get(metric))
            ratio = (shape.get("speed") or {}).get(metric) or {}
            if medians == (None, None) and not ratio:
                continue
            both = (shape.get("intervals") or {}).get(metric) or (None, None)
            bounds = [pair_of(each) for each in both]
            digits = digits_of(medians)
            void = shape.get("fair") is False and bool(ratio)
            rows.append((
                named(shape.get("name")), f"{words}, {UNITS[metric]}",
                *(cell for value, edges in zip(medians, bounds, strict=False)
                  for cell in (number(value, digits), bounds_of(edges, digits))),
                "void: not fair" if void else number(ratio.get("value"), 3, unit="x") if ratio else "",
                "" if void or not ratio else span(ratio.get("low"), ratio.get("high"), 3, unit="x"),
                *((number(ratio.get("blocks"), 0), named(ratio.get("source"))) if ratio else ("", "")),
            ))  # fmt: skip
    heads = ("shape", "metric", one, f"{one}: 95 % interval", two, f"{two}: 95 % interval",
             "speed-up", "speed-up: 95 % interval", "blocks", "clock")  # fmt: skip
    return made(f"Speed: {names_of(pair)} (medians)", heads, rows)


def of_speed(pair: Mapping[str, Any]) -> list[Table]:
    """Everything that a report's section on speed has of a pair."""
    return [*speed(pair), *notes(pair), *conditions(pair)]


def conditions(pair: Mapping[str, Any]) -> list[Table]:
    """What has to hold for the ratios to mean anything: routing and clocks."""
    one, two = named(pair.get("reference")), named(pair.get("other"))
    rows = []
    for shape in pair.get("shapes") or ():
        clocks = shape.get("clocks") or {}
        fair = {True: "yes", False: "no"}.get(shape.get("fair"), NONE)
        rows.append((
            named(shape.get("name")), fair, plain(shape.get("fair_reason") or "", LONGEST_SENTENCE),
            *(number(each, 0) for each in pair_of(clocks.get("sm_mhz"))),
            *(_UNREAD if clocks and each is None else number(each, 0) for each in pair_of(clocks.get("slow_samples"))),
        ))  # fmt: skip
    heads = ("shape", "routing is fair", "routing: reason", f"SM clock of {one}, MHz", f"SM clock of {two}, MHz",
             f"slow samples of {one}", f"slow samples of {two}")  # fmt: skip
    return made(f"Fairness and clocks: {names_of(pair)}", heads, rows)


def notes(pair: Mapping[str, Any]) -> list[Table]:
    """What the speed measurement of either arm remarked, a row for every remark."""
    rows = [
        (named(shape.get("name")), named(arm), plain(note, LONGEST_SENTENCE))
        for shape in pair.get("shapes") or ()
        for arm, remarks in (shape.get("notes") or {}).items()
        for note in remarks
    ]
    return made(f"Notes on the measurement: {names_of(pair)}", ("shape", "arm", "note"), rows)


def ceilings(pair: Mapping[str, Any]) -> list[Table]:
    """The most that faster expert GEMMs can give the reference, what the kernels predict, and what was measured."""
    rows = []
    for shape in pair.get("shapes") or ():
        limits, predicted = shape.get("ceiling") or {}, shape.get("predicted") or {}
        for phase in dict.fromkeys([*limits, *(["decode"] if predicted else [])]):
            found, told = limits.get(phase) or {}, predicted if phase == "decode" else {}
            rows.append((
                named(shape.get("name")), plain(phase), number(_percent(found.get("share")), 1, unit=" %"),
                *(number(found.get(key), 3, unit="x") for key in ("busy", "wall")),
                *(number(told.get(key), 3, unit="x") if told else "" for key in ("busy", "step")),
                number(shape.get("measured"), 3, unit="x") if told else "",
            ))  # fmt: skip
    heads = ("shape", "phase", "expert GEMMs' share", "ceiling of busy time", "ceiling of the step",
             "predicted by kernels", "predicted by steps", "measured without profiler")  # fmt: skip
    one = named(pair.get("reference"))
    return made(f"Ceiling of {one} and prediction per step: {names_of(pair)}", heads, rows)


def kernels(pair: Mapping[str, Any], shape: Mapping[str, Any], phase: str) -> list[Table]:
    """Behind the bars and the waterfall: ms per step by category, and the functions that only one arm runs."""
    one, two = named(pair.get("reference")), named(pair.get("other"))
    found = (shape.get("kernels") or {}).get(phase) or {}
    broken = (shape.get("breakdown") or {}).get(phase) or {}
    changes = found.get("categories") or {}
    sides = {name: (each.get("before_ms"), each.get("after_ms")) for name, each in changes.items()}
    sides = sides or {name: pair_of(each) for name, each in broken.items()}
    digits = digits_of(value for each in sides.values() for value in each)
    rows = []
    for name, each in sides.items():
        before, after = finite(each[0]), finite(each[1])
        change = None if before is None or after is None else after - before
        more = changes.get(name) or {}
        launches = (number(more.get(key), 0) for key in ("before_launches", "after_launches"))
        rows.append((category(name), number(before, digits), number(after, digits),
                     number(change, digits, signed=True), *launches))  # fmt: skip
    steps = pair_of(found.get("step_ms"))
    for words, value in waiting(found):
        rows.append((words, "", "", number(value, digits, signed=True), "", ""))
    if None not in steps:
        words = "step" if found.get("step_is") == "wall" else "span of kernels"
        change = steps[1] - steps[0]  # type: ignore[operator]
        rows.append((words, *(number(each, digits) for each in steps), number(change, digits, signed=True), "", ""))
    where = f"{named(shape.get('name'))}, {plain(phase)}"
    heads = ("category", f"{one}, ms per step", f"{two}, ms per step", "change, ms", f"launches of {one}",
             f"launches of {two}")  # fmt: skip
    only = [
        (plain(each.get("name", "")), f"{two} only" if side == "new" else f"{one} only",
         category(each.get("category", "")), number(each.get("ms"), 3), number(each.get("launches"), 0))
        for side in ("new", "vanished") for each in found.get(side) or ()
    ]  # fmt: skip
    return [
        *made(f"Time per step: {names_of(pair)}, {where} (trace, medians)", heads, rows),
        *made(f"Kernels of one arm only: {names_of(pair)}, {where}",
               ("kernel", "runs in", "category", "ms per step", "launches"), only),
    ]  # fmt: skip


def waiting(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What the categories' changes leave of a step's change, in ms; empty where the trace has no times."""
    parts = [
        ("overlap of kernels", finite(found.get("overlap_change_ms")), -1),
        ("waiting", finite(found.get("waiting_change_ms")), 1),
        ("residual", finite(found.get("residual_ms")), 1),
    ]
    return [(words, sign * value) for words, value, sign in parts if value is not None]


def quality(comparison: Mapping[str, Any]) -> list[Table]:
    """Perplexity and divergence of every pair that scored the same windows."""
    rows = []
    for pair in comparable(comparison):
        found = pair.get("quality")
        if not found:
            continue
        ratio, change, same = found.get("ln_ppl_ratio") or {}, found.get("ppl_change"), found.get("same_top1")
        remarks = [plain(found[key], LONGEST_SENTENCE) for key in _REMARKS if found.get(key)]
        rows.append((
            names_of(pair), number(_percent(change), 2, unit=" %", signed=True),
            number(ratio.get("value"), 5, signed=True),
            span(ratio.get("low"), ratio.get("high"), 5, signed=True) if ratio else NONE,
            number(found.get("noise_floor"), 6), number(found.get("kld_mean"), 5), number(found.get("kld_p99"), 5),
            number(_percent(same), 2, unit=" %"), "; ".join(remarks),
        ))  # fmt: skip
    heads = ("pair", "perplexity", "ln(ppl ratio)", "95 % interval", "noise floor of ln(ppl ratio)", "KLD mean, nats",
             "KLD p99, nats", "same top-1", "remark")  # fmt: skip
    return made("Quality against the reference", heads, rows)


def labels(pair: Mapping[str, Any]) -> list[Table]:
    """What the two arms do not share."""
    rows = [tuple(named(each.get(key)) for key in ("label", "reference", "other")) for each in pair.get("labels") or ()]
    heads = ("label", named(pair.get("reference")), named(pair.get("other")))
    return made(f"Labels that differ: {names_of(pair)}", heads, rows)


def names_of(pair: Mapping[str, Any]) -> str:
    """The two arms of a pair."""
    return f"{named(pair.get('other'))} against {named(pair.get('reference'))}"


def bounds_of(edges: tuple[float | None, float | None], digits: int) -> str:
    """The interval of one arm."""
    return NONE if None in edges else span(*edges, digits)


def _percent(part: Any) -> float | None:
    found = finite(part)
    return None if found is None else 100 * found
