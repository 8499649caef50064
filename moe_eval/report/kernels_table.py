"""Tables of traces: the time of every phase, and the difference of two traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from rich.box import MARKDOWN
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moe_eval.records.comparison import PhaseChange
from moe_eval.records.kernels import KernelsRecord, KernelTime, PhaseTime
from moe_eval.traces.steps import WHOLE

_NAME_LENGTH = 100  # characters of a kernel's name
_KERNELS = 10  # rows of a phase's table of kernels
_IN_SENTENCE = 5  # kernels that a sentence lists


def trace(record: KernelsRecord) -> RenderableType:
    """One trace: a table for every phase, its times and its ceiling."""
    gpus = ", ".join(sorted(set(record.source.gpus if record.source else ()))) or "device not named"
    sentences = [
        f"{record.trace}: {record.source.format if record.source else 'unknown format'}, {gpus}. {record.kernels:,} "
        f"kernels, {record.copies:,} copies, {record.sets:,} sets. Steps by: {record.steps_found_by}. Gate GEMMs: "
        f"{record.gates_told}.",
        *record.notes,
        f"The experts ran: {record.precision_seen or 'not known'} on {record.moe_backend_seen or 'not known'} "
        f"({record.evidence}).",
    ]
    phases = [_phase(name, phase) for name, phase in record.phases.items()]
    return _paragraphs([*map(_text, sentences), *phases])


def difference(changes: Mapping[str, PhaseChange], names: tuple[str, str]) -> RenderableType:
    """The difference of two traces, phase by phase."""
    parts: list[RenderableType] = []
    for name, change in changes.items():
        parts.append(_change_table(name, change, names))
        for adjective, kernels in (("New", change.new), ("Vanished", change.vanished)):
            if kernels:
                parts.append(_text(f"{adjective} kernels: {_listed(kernels)}."))
        if change.text:
            parts.append(_text(change.text))
    return _paragraphs(parts)


def _phase(name: str, phase: PhaseTime) -> RenderableType:
    aside = ", ".join(f"{count} {reason}" for reason, count in phase.set_aside.items())
    parts: list[RenderableType] = [
        _text(
            f"{name}: {phase.steps} step{'s' if phase.steps > 1 else ''}"
            + (f" ({aside} set aside)" if aside else "")
            + ", medians per step"
        ),
        _category_table(phase),
    ]
    if phase.busy_ms is not None:
        wall = "There is no next step" if phase.wall_ms is None else f"To the next step: {phase.wall_ms:.3f} ms"
        parts.append(
            _text(
                f"Busy {phase.busy_ms:.3f} ms (overlap {phase.overlap_ms:.3f} ms), idle between kernels "
                f"{phase.idle_ms:.3f} ms. {wall}."
            )
        )
    parts += [_text(_ceilings(phase)), _text(f"Classified: {100 * phase.classified:.1f} % of the kernel time.")]
    if phase.unclassified:
        parts.append(_text(f"Not classified: {_listed(phase.unclassified)}."))
    return Group(*parts, _kernel_table(phase.functions[:_KERNELS]))


def _category_table(phase: PhaseTime) -> Table:
    table = _table("category", "ms", "% of total", "launches", "per layer")
    for name, category in phase.categories.items():
        per_layer = "-" if category.launches_per_layer is None else f"{category.launches_per_layer:.1f}"
        _row(table, name, f"{category.ms:.3f}", f"{100 * category.share:.1f}", f"{category.launches:.0f}", per_layer)
    _row(table, "TOTAL", f"{phase.total_ms:.3f}", "100.0", f"{phase.total_launches:.0f}", "-")
    return table


def _kernel_table(kernels: Iterable[KernelTime]) -> Table:
    table = _table("kernel", "category", "ms", "launches", texts=2)
    for kernel in kernels:
        category = " + ".join((kernel.category, *kernel.fused_with))
        _row(table, _short(kernel.name), category, f"{kernel.ms:.3f}", f"{kernel.launches:.0f}")
    return table


def _ceilings(phase: PhaseTime) -> str:
    busy = "the kernels' time" if phase.busy_ms is None else "busy time"
    parts = []
    for name, ceiling in ((busy, phase.ceiling), ("wall time", phase.wall_ceiling)):
        if ceiling is not None:
            free = "no limit" if ceiling.if_free is None else f"{ceiling.if_free:.2f}x"
            parts.append(
                f"{free} of {name} if the expert GEMMs ({100 * ceiling.expert_gemm_share:.1f} % of it) took no time, "
                f"{ceiling.if_twice_as_fast:.2f}x if half"
            )
    return f"Ceiling: {', and '.join(parts)}."


def _change_table(name: str, change: PhaseChange, names: tuple[str, str]) -> Table:
    """Categories, and how their changes add up to that of a step."""
    unit = "ms" if name == WHOLE else "ms per step"
    table = _table(f"{name}, {unit}", _short(names[0]), _short(names[1]), "change", "launches")
    for category, part in change.categories.items():
        launches = f"{part.after_launches - part.before_launches:+.0f}"
        _row(table, category, f"{part.before_ms:.3f}", f"{part.after_ms:.3f}", _signed(part.change_ms), launches)
    before = sum(part.before_ms for part in change.categories.values())
    after = before + change.kernel_change_ms
    _row(table, "TOTAL", f"{before:.3f}", f"{after:.3f}", _signed(change.kernel_change_ms), "-")
    if change.step_ms is not None:
        _row(table, "- overlap", "-", "-", _signed(-(change.overlap_change_ms or 0.0)), "-")
        _row(table, "+ nothing running", "-", "-", _signed(change.waiting_change_ms or 0.0), "-")
        _row(table, "+ residual", "-", "-", _signed(change.residual_ms or 0.0), "-")
        before, after = change.step_ms
        step = "= step" if change.step_is == "wall" else "= span of kernels"
        _row(table, step, f"{before:.3f}", f"{after:.3f}", _signed(after - before), "-")
    return table


def _table(*heads: str, texts: int = 1) -> Table:
    """A table without rows. Its first columns are texts, the others numbers."""
    table = Table(box=MARKDOWN)
    for at, head in enumerate(heads):
        table.add_column(_text(head), justify="left" if at < texts else "right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(_text, cells))


def _text(text: str) -> Text:
    """Text that is no markup and moves no terminal's cursor, and a cell that does not break its table."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text).replace("|", "/"))


def _paragraphs(parts: Sequence[RenderableType]) -> Group:
    """Parts with an empty line after each. A table brings one before and after itself."""
    pieces: list[RenderableType] = []
    for part, following in zip_longest(parts, parts[1:]):
        pieces.append(part)
        if isinstance(part, Text) and not isinstance(following, Table):
            pieces.append(Text())
    return Group(*pieces)


def _listed(kernels: Sequence[KernelTime]) -> str:
    return "; ".join(f"{_short(kernel.name)} ({kernel.ms:.3f} ms)" for kernel in kernels[:_IN_SENTENCE])


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 3]}..."


def _signed(ms: float) -> str:
    text = f"{ms:+.3f}"
    return "+0.000" if text == "-0.000" else text
