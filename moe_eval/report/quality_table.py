"""The comparison of precisions as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_eval.evaluators import quality_record

_HEADS = (
    *("precision", "engine", "perplexity", "word ppl", "ln(ppl ratio)", "95 % interval"),
    *("KLD mean", "median", "p99", "same top-1"),
)


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of `moe-eval ppl`, the reference first, and the labels that all of them share."""
    first = records[0]
    lines = [columns(_HEADS, [_row(record, record is first) for record in records])]
    part = "" if first["num_chunks"] == first["of_chunks"] else f", the first of {first['of_chunks']:,}"
    divergence = first["divergence"]
    lines += [
        "",
        f"{first['dataset']}: {first['num_chunks']:,} windows of at most {first['input_len']} tokens{part}; "
        f"{first['tokens']:,} tokens scored, {first['documents']} documents ({first['whole_documents']} whole, which "
        "word ppl counts).",
        f"KLD over the tokens that both arms have among their {divergence['k']} most probable, the rest as one bucket: "
        f"these hold {100 * min(each['divergence']['covered'] for each in records):.1f} % of the reference's "
        "probability or more.",
        _noise(first),
        *(f"{name}: {flag}." for name, flag in map(_flag, records) if flag),
        *(
            f"{each['precision']}: {quality_record.CALIBRATED}."
            for each in records
            if quality_record.of_calibration_text(each)
        ),
    ]
    if first["no_interval"]:
        lines.append(f"No interval: {first['no_interval']}")
    return "\n".join(lines)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned as plain text as well."""
    table = [heads, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _flag(record: Mapping[str, Any]) -> tuple[str, str | None]:
    made_up = quality_record.of_random_weights(record)
    return record["precision"], quality_record.RANDOM if made_up else record["flag"]


def _row(record: Mapping[str, Any], reference: bool) -> tuple[str, ...]:
    engine = f"{record['engine']}, emulated" if record["emulated"] else str(record["engine"])
    words = "-" if record["word_ppl"] is None else f"{record['word_ppl']:.4f}"
    named = (record["precision"], engine, f"{record['perplexity']:.4f}", words)
    if reference:
        return (*named, "reference", *["-"] * 5)
    ratio, divergence = record["ln_ppl_ratio"], record["divergence"]
    interval = ("-", "-")
    if ratio:
        interval = (f"{ratio['value']:+.5f}", f"{ratio['low']:+.5f} to {ratio['high']:+.5f}")
    return (
        *named,
        *interval,
        *(f"{divergence[name]:.5f}" for name in ("mean", "median", "p99")),
        f"{100 * divergence['same_top1']:.2f} %",
    )


def _noise(first: Mapping[str, Any]) -> str:
    noise = first["noise_floor"]
    if not noise:
        return "Noise floor: not measured."
    ratio, divergence = noise["ln_ppl_ratio"], noise["divergence"]
    moved = f"ln(ppl ratio) {ratio['value']:+.1e}, " if ratio else ""
    return (
        f"Noise floor ({first['precision']} again with batch size {noise['batch_size']}): {moved}KLD mean "
        f"{divergence['mean']:.1e}, same top-1 {100 * divergence['same_top1']:.2f} %."
    )
