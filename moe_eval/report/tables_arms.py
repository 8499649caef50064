"""The tables of single arms and of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_eval.report import tables
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    MODES,
    UNITS,
    category,
    comparable,
    digits_of,
    finite,
    flat,
    named,
    number,
    plain,
)

_MOST_LINES = 200  # of facts in one table


def arms(comparison: Mapping[str, Any]) -> list[tables.Table]:
    """What was measured with what, and each arm's own perplexity."""
    heads = (
        "arm",
        "precision asked",
        "precision seen",
        "engine",
        "version",
        "GPU",
        "MoE backend",
        "emulated",
        "status",
    )
    rows, own = [], []
    for arm in comparison.get("arms") or ():
        keys = ("name", "precision", "precision_seen", "engine", "engine_version", "gpu", "moe_backend", "emulated")
        rows.append([*(named(arm.get(key)) for key in keys), named(arm.get("status"))])
        ppl = arm.get("perplexity")
        if ppl:
            figures = ((ppl.get("token_ppl"), 4), (ppl.get("word_ppl"), 4), (ppl.get("bits_per_byte"), 5))
            own.append([named(arm.get("name")), *(number(*each) for each in figures)])
    return [
        *tables.made("Arms", heads, rows),
        *tables.made("Perplexity of each arm", ("arm", "token perplexity", "word perplexity", "bits per byte"), own),
    ]


def failed(comparison: Mapping[str, Any]) -> list[tables.Table]:
    """Arms without a result or without a part of it, and why."""
    rows = [
        (named(arm.get("name")), named(arm.get("precision")), named(arm.get("status")),
         plain(arm.get("error") or "no reason recorded", LONGEST_SENTENCE))
        for arm in comparison.get("arms") or () if arm.get("status") not in (None, "finished")
    ]  # fmt: skip
    for each in comparison.get("skipped") or ():
        part = f"without {plain(each['evaluator'])}" if each.get("evaluator") else "skipped"
        rows.append((named(each.get("arm")), "", part, plain(each.get("reason") or "", LONGEST_SENTENCE)))
    return tables.made("Arms that were skipped or failed", ("arm", "precision", "status", "reason"), rows)


def method(run: Mapping[str, Any]) -> list[tables.Table]:
    """How it was measured, as far as the run tells."""
    found = []
    for caption, key in (("Schedule", "schedule"), ("Workload", "workload"), ("Machine", "machine"),
                         ("Versions", "versions"), ("Asked for", "asked")):  # fmt: skip
        if run.get(key):
            lines = flat(run[key], "" if isinstance(run[key], Mapping) else key)
            schedule = run[key] if key == "schedule" else None
            mode = MODES.get(str(schedule.get("mode"))) if isinstance(schedule, Mapping) else None
            lines = [*lines, *([("which means", mode)] if mode else [])]
            found += tables.made(caption, ("what", "value"), lines[:_MOST_LINES])
    lines = [(words, named(run[key])) for words, key in (("started", "started"), ("revision", "git")) if run.get(key)]
    return [*tables.made("Run", ("what", "value"), lines), *found]


def schedules(comparison: Mapping[str, Any]) -> list[tables.Table]:
    """In which order the two arms of every pair were timed."""
    rows = []
    for pair in comparison.get("pairs") or ():
        found = pair.get("schedule")
        if found:
            facts = (named(found.get(key)) for key in ("mode", "blocks", "per_block", "one_run"))
            rows.append((tables.names_of(pair), *facts, MODES.get(str(found.get("mode")), "")))
    heads = ("pair", "schedule", "blocks", "iterations of a block", "timed in one run", "which means")
    return tables.made("Schedule of every pair", heads, rows)


def _traced(pair: Mapping[str, Any]) -> bool:
    """Whether any shape was traced with both arms."""
    return any(shape.get("breakdown") for shape in pair.get("shapes") or ())


def _alone(comparison: Mapping[str, Any], told: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
    """Arms in no comparable pair of which `told` is true."""
    pairs = [pair for pair in comparable(comparison) if told(pair)]
    known = {name for pair in pairs for name in (pair.get("reference"), pair.get("other"))}
    return [arm for arm in comparison.get("arms") or () if arm.get("name") not in known]


def speed(comparison: Mapping[str, Any]) -> list[tables.Table]:
    """Medians of the arms that nothing is compared with."""
    rows = []
    for arm in _alone(comparison, tables.timed):
        for shape, found in (arm.get("speed") or {}).items():
            for metric, words in METRICS.items():
                each = found.get(metric)
                if each:
                    edges = finite(each.get("low")), finite(each.get("high"))
                    digits = digits_of([each.get("median")])
                    rows.append((named(arm.get("name")), plain(shape), f"{words}, {UNITS[metric]}",
                                 number(each.get("median"), digits), tables.bounds_of(edges, digits)))  # fmt: skip
    return tables.made("Speed of single arms (medians)", ("arm", "shape", "metric", "median", "95 % interval"), rows)


def traced(comparison: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, str, Mapping[str, Any]]]:
    """Arm, shape, phase and ms by category of the arms whose kernels nothing is compared with."""
    for arm in _alone(comparison, _traced):
        for shape, phases in (arm.get("kernels") or {}).items():
            for phase, found in phases.items():
                yield arm, shape, phase, found


def steps(arm: Mapping[str, Any], shape: str, phase: str, found: Mapping[str, Any]) -> list[tables.Table]:
    """ms per step of one arm by category."""
    digits = digits_of(found.values())
    rows = [(category(name), number(ms, digits)) for name, ms in found.items()]
    caption = f"Time per step: {named(arm.get('name'))}, {plain(shape)}, {plain(phase)} (trace, medians)"
    return tables.made(caption, ("category", "ms per step"), rows)
