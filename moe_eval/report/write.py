"""Concludes from recorded arms: the comparison as JSON, and the report as HTML and Markdown."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_eval.comparison import pairs
from moe_eval.records import disk
from moe_eval.records.by_arm import ArmResults
from moe_eval.report import markdown, page

COMPARISON, PAGE, TEXT = "comparison.json", "report.html", "report.md"


def conclude(
    arms: Sequence[ArmResults], folder: Path, run: Mapping[str, Any], across: Collection[str] = ()
) -> dict[str, Any]:
    """Compare arms, write comparison.json, report.html and report.md, and return the comparison.

    Args:
        arms: the reference first.
        run: see page.render.
        across: what may differ nevertheless, see compare.make.

    Returns:
        What compare.make gives, and `skipped`.
    """
    found = {**pairs.make(arms, across), "skipped": skipped(run, {arm.name for arm in arms})}
    disk.write_json(folder / COMPARISON, found)
    _write(folder / PAGE, page.render(found, run))
    _write(folder / TEXT, markdown.render(found, run))
    return found


def skipped(run: Mapping[str, Any], there: Collection[str] = ()) -> list[dict[str, Any]]:
    """`arm`, `evaluator` (None for all of them) and `reason` of everything that a run was asked for and did not begin.

    Args:
        run: what run.json holds. `there`: the arms that are recorded.
    """
    found = [
        {"arm": arm, "evaluator": evaluator, "reason": reason}
        for arm, evaluator, reason in run.get("skipped") or ()
        if evaluator is not None or arm not in there
    ]
    absent = [name for name in run.get("evaluators") or () if name not in there]
    return [*found, *({"arm": name, "evaluator": None, "reason": "it was not measured"} for name in absent)]


def _write(file: Path, text: str) -> None:
    """Whole or not at all, as records are."""
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, prefix=f".{file.name}.", delete=False, encoding="utf-8"
    ) as out:
        out.write(text)
    os.chmod(out.name, 0o644)
    os.replace(out.name, file)


def told(comparison: Mapping[str, Any]) -> str:
    """The verdicts as a command prints them: a sentence for every pair, its reason, and what would settle it."""
    lines = []
    for pair in comparison["pairs"]:
        lines.append(f"Verdict: {pair['sentence']}." if pair["sentence"] else f"Verdict: {pair['verdict']}.")
        if pair["because"]:
            lines.append(f"  because {pair['because']}")
        if pair["settled_by"]:
            lines.append(f"  would settle it: {pair['settled_by']}")
    return "\n".join(lines) or "Verdict: there is one arm alone, and nothing to compare it with."
