"""The speed of several arms, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.run import LEAST_WARM_UPS
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.shape_latency import ShapeLatency
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report import pair_tables
from moe_eval.report.console import lines_of, text_table
from moe_eval.report.renderable import Group, Renderable
from moe_eval.report.text import (
    MODES,
    Row,
    confidence_of,
    figure_cells,
    interval_head,
    named,
    number,
    paragraph,
    percent,
)

_DRIVERS_SHARE = 256 << 20  # bytes that a driver may hold for itself
_LINK = "link"
_FIGURES = {"e2e_ms": "e2e", "ttft_ms": "TTFT", "tpot_ms": "TPOT", "j_per_tok": "J/tok"}


def render(records: Sequence[LatencyRecord], comparison: ComparisonRecord) -> Renderable:
    """The arms shape by shape, and the labels that all of them share.

    Args:
        records: of arms that finished, the reference first.
        comparison: of these arms.
    """
    first = records[0]
    names = [shape.name for shape in first.shapes]
    pairs = {pair.other: pair for pair in comparison.pairs}
    timed = [
        (record, shape, pairs.get(record.arm))
        for name in names
        for record in records
        for shape in record.shapes
        if shape.name == name
    ]
    e2e = f"e2e: {interval_head(shape.metrics.e2e_ms for _, shape, _ in timed)}"
    figures = [_figures(record, shape, e2e) for record, shape, _ in timed]
    if not any(
        shape.floors.decode_step and shape.floors.decode_step.on_link for _, shape, _ in timed
    ):  # a column for arms on several GPUs alone
        figures = [[cell for cell in row if cell[0] != _LINK] for row in figures]
    compared = [
        (pair, matching[0])
        for _, shape, pair in timed
        if pair and (matching := [candidate for candidate in pair.shapes if candidate.name == shape.name])
    ]
    rows = _ratios(compared, comparison.rules)
    notes = [note for record, shape, _ in timed for note in _notes(record, shape)]
    notes += [note for pair, shape in compared for note in _void(pair, shape)]
    memory = [sentence for record in records for sentence in _memory(record)]
    # each sentence once
    lines = lines_of(list(dict.fromkeys([*_labels(records), *memory, *notes])))
    return Group(text_table(figures), *([text_table(rows)] if rows else []), lines)


def _figures(record: LatencyRecord, shape: ShapeLatency, interval: str) -> Row:
    metrics, step = shape.metrics, shape.floors.decode_step
    return [
        ("arm", record.arm),
        ("batch", f"{shape.batch_size}"),
        ("TTFT ms", figure_cells(metrics.ttft_ms)[0]),
        ("TPOT ms", figure_cells(metrics.tpot_ms)[0]),
        *zip(("e2e ms", interval), figure_cells(metrics.e2e_ms), strict=True),
        ("output tok/s", figure_cells(metrics.output_tok_s)[0]),
        ("J/tok", figure_cells(metrics.j_per_tok)[0]),
        ("experts", number(shape.experts_per_layer_step, 1)),
        ("of floor", number(percent(step.fraction if step else None), 0, unit=" %")),
        (_LINK, number(percent(step.on_link if step else None), 1, unit=" %")),
    ]


def _ratios(compared: Sequence[tuple[Pair, ShapeComparison]], rules: Rules) -> list[Row]:
    """A row for every figure that both arms of a pair have. A broken arm has none."""
    timed = [
        (pair, shape, metric, ratio)
        for pair, shape in compared
        for metric in _FIGURES
        if (ratio := pair_tables.ratio_of(shape, metric)) and pair.verdict is not Verdict.BROKEN
    ]
    heads = ("ratio", f"{confidence_of(ratio for *_, ratio in timed)} interval", "loads")
    return [
        [
            ("arm", pair.other),
            ("batch", named(shape.batch_size)),
            ("figure", _FIGURES[metric]),
            ("verdict", pair_tables.ruling(shape, metric, rules)),
            *zip(heads, pair_tables.ratio_cells(shape, ratio, rules), strict=True),
        ]
        for pair, shape, metric, ratio in timed
    ]


def _labels(records: Sequence[LatencyRecord]) -> list[str]:
    first, shape = records[0], records[0].shapes[0]
    schedule, workload, is_single = first.schedule, first.workload, len(records) == 1
    warm_ups = min(count for record in records for shape in record.shapes for count in shape.warmup_iterations)
    weights = ", ".join(sorted({str(record.weights) for record in records}))
    lines = [
        f"{shape.input_len} tokens in, {shape.output_len} out. Medians of {shape.num_iterations} iterations after "
        f"{warm_ups} or more of warm-up{': a quick look' * (warm_ups < LEAST_WARM_UPS)}."
    ]
    if schedule is not None and not is_single:
        lines.append(
            f"Ratio: {first.arm} over the arm, so above 1 is better. It is the geometric mean over pairs of loads of "
            "the medians' ratio, with its interval by load."
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
        "Experts: distinct ones per layer and decode step. Of floor: the least time of a decode step, by measured "
        "rates of copies, matrix products and the link between GPUs, over the measured time. Link: the part of the "
        "latter that the bytes of collectives take at the link's rate.",
    ]


def _memory(record: LatencyRecord) -> Iterable[str]:
    """A sentence where a process left GPU memory in use."""
    held = max((use.after - use.before for use in record.memory if use.before and use.after), default=0)
    if held > _DRIVERS_SHARE:
        together = any(use.together > 1 for use in record.memory)
        arms, processes = ("The arms together", "their processes") if together else (record.arm, "its process")
        yield f"{arms} left {held / 2**30:.1f} GiB of GPU memory in use when {processes} had ended."


def _notes(record: LatencyRecord, shape: ShapeLatency) -> Iterable[str]:
    """What a reader of the numbers has to know."""
    step = shape.floors.decode_step
    if step is not None and step.floor.link_bytes and step.floor.link_seconds is None:
        reason = (record.rates and record.rates.no_links) or "the link between its GPUs was not measured"
        yield f"{record.arm}: its floor leaves collectives out. {paragraph(reason[0].upper() + reason[1:])}"
    for note in shape.notes:
        yield f"{record.arm} at batch {shape.batch_size}: {paragraph(note)}"


def _void(pair: Pair, shape: ShapeComparison) -> Iterable[str]:
    """Why ratios are void, or what was not checked."""
    if shape.verdict is Verdict.NOT_COMPARABLE:
        yield f"{pair.other} at batch {shape.batch_size}: no verdict. {paragraph(shape.reason)}"
    elif shape.fairness.is_fair is None and shape.fairness.reason:
        yield f"Whether the routing is fair was not checked. {paragraph(shape.fairness.reason)}"
