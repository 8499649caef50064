"""Records of schema 1, made before records had types: they are compared and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_eval.comparison import pairs
from moe_eval.records import by_arm, run_files
from moe_eval.report import markdown, quality_table, speed_table
from moe_eval.report.console import plain_text
from tests.doubles.report_page import html, parsed

GOLDEN = Path(__file__).parents[1] / "records" / "golden_schema_1"


@pytest.mark.parametrize("command", ["run", "perf", "ppl"])
def test_a_golden_folder_is_reported(command: str) -> None:
    arms = by_arm.read(GOLDEN / command)
    comparison = pairs.compare(arms)
    run = next(iter(run_files.read_run(GOLDEN / command)), None)
    page, text = parsed(html(comparison, run)), markdown.render(comparison, run)
    assert comparison.pairs
    for pair in comparison.pairs:
        assert " ".join(pair.sentence.split()) in "".join(page.text)
        assert f"{pair.other} against {pair.reference}: {pair.verdict.value}" in text
    timed = [arm.latency for arm in arms if arm.latency]
    scored = [arm.quality for arm in arms if arm.quality]
    assert len(timed) == {"run": 2, "perf": 3, "ppl": 0}[command]
    assert len(scored) == {"run": 2, "perf": 0, "ppl": 3}[command]
    if timed:
        table = plain_text(speed_table.render(timed, comparison))
        assert all(f"| {record.arm} " in table for record in timed)
    if scored:
        table = plain_text(quality_table.render(scored, comparison))
        assert all(f"| {record.arm} " in table for record in scored)
