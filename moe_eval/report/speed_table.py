"""The speed of several arms, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType

from moe_eval.records.comparison import ComparisonRecord, Ratio, ShapeComparison
from moe_eval.records.latency import LatencyRecord, Metric, ShapeLatency
from moe_eval.report.console import lines_of, rich_table
from moe_eval.report.table import Table
from moe_eval.report.text import MODES, paragraph

_HEADS = (
    "arm",
    "batch",
    "TTFT ms",
    "TPOT ms",
    "e2e ms",
    "e2e: 95 % interval",
    "output tok/s",
    "prefill tok/s",
    "J/tok",
    "experts",
    "of floor",
    "speed-up",
    "speed-up: 95 % interval",
)
_DRIVERS_SHARE = 256 << 20  # bytes that a driver may hold for itself


def render(records: Sequence[LatencyRecord], comparison: ComparisonRecord) -> RenderableType:
    """The arms shape by shape, and the labels that all of them share.

    Args:
        records: of arms that finished, the reference first.
        comparison: of these arms.
    """
    first = records[0]
    names = [shape.name for shape in first.shapes]
    pairs = {pair.other: {shape.name: shape for shape in pair.shapes} for pair in comparison.pairs}
    rows = [
        (record, shape, pairs.get(record.arm, {}).get(name))
        for name in names
        for record in records
        for shape in record.shapes
        if shape.name == name
    ]
    cells = tuple(_row(record, shape, compared, is_first=record is first) for record, shape, compared in rows)
    notes = [note for record, shape, compared in rows for note in _notes(record, shape, compared)]
    memory = [sentence for record in records for sentence in _memory(record)]
    # each sentence once
    lines = dict.fromkeys([*_labels(records), *memory, *notes])
    return Group(rich_table(Table("", _HEADS, cells)), lines_of(list(lines)))


def _row(
    record: LatencyRecord, shape: ShapeLatency, compared: ShapeComparison | None, *, is_first: bool
) -> tuple[str, ...]:
    metrics, step = shape.metrics, shape.floors.decode_step
    e2e, experts = metrics.e2e_ms, shape.experts_per_layer_step
    fraction = None if step is None else step.fraction
    return (
        record.arm,
        f"{shape.batch_size}",
        _median(metrics.ttft_ms, 2),
        _median(metrics.tpot_ms, 3),
        _median(e2e, 1),
        "-" if e2e is None or e2e.low is None or e2e.high is None else f"{e2e.low:,.1f} to {e2e.high:,.1f}",
        _median(metrics.output_tok_s, 1),
        _median(metrics.prefill_tok_s, 0),
        _median(metrics.j_per_tok, 3),
        "-" if experts is None else f"{experts:.1f}",
        "-" if fraction is None else f"{100 * fraction:.0f} %",
        *(("reference", "-") if is_first else _speed_up(compared)),
    )


def _median(metric: Metric | None, digits: int) -> str:
    return "-" if metric is None else f"{metric.median:,.{digits}f}"


def _speed_up(shape: ShapeComparison | None) -> tuple[str, str]:
    if shape is None:
        return "-", "-"
    if shape.fairness.is_fair is False:
        return "void", "not fair"
    ratio = shape.speed.e2e_ms
    return ("-", "-") if ratio is None else (f"{ratio.value:.3f}x", _interval(ratio))


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return "none"
    ends = ratio.low, ratio.high
    # as many digits as it takes to see on which side of 1 an end is
    digits = next((n for n in (3, 4) if all(round(end, n) != 1 or end == 1 for end in ends)), 5)
    return " to ".join(f"{end:.{digits}f}" for end in ends)


def _labels(records: Sequence[LatencyRecord]) -> list[str]:
    first, shape = records[0], records[0].shapes[0]
    warm_ups = min(count for record in records for shape in record.shapes for count in shape.warmup_iterations)
    weights = ", ".join(sorted({str(record.weights) for record in records}))
    lines = [
        f"{shape.input_len} tokens in, {shape.output_len} out. Medians of {shape.num_iterations} iterations after "
        f"{warm_ups} or more of warm-up."
    ]
    if first.schedule is not None:
        mode = MODES[first.schedule.mode] if len(records) > 1 else "One arm alone was measured."
        if len(records) > 1:
            lines.append(
                f"Speed-up: of e2e over {first.arm}, the geometric mean over {first.schedule.blocks} blocks of the "
                "medians' ratio, with its interval by block. It is not the ratio of the medians above."
            )
        lines.append(f"Schedule: {first.schedule.mode}. {mode}")
    if first.workload is not None:
        lines.append(f"Prompts: {first.workload.source} (digest {first.workload.digest}). Weights: {weights}.")
    return [
        *lines,
        f"Clocks: {_clocks(shape)}.",
        "Experts: distinct ones per layer and decode step. Of floor: the least time of a decode step, by measured copy "
        "and matrix rates, over the measured time.",
    ]


def _clocks(shape: ShapeLatency) -> str:
    """Which clock each figure is by, and which others are in the record."""
    e2e, ttft = shape.metrics.e2e_ms, shape.metrics.ttft_ms
    used = {metric.source for metric in (e2e, ttft) if metric is not None}
    clocks = [f"e2e by {e2e.source}"] if e2e else []
    clocks += [f"TTFT and TPOT by {ttft.source}"] if ttft else []
    rest = sorted(set(shape.figures.sources) - used)
    return ", ".join([*clocks, *([f"also recorded by {' and '.join(rest)}"] if rest else [])])


def _memory(record: LatencyRecord) -> Iterable[str]:
    """A sentence where a process left GPU memory in use."""
    held = max((use.after - use.before for use in record.memory if use.before and use.after), default=0)
    if held > _DRIVERS_SHARE:
        together = any(use.together > 1 for use in record.memory)
        arms, processes = ("The arms together", "their processes") if together else (record.arm, "its process")
        yield f"{arms} left {held / 2**30:.1f} GiB of GPU memory in use when {processes} had ended."


def _notes(record: LatencyRecord, shape: ShapeLatency, compared: ShapeComparison | None) -> Iterable[str]:
    """What a reader of the numbers has to know."""
    where = f"{record.arm} at batch {shape.batch_size}"
    for note in shape.notes:
        yield f"{where}: {paragraph(note)}"
    reason = compared.fairness.reason if compared is not None else None
    if compared is not None and reason:
        is_unfair = compared.fairness.is_fair is False
        yield (
            f"{where}: no verdict. {paragraph(reason)}"
            if is_unfair
            else (f"Whether the routing is fair was not checked. {paragraph(reason)}")
        )
