"""Where the time of a trace goes, and what changed between two, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_eval.report.markdown import columns
from moe_eval.traces.cuts import WHOLE

_LONGEST = 100
_TOP = 10


def render(content: Mapping[str, Any]) -> str:
    """A record of one trace: a table for every phase, its times and its ceiling."""
    source = content["source"]
    gpus = ", ".join(sorted(set(source.get("gpus") or ()))) or "device not named"
    parts = [
        f"{_plain(content['trace'])}: {source.get('format')}, {_plain(gpus)}; {content['kernels']:,} kernels, "
        f"{content['copies']:,} copies, {content['sets']:,} sets; steps by: {content['steps_found_by']}; gate GEMMs: "
        f"{content['gates_told']}.",
        *map(_plain, content["notes"]),
        f"The experts ran: {content['precision_seen'] or 'not told'} on {content['moe_backend_seen'] or 'not told'} "
        f"({_plain(content['evidence'])}).",
    ]
    for name, phase in content["phases"].items():
        parts.append(_phase(name, phase))
    return "\n\n".join(parts)


def _phase(name: str, found: Mapping[str, Any]) -> str:
    aside = ", ".join(f"{count} {reason}" for reason, count in found["set_aside"].items())
    heads = ("category", "ms", "% of total", "launches", "per layer")
    rows = [
        (
            category,
            f"{each['ms']:.3f}",
            f"{100 * each['share']:.1f}",
            f"{each['launches']:.0f}",
            "-" if each["launches_per_layer"] is None else f"{each['launches_per_layer']:.1f}",
        )
        for category, each in found["categories"].items()
    ]
    rows.append(("TOTAL", f"{found['total_ms']:.3f}", "100.0", f"{found['total_launches']:.0f}", "-"))
    lines = [
        f"{name}: {found['steps']} step{'s' if found['steps'] > 1 else ''}"
        + (f" ({aside} set aside)" if aside else "")
        + ", medians per step",
        columns(heads, rows),
        "",
    ]
    if found["busy_ms"] is not None:
        wall = "no next step" if found["wall_ms"] is None else f"to the next step {found['wall_ms']:.3f} ms"
        lines.append(
            f"Busy {found['busy_ms']:.3f} ms (overlap {found['overlap_ms']:.3f} ms), idle between kernels "
            f"{found['idle_ms']:.3f} ms; {wall}."
        )
    lines.append(_ceilings(found))
    lines.append(f"Classified: {100 * found['classified']:.1f} % of the kernel time.")
    if found["unclassified"]:
        lines.append("Not classified: " + "; ".join(_named(each) for each in found["unclassified"][:5]) + ".")
    lines += ["", columns(("kernel", "category", "ms", "launches"), [_row(each) for each in found["functions"][:_TOP]])]
    return "\n".join(lines)


def _ceilings(found: Mapping[str, Any]) -> str:
    parts = []
    busy = "the kernels' time" if found["busy_ms"] is None else "busy time"
    for name, ceiling in ((busy, found["ceiling"]), ("wall time", found["wall_ceiling"])):
        if ceiling is not None:
            free = "no limit" if ceiling["if_free"] is None else f"{ceiling['if_free']:.2f}x"
            parts.append(
                f"{free} of {name} if the expert GEMMs ({100 * ceiling['expert_gemm_share']:.1f} % of it) took no "
                f"time, {ceiling['if_twice_as_fast']:.2f}x if half"
            )
    return f"Ceiling: {'; '.join(parts)}."


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    category = found["category"] + "".join(f" + {each}" for each in found["fused_with"])
    return (_plain(found["name"]), category, f"{found['ms']:.3f}", f"{found['launches']:.0f}")


def _named(found: Mapping[str, Any]) -> str:
    return f"{_plain(found['name'])} ({found['ms']:.3f} ms)"


def difference(found: Mapping[str, Mapping[str, Any]], names: Sequence[str], texts: Sequence[str]) -> str:
    """The difference of two traces, phase by phase.

    Args:
        found: by phase, kernels_record.difference.
        names: of the two.
        texts: a paragraph for every phase.
    """
    parts = []
    for (name, each), text in zip(found.items(), texts, strict=True):
        rows: list[tuple[str, ...]] = [
            (
                category,
                f"{one['before_ms']:.3f}",
                f"{one['after_ms']:.3f}",
                _signed(one["change_ms"]),
                f"{one['after_launches'] - one['before_launches']:+.0f}",
            )
            for category, one in each["categories"].items()
        ]
        before = sum(one["before_ms"] for one in each["categories"].values())
        rows.append(("TOTAL", f"{before:.3f}", f"{before + each['kernel_change_ms']:.3f}",
                     _signed(each["kernel_change_ms"]), "-"))  # fmt: skip
        if each["step_ms"] is not None:
            rows += [
                ("- overlap", "-", "-", _signed(-each["overlap_change_ms"]), "-"),
                ("+ nothing running", "-", "-", _signed(each["waiting_change_ms"]), "-"),
                ("+ residual", "-", "-", _signed(each["residual_ms"]), "-"),
                (
                    "= step" if each["step_is"] == "wall" else "= span of kernels",
                    *(f"{one:.3f}" for one in each["step_ms"]),
                    _signed(each["step_ms"][1] - each["step_ms"][0]),
                    "-",
                ),
            ]
        heads = (
            f"{name}, ms" + ("" if name == WHOLE else " per step"),
            _plain(names[0]),
            _plain(names[1]),
            "change",
            "launches",
        )
        parts.append(columns(heads, rows))
        for which in ("new", "vanished"):
            if each[which]:
                listed = "; ".join(_named(one) for one in each[which][:5])
                parts.append(f"{which.capitalize()} functions: {listed}.")
        parts.append(_plain(text, len(text)))
    return "\n\n".join(parts)


def _signed(ms: float) -> str:
    text = f"{ms:+.3f}"
    return "+0.000" if text == "-0.000" else text


def _plain(text: str, longest: int = _LONGEST) -> str:
    """A name that breaks neither a terminal nor a table."""
    shown = "".join(each if each.isprintable() else " " for each in text).replace("|", "/")
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
