"""The sensitivity of layers, for a terminal or a file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from moe_eval.comparison.quality import CALIBRATED
from moe_eval.records.sensitivity import LayerSensitivity, SensitivityRecord, Suggestion
from moe_eval.report.console import lines_of, text_table
from moe_eval.report.renderable import Group, Renderable
from moe_eval.report.text import Row, named, number, span
from moe_eval.stats import Divergence

_MIB = 1 << 20


def render(record: SensitivityRecord) -> Renderable:
    """The layers by sensitivity, the experts that were quantised alone, and the suggestion with all labels."""
    figures = record.figures
    suggested = figures.suggestion.layers
    rows = [_row(rank, layer, suggested) for rank, layer in enumerate(figures.layers, 1)]
    experts = [row for layer in figures.layers for row in _expert_rows(layer)]
    tables: list[Renderable] = [text_table(rows), *([text_table(experts)] if experts else [])]
    return Group(*tables, lines_of([*labels(record), *_order(figures.layers), conclusion(record)]))


def labels(record: SensitivityRecord) -> list[str]:
    """What was measured, on which text, engine and machine, and how."""
    engine, text = record.labels.engine, record.figures.reference
    part = "" if text.num_chunks == text.of_chunks else f" of {text.of_chunks:,}"
    kld = record.figures.layers[0].divergence
    lines = [
        f"{named(engine and engine.checkpoint)}: experts emulated in {record.precision} against {_rest(record)} on "
        f"{named(engine and engine.name)} {named(engine and engine.version)}, {named(engine and engine.device_name)}. "
        f"Calibration: {named(engine and engine.arguments.get('calibration'))}.",
        f"{text.dataset}: {text.num_chunks:,}{part} windows of at most {text.input_len} tokens, {text.tokens:,} tokens "
        f"of {text.documents} documents, digest {text.dataset_digest}.",
        f"KLD counts the reference's {kld.k} most probable tokens singly, and the rest as one. These tokens hold "
        f"{100 * kld.covered:.1f} % of the reference's probability. Intervals are 95 %, by documents.",
    ]
    is_calibrated = engine is not None and str(engine.arguments.get("calibration")).endswith(f" of {text.dataset}")
    return [*lines, CALIBRATED] if is_calibrated else lines


def conclusion(record: SensitivityRecord) -> str:
    """The suggestion in two sentences."""
    suggestion = record.figures.suggestion
    bound = f"the bound of {suggestion.max_kld:g} nats"
    over = _cost(suggestion.least_over)
    if suggestion.divergence is None:
        return f"No layer keeps {bound}: the least sensitive one costs {over}. Give a higher --max_kld."
    layers = ", ".join(map(str, suggestion.layers))
    verb = "no interval, so the mean" if suggestion.divergence.kld is None else "the upper end"
    rest = f" One layer more costs {over}." if suggestion.least_over else " These are all layers."
    return (
        f"Quantise the experts of {len(suggestion.layers)} of {_count(suggestion)} layers ({layers}): together they "
        f"cost {_cost(suggestion.divergence)}, measured at once, and {verb} keeps {bound}. That saves "
        f"about {suggestion.saved_bytes / _MIB:,.1f} of {suggestion.expert_bytes / _MIB:,.1f} MiB of experts.{rest}"
    )


def _count(suggestion: Suggestion) -> int:
    return len(suggestion.layers) + len(suggestion.excluded)


def _rest(record: SensitivityRecord) -> str:
    engine = record.labels.engine
    return named(engine and engine.dtype)


def _cost(cost: Divergence | None) -> str:
    if cost is None:
        return "an unknown KLD"
    interval = f" ({span(cost.kld.low, cost.kld.high, 5)})" if cost.kld else ""
    return f"{number(cost.mean, 5)} nats{interval}"


def _row(rank: int, layer: LayerSensitivity, suggested: Sequence[int]) -> Row:
    ratio = layer.ln_ppl_ratio.value if layer.ln_ppl_ratio else None
    return [
        ("rank", f"{rank}"),
        ("layer", f"{layer.layer}"),
        *_kld_cells(layer.divergence, 5),
        ("ln(ppl ratio)", number(ratio, 5, signed=True)),
        ("same top-1", number(100 * layer.divergence.same_top1, 2, unit=" %")),
        ("saves", number(layer.saved_bytes / _MIB, 1, unit=" MiB")),
        ("suggested", "yes" if layer.layer in suggested else "no"),
    ]


def _expert_rows(layer: LayerSensitivity) -> list[Row]:
    return [
        [
            ("layer", f"{layer.layer}"),
            ("expert", f"{entry.expert} of {layer.experts}"),
            ("load", number(100 * entry.load, 2, unit=" %")),
            *_kld_cells(entry.divergence, 6),
        ]
        for entry in layer.by_expert
    ]


def _kld_cells(cost: Divergence, digits: int) -> Row:
    low, high = (cost.kld.low, cost.kld.high) if cost.kld else (None, None)
    return [("KLD alone", number(cost.mean, digits)), ("95 % interval", span(low, high, digits))]


def _order(layers: Sequence[LayerSensitivity]) -> list[str]:
    """The neighbours in rank whose order the intervals leave open."""
    pairs = itertools.pairwise(layers)
    open_pairs = [
        f"{layer.layer} and {following.layer}"
        for layer, following in pairs
        if layer.over_next is None or layer.over_next.low <= 0
    ]
    return [f"The order of these layers is open: {', '.join(open_pairs)}."] if open_pairs else []
