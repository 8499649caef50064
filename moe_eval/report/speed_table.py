"""The speed of several arms, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType

from moe_eval.comparison.wording import interval_digits
from moe_eval.records.comparison import ComparisonRecord, ShapeComparison
from moe_eval.records.latency import LatencyRecord, Metric, ShapeLatency
from moe_eval.report.console import lines_of, rich_table
from moe_eval.report.text import MODES, NONE, Row, number, paragraph, percent, span

_DRIVERS_SHARE = 256 << 20  # bytes that a driver may hold for itself


def render(records: Sequence[LatencyRecord], comparison: ComparisonRecord) -> RenderableType:
    """The arms shape by shape, and the labels that all of them share.

    Args:
        records: of arms that finished, the reference first.
        comparison: of these arms.
    """
    first = records[0]
    names = [shape.name for shape in first.shapes]
    pairs = {(pair.other, shape.name): shape for pair in comparison.pairs for shape in pair.shapes}
    timed = [
        (record, shape, pairs.get((record.arm, name)))
        for name in names
        for record in records
        for shape in record.shapes
        if shape.name == name
    ]
    rows = [_row(record, shape, compared, is_first=record is first) for record, shape, compared in timed]
    notes = [note for record, shape, compared in timed for note in _notes(record, shape, compared)]
    memory = [sentence for record in records for sentence in _memory(record)]
    # each sentence once
    return Group(rich_table(rows), lines_of(list(dict.fromkeys([*_labels(records), *memory, *notes]))))


def _row(record: LatencyRecord, shape: ShapeLatency, compared: ShapeComparison | None, *, is_first: bool) -> Row:
    metrics, step = shape.metrics, shape.floors.decode_step
    e2e = metrics.e2e_ms
    speed_up = ("reference", NONE) if is_first else _speed_up(compared)
    return [
        ("arm", record.arm),
        ("batch", f"{shape.batch_size}"),
        ("TTFT ms", _median(metrics.ttft_ms, 2)),
        ("TPOT ms", _median(metrics.tpot_ms, 3)),
        ("e2e ms", _median(e2e, 1)),
        ("e2e: 95 % interval", span(e2e.low, e2e.high, 1) if e2e and e2e.low is not None else NONE),
        ("output tok/s", _median(metrics.output_tok_s, 1)),
        ("prefill tok/s", _median(metrics.prefill_tok_s, 0)),
        ("J/tok", _median(metrics.j_per_tok, 3)),
        ("experts", number(shape.experts_per_layer_step, 1)),
        ("of floor", number(percent(step.fraction if step else None), 0, unit=" %")),
        *zip(("speed-up", "speed-up: 95 % interval"), speed_up, strict=True),
    ]


def _median(metric: Metric | None, digits: int) -> str:
    return number(metric.median if metric else None, digits)


def _speed_up(shape: ShapeComparison | None) -> tuple[str, str]:
    ratio = None if shape is None else shape.speed.e2e_ms
    if shape is not None and shape.fairness.is_fair is False:
        return "void", "not fair"
    if ratio is None:
        return NONE, NONE
    digits = interval_digits(ratio.low, ratio.high, (1.0,))
    return number(ratio.value, digits, unit="x"), span(ratio.low, ratio.high, digits)


def _labels(records: Sequence[LatencyRecord]) -> list[str]:
    first, shape = records[0], records[0].shapes[0]
    schedule, workload, is_single = first.schedule, first.workload, len(records) == 1
    warm_ups = min(count for record in records for shape in record.shapes for count in shape.warmup_iterations)
    weights = ", ".join(sorted({str(record.weights) for record in records}))
    lines = [
        f"{shape.input_len} tokens in, {shape.output_len} out. Medians of {shape.num_iterations} iterations after "
        f"{warm_ups} or more of warm-up."
    ]
    if schedule is not None and not is_single:
        lines.append(
            f"Speed-up: of e2e over {first.arm}, the geometric mean over pairs of loads of the medians' ratio, with "
            "its interval by load."
        )
    if schedule is not None:
        mode = "One arm alone was measured." if is_single else MODES[schedule.mode]
        lines.append(f"Schedule: {schedule.mode}. {mode}")
    if workload is not None:
        lines.append(f"Prompts: {workload.source} (digest {workload.digest}). Weights: {weights}.")
    e2e, ttft = shape.metrics.e2e_ms, shape.metrics.ttft_ms
    clocks = [f"{name} by {metric.source}" for name, metric in (("e2e", e2e), ("TTFT and TPOT", ttft)) if metric]
    rest = sorted(set(shape.figures.sources) - {metric.source for metric in (e2e, ttft) if metric})
    clocks += [f"also recorded by {' and '.join(rest)}"] if rest else []
    return [
        *lines,
        f"Clocks: {', '.join(clocks)}.",
        "Experts: distinct ones per layer and decode step. Of floor: the least time of a decode step, by measured copy "
        "and matrix rates, over the measured time.",
    ]


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
    if compared is not None and compared.fairness.reason:
        prefix = (
            f"{where}: no verdict."
            if compared.fairness.is_fair is False
            else "Whether the routing is fair was not checked."
        )
        yield f"{prefix} {paragraph(compared.fairness.reason)}"
