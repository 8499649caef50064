"""What `moe-eval kernels --full` adds: every kernel, layers, ranks, and what the compact tables leave out."""

from __future__ import annotations

from moe_eval.records.kernels import KernelsRecord, PhaseTime
from moe_eval.report import kernels_words as words
from moe_eval.report.console import lines_of, number_table
from moe_eval.report.kernels_words import count, ms
from moe_eval.report.renderable import Renderable


def parts(record: KernelsRecord) -> list[Renderable]:
    """A table of every phase's kernels with the sentences on it, and tables of layers and ranks where there are any."""
    precision = record.precision_seen or "not known"
    pieces: list[Renderable] = [lines_of([f"The precision that was seen, {precision}: {record.evidence}."])]
    for name, phase in record.phases.items():
        pieces += [lines_of([f"{name}:", *_sentences(phase, record.withheld(name))]), _kernels(phase)]
        if phase.ranks:
            pieces += [lines_of([f"{name}, by rank:"]), _ranks(phase)]
    layers = sorted({layer for phase in record.phases.values() for layer in phase.layers_ms})
    if layers:
        heads = ["layer", *(f"{name} ms" for name in record.phases)]
        times = [phase.layers_ms for phase in record.phases.values()]
        rows = [[f"{layer}", *(ms(by_layer.get(layer, 0.0)) for by_layer in times)] for layer in layers]
        pieces += [lines_of(["Layers, means over the steps:"]), number_table(heads, rows)]
    return pieces


def _sentences(phase: PhaseTime, spoiled: frozenset[str]) -> list[str]:
    times = [
        f"{label} {ms(value, is_withheld=name in spoiled)}"
        for label, name, value in (
            ("busy", "busy_ms", phase.busy_ms),
            ("overlap", "overlap_ms", phase.overlap_ms),
            ("first kernel to last", "span_ms", phase.span_ms),
            ("idle between them", "idle_ms", phase.idle_ms),
            ("to the next step", "wall_ms", phase.wall_ms),
            ("of it after the last kernel", "gap_ms", phase.gap_ms),
        )
    ]
    lines = [f"In ms: {', '.join(times)}."]
    for whose, ceiling in (("busy time", phase.ceiling), ("the time to the next step", phase.wall_ceiling)):
        if ceiling is not None:
            free = "no limit" if ceiling.if_free is None else f"{ceiling.if_free:.2f}x"
            lines.append(
                f"Nothing but expert GEMMs runs for {100 * ceiling.expert_gemm_share:.1f} % of {whose}: {free} with "
                f"free experts, {ceiling.if_twice_as_fast:.2f}x with experts twice as fast."
            )
    if phase.moe_layers:
        launches = [(name, time.launches_per_layer) for name, time in phase.categories.items()]
        per_block = ", ".join(f"{name} {number:.1f}" for name, number in launches if number is not None)
        lines.append(f"Launches for each of {phase.moe_layers} MoE blocks: {per_block}.")
    lines.append(f"{100 * phase.classified:.1f} % of the kernel time is classified.")
    if phase.unclassified:
        lines.append(f"Not classified: {words.listed(phase.unclassified)}.")
    return lines


def _kernels(phase: PhaseTime) -> Renderable:
    rows = [
        (words.short(kernel.name), words.work(kernel), ms(kernel.ms), count(kernel.launches))
        for kernel in phase.functions
    ]
    return number_table(["kernel", "category", "ms", "launches"], rows, texts=2)


def _ranks(phase: PhaseTime) -> Renderable:
    """The ranks, and at how many collectives each was last."""
    heads = [
        "rank",
        "GPU",
        "busy ms",
        "expert_gemm ms",
        "wait ms",
        "launches",
        "tokens",
        "last at",
        "by ms",
        "because of",
    ]
    late = {rank.rank: rank for rank in phase.collectives.late} if phase.collectives else {}
    rows = []
    for rank in phase.ranks:
        row = [f"{rank.rank}", f"{rank.device}", ms(rank.busy_ms), ms(rank.expert_gemm_ms), ms(rank.wait_ms)]
        row += [count(rank.launches), count(rank.tokens)]
        last = late.get(rank.rank)
        because = ", ".join(f"{name} {ms(time)}" for name, time in last.because.items()) if last else ""
        row += [count(last.collectives), ms(last.late_ms), because] if last else ["none", "none", ""]
        rows.append(row)
    return number_table(heads, rows)
