"""What `moe-eval kernels` prints: the conclusion, compact tables, and on request everything else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from moe_eval.records.kernels import KernelsRecord, PhaseTime
from moe_eval.report import kernels_details
from moe_eval.report import kernels_words as words
from moe_eval.report.console import lines_of, number_table
from moe_eval.report.kernels_words import count, ms, percent
from moe_eval.report.renderable import Grid, Group, Renderable, Sentences, SideBySide
from moe_eval.traces.steps import WHOLE
from moe_eval.traces.taxonomy import CATEGORIES

if TYPE_CHECKING:
    from moe_eval.records.shape_comparison import PhaseChange

_LONGEST, _NAME = 8, 64  # kernels of a compact table, and characters of a name in it
_PARTS_OF_A_STEP = (
    ("- overlap", "overlap_change_ms"),
    ("+ nothing running", "waiting_change_ms"),
    ("+ residual", "residual_ms"),
)

NO_CHANGES = "The traces have no phase in common, so there is no difference to show."


def trace(record: KernelsRecord, *, full: bool = False) -> Renderable:
    """One trace.

    Args:
        record: with all kernels, as `kernels_record.make` gives it.
        full: show also what the compact tables leave out.
    """
    parts: list[Renderable] = [lines_of([*words.conclusion(record), *words.cautions(record)])]
    phases = {name: record.phases[name] for name in words.main_phases(record.phases)}
    if phases:
        parts += [lines_of([words.statistic(phases)]), SideBySide(lambda shown: _categories(record, shown), phases)]
        parts += [lines_of(["The longest kernels, by the same statistic:"]), _kernels(phases)]
    parts.append(lines_of([words.source(record)]))
    return paragraphs([*parts, *(kernels_details.parts(record) if full else ())])


def comparison(
    records: Sequence[KernelsRecord], changes: Mapping[str, PhaseChange], names: tuple[str, str], *, full: bool = False
) -> Renderable:
    """Two traces, the first being the reference: both in short, and what changed."""
    labelled = list(zip(names, records, strict=True))
    blocks = [[f"{name} is {words.ran(record)}" for name, record in labelled]]
    for phase in words.main_phases(changes):
        times = [(name, words.free_times(record.phases[phase], record.withheld(phase))) for name, record in labelled]
        free = " and ".join(f"{time[0]} with {name}" for name, time in times if time)
        blocks.append(
            [changes[phase].text, f"With free experts {words.subject(phase)} would take {free}." if free else ""]
        )
    if not changes:
        blocks.append([NO_CHANGES])
    blocks.append([line for name, record in labelled for line in words.cautions(record, name)])
    parts: list[Renderable] = [lines_of(block) for block in (list(filter(None, block)) for block in blocks) if block]
    if changes:
        phases = {name: records[0].phases[name] for name in words.main_phases(changes)}
        parts += [
            lines_of([words.statistic(phases)]),
            *difference(changes, names, [name for name in phases if any(record.withheld(name) for record in records)]),
        ]
    parts.append(lines_of([words.source(record, name) for name, record in labelled]))
    return paragraphs([*parts, *(trace(record, full=True) for record in records if full)])


def difference(
    changes: Mapping[str, PhaseChange], names: tuple[str, str], withheld: Collection[str] = ()
) -> list[Renderable]:
    """Categories of two traces, how their changes add up to that of a step, and the kernels of one alone.

    Args:
        withheld: the phases of which a warning spoils figures. Those that are missing were withheld.
    """
    main = {name: changes[name] for name in words.main_phases(changes)}
    return [SideBySide(lambda shown: _changes(shown, names, withheld), main), *_alone(main, names)]


def _categories(record: KernelsRecord, phases: Mapping[str, PhaseTime]) -> Grid:
    """Phases side by side. Below the sum, how long a step is and for how much of it nothing runs."""
    is_ranked = any(len(phase.ranks) > 1 for phase in phases.values())
    heads = ["category"]
    for name in phases:
        heads += [f"{name} ms", "%", *(["spread"] if is_ranked else []), "launches"]
    rows = []
    for category in _union(phase.categories for phase in phases.values()):
        cells = [category]
        for phase in phases.values():
            time = phase.categories.get(category)
            cells += [ms(time.ms), percent(time.share)] if time else ["none", "none"]
            cells += [ms(time.spread_ms if time else None)] if is_ranked else []
            cells.append(count(time.launches if time else 0))
        rows.append(cells)
    blank = [""] * (is_ranked + 2)
    total = ["TOTAL"]
    for phase in phases.values():
        total += [ms(phase.total_ms), "100.0" if phase.total_ms else "none", *([""] if is_ranked else [])]
        total.append(count(phase.total_launches))
    rows.append(total)
    end = "first kernel to last" if WHOLE in phases else "step"
    for label, figure in (("overlap", words.overlap), ("nothing running", words.waiting), (end, words.length)):
        cells = [figure(phase, record.withheld(name)) for name, phase in phases.items()]
        if any(cell != "-" for cell in cells):
            rows.append([label, *(part for cell in cells for part in (cell, *blank))])
    return number_table(heads, rows)


def _kernels(phases: Mapping[str, PhaseTime]) -> Renderable:
    """The longest kernels, and the rest, which adds up to the categories' sum."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    weights: dict[tuple[str, str], float] = {}
    for name, phase in phases.items():
        for kernel in phase.functions:
            key = kernel.name, words.work(kernel)
            times.setdefault(key, {})[name] = kernel.ms
            weights[key] = weights.get(key, 0.0) + kernel.ms / (phase.total_ms or 1.0)
    longest = sorted(weights, key=lambda key: -weights[key])[:_LONGEST]
    rows = [[*key, *(ms(times[key].get(name, 0.0)) for name in phases)] for key in longest]
    rests = [phase.total_ms - sum(times[key].get(name, 0.0) for key in longest) for name, phase in phases.items()]
    size = len(weights) - len(longest)
    if size or any(ms(rest) not in ("none", "<0.001") for rest in rests):
        rows.append([f"the rest (kernels: {size})", "", *map(ms, rests)])
    return number_table(["kernel", "category", *(f"{name} ms" for name in phases)], rows, texts=2, longest=_NAME)


def _changes(changes: Mapping[str, PhaseChange], names: tuple[str, str], withheld: Collection[str]) -> Grid:
    heads = ["in ms"]
    for name in changes:
        heads += [f"{name} {words.short(names[0])}", words.short(names[1]), "change", "ratio"]
    rows = []
    for category in _union(change.categories for change in changes.values()):
        cells = [category]
        for change in changes.values():
            part = change.categories.get(category)
            cells += _change_cells(part.before_ms, part.after_ms) if part else _change_cells(0.0, 0.0)
        rows.append(cells)
    sums = ["TOTAL"]
    for change in changes.values():
        before = sum(part.before_ms for part in change.categories.values())
        sums += _change_cells(before, before + change.kernel_change_ms)
    rows.append(sums)
    if any(change.step_ms or name in withheld for name, change in changes.items()):
        for label, part_name in _PARTS_OF_A_STEP:
            cells = [label]
            for name, change in changes.items():
                value = getattr(change, part_name)
                signed = None if value is None else -value if label.startswith("-") else value
                cells += ["", "", ms(signed, is_withheld=name in withheld, signed=True), ""]
            rows.append(cells)
        cells = ["= step"]
        for name, change in changes.items():
            missing = ["", "", ms(None, is_withheld=name in withheld), ""]
            cells += _change_cells(*change.step_ms) if change.step_ms else missing
        rows.append(cells)
    return number_table(heads, rows)


def _union(categories: Iterable[Iterable[str]]) -> list[str]:
    """The names of all categories, in the order of the taxonomy."""
    names = dict.fromkeys(name for part in categories for name in part)
    return sorted(names, key=lambda name: CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES))


def _change_cells(before: float, after: float) -> list[str]:
    """Both times, their difference, and how many times faster the second is."""
    ratio = (
        "-" if not before and not after else "new" if not before else "gone" if not after else f"{before / after:.2f}x"
    )
    return [ms(before), ms(after), ms(after - before, signed=True), ratio]


def _alone(changes: Mapping[str, PhaseChange], names: tuple[str, str]) -> list[Renderable]:
    """The kernels that only one of the traces runs in a phase, the longest first."""
    rows = []
    for phase, change in changes.items():
        kernels = [(kernel, names[1]) for kernel in change.new] + [(kernel, names[0]) for kernel in change.vanished]
        for kernel, name in sorted(kernels, key=lambda pair: -pair[0].ms)[: _LONGEST // 2]:
            rows.append([kernel.name, words.work(kernel), phase, words.short(name), ms(kernel.ms)])
    table = number_table(["kernel", "category", "phase", "only in", "ms"], rows, texts=4, longest=_NAME)
    return [lines_of(["The longest kernels that one trace alone runs:"]), table] if rows else []


def paragraphs(parts: Sequence[Renderable]) -> Group:
    """Parts with an empty line after each. A table brings one before and after itself."""
    pieces: list[Renderable] = []
    for part, following in zip_longest(parts, parts[1:]):
        pieces.append(part)
        if isinstance(part, Sentences) and isinstance(following, (Sentences, Group)):
            pieces.append(Sentences(()))
    return Group(*pieces)
