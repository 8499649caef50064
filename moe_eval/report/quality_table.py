"""The quality of several arms, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.records.comparison import ComparisonRecord, QualityComparison
from moe_eval.records.quality import QualityFigures, QualityRecord
from moe_eval.report import pair_tables
from moe_eval.report.console import lines_of, text_table
from moe_eval.report.renderable import Group, Renderable
from moe_eval.report.text import Row, number, paragraph


def render(records: Sequence[QualityRecord], comparison: ComparisonRecord) -> Renderable:
    """The arms, and the labels that all of them share.

    Args:
        records: of arms that finished, the reference first.
        comparison: of these arms.
    """
    first = records[0]
    costs = {pair.other: pair.quality for pair in comparison.pairs if pair.quality is not None}
    rows = [_row(record, costs.get(record.arm), is_first=record is first) for record in records]
    lines = [] if first.figures is None else [_windows(first.figures)]
    divergences = [cost.divergence for cost in costs.values() if cost.divergence is not None]
    if divergences:
        lines.append(
            f"KLD counts the reference's {divergences[0].k} most probable tokens singly, and the rest as one. These "
            f"tokens hold {100 * min(divergence.covered for divergence in divergences):.1f} % of the reference's "
            "probability or more."
        )
        if any(divergence.is_lower_bound for divergence in divergences):
            lines.append("KLD is a lower bound where an arm did not score the reference's tokens.")
    lines.append(_noise(first))
    for arm, cost in costs.items():
        remarks = [text for text in (cost.flag, cost.calibration) if text]
        lines += [f"{arm}: {paragraph(remark)}" for remark in remarks]
        lines += [f"{arm}: no interval. {paragraph(cost.no_interval)}"] if cost.no_interval else []
    return Group(text_table(rows), lines_of(list(dict.fromkeys(lines))))


def _row(record: QualityRecord, cost: QualityComparison | None, *, is_first: bool) -> Row:
    (ratio, value), *against = pair_tables.quality_cells(cost)
    return [
        ("arm", record.arm),
        ("engine", f"{record.engine}, emulated" if record.emulated else str(record.engine)),
        ("perplexity", number(record.figures.perplexity if record.figures else None, 4)),
        ("word ppl", number(record.figures.word_ppl if record.figures else None, 4)),
        (ratio, "reference" if is_first else value),
        *against,
    ]


def _windows(figures: QualityFigures) -> str:
    part = "" if figures.num_chunks == figures.of_chunks else f", spread over {figures.of_chunks:,}"
    return (
        f"{figures.dataset}: {figures.num_chunks:,} windows of at most {figures.input_len} tokens{part}. "
        f"{figures.tokens:,} tokens of {figures.documents} documents were scored. Word ppl counts the "
        f"{figures.whole_documents} whole documents."
    )


def _noise(first: QualityRecord) -> str:
    noise = first.noise_floor
    if noise is None:
        return "Noise floor: not measured."
    ratio = f"ln(ppl ratio) {noise.ln_ppl_ratio.value:+.1e}, " if noise.ln_ppl_ratio else ""
    return (
        f"Noise floor ({first.arm} again with batch size {noise.batch_size}): {ratio}KLD mean "
        f"{noise.divergence.mean:.1e}, same top-1 {100 * noise.divergence.same_top1:.2f} %."
    )
