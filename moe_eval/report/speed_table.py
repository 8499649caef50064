"""The speed of several arms as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_eval.report.quality_table import columns

_HEADS = (
    *("arm", "batch", "TTFT ms", "TPOT ms", "e2e ms", "95 % interval", "output tok/s", "prefill tok/s", "J/tok"),
    *("experts", "of floor", "speed-up", "95 % interval"),
)
_KEPT_BYTES = 256 << 20  # what a driver may keep for itself
_MODES = {
    "interleaved": "all arms were loaded at once and took turns (A B B A)",
    "reloaded": "the arms do not fit together: each was loaded again in every block (the intervals of single arms take "
    "iterations of one load as independent)",
    "sequential": "SEQUENTIAL: each arm was loaded once, so drift between them is in no interval",
}


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of `moe-eval perf`, the reference first, shape by shape, and the labels that all of them share."""
    first = records[0]
    names = [row["name"] for row in first["shapes"]]
    rows = [
        _row(record, row) for name in names for record in records for row in record["shapes"] if row["name"] == name
    ]
    schedule, workload = first["schedule"], first["workload"]
    shape = first["shapes"][0]
    warm_ups = min(each for record in records for row in record["shapes"] for each in row["warmup_iterations"])
    lines = [
        columns(_HEADS, rows),
        "",
        f"{shape['input_len']} tokens in, {shape['output_len']} out; medians of {shape['num_iterations']} iterations "
        f"after {warm_ups} or more of warm-up; speed-up of e2e over {first['arm']}: the geometric mean over "
        f"{schedule['blocks']} blocks of the medians' ratio, not the ratio of the medians above, with its interval by "
        f"block; {_MODES[schedule['mode']] if len(records) > 1 else 'one arm alone'}.",
        f"Prompts: {workload['source']} (digest {workload['digest']}). Weights: "
        f"{', '.join(sorted({str(each['weights']) for each in records}))}. Clocks: {_sources(shape)}.",
        "experts: distinct ones per layer and decode step. of floor: the least time of a decode step at measured copy "
        "and matrix rates, over the measured one.",
    ]
    return "\n".join([*lines, *_notes(records)])


def _row(record: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    metrics = row["metrics"]

    def median(name: str, digits: int) -> str:
        return "-" if metrics[name] is None else f"{metrics[name]['median']:,.{digits}f}"

    e2e, experts, floors = metrics["e2e_ms"], row["experts_per_layer_step"], row["floors"]
    fraction = floors.get("decode_step", {}).get("fraction_of_floor") if isinstance(floors, Mapping) else None
    return (
        *(record["arm"], str(row["batch_size"]), median("ttft_ms", 2), median("tpot_ms", 3), median("e2e_ms", 1)),
        "-" if e2e["low"] is None else f"{e2e['low']:,.1f} to {e2e['high']:,.1f}",
        *(median("output_tok_s", 1), median("prefill_tok_s", 0), median("j_per_tok", 3)),
        "-" if experts is None else f"{experts:.1f}",
        "-" if fraction is None else f"{100 * fraction:.0f} %",
        *_speed_up(row["versus_reference"]),
    )


def _speed_up(versus: Mapping[str, Any] | None) -> tuple[str, str]:
    if versus is None:
        return "reference", "-"
    if versus["fair"] is False:
        return "void", "not fair"
    ratio = versus["e2e_ms"]
    if ratio is None:
        return "-", "-"
    if ratio["low"] is None:
        return f"{ratio['value']:.3f}x", "none"
    ends = ratio["low"], ratio["high"]
    # as many digits as it takes to see on which side of 1 an end is
    digits = next((n for n in (3, 4) if all(round(end, n) != 1 or end == 1 for end in ends)), 5)
    return f"{ratio['value']:.3f}x", " to ".join(f"{end:.{digits}f}" for end in ends)


def _sources(shape: Mapping[str, Any]) -> str:
    """Which clock each figure is by, and which others are in the record."""
    metrics = shape["metrics"]
    named = f"e2e by {metrics['e2e_ms']['source']}, TTFT and TPOT by {metrics['ttft_ms']['source']}"
    others = sorted(set(shape["sources"]) - {metrics["e2e_ms"]["source"], metrics["ttft_ms"]["source"]})
    return f"{named}; also recorded: {', '.join(others)}" if others else named


def _notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the numbers has to know, each sentence once."""
    found: dict[str, None] = {}
    for record in records:
        kept = max(
            (each["after"] - each["before"] for each in record["memory"] if each["before"] and each["after"]), default=0
        )
        if kept > _KEPT_BYTES:
            together = any(each.get("together", 1) > 1 for each in record["memory"])
            who, whose = ("The arms together", "their processes") if together else (record["arm"], "its process")
            found[f"{who} left {kept / 2**30:.1f} GiB of GPU memory in use when {whose} had ended."] = None
        for row in record["shapes"]:
            where = f"{record['arm']} at batch {row['batch_size']}"
            for note in row["notes"]:
                found[f"{where}: {note}."] = None
            versus = row["versus_reference"]
            if versus and versus["unfair_because"]:
                found[f"{where}: no verdict, {versus['unfair_because']}."] = None
            if versus and versus["unchecked_because"]:
                found[f"Fairness of routing was not checked ({versus['unchecked_because']})."] = None
    return list(found)
