"""Tasks in reports: recovery and flips in tables, documents to be unfolded, and text from outside that stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from moe_eval.records.task_comparison import TaskComparison
from moe_eval.report import console, markdown, task_changes, task_table, tile_table
from tests.doubles import compared_tasks
from tests.doubles.report_page import read

BEFORE, AFTER = "Recovery: fp8 against bf16", "Tasks: fp8 against bf16, paired by document (0.01 is allowed)"


def test_recovery_is_a_table_with_the_harness_s_errors() -> None:
    tables = read(compared_tasks.comparison()).tables
    assert tables[BEFORE] == [
        ["task", "metric", "bf16", "fp8", "recovery"],
        ["arc_easy", "acc", "0.8000 ± 0.0283", "0.7600 ± 0.0302", "95.0 %"],
        ["pages", "word_perplexity", "20.0000", "21.0000", "95.2 %"],
    ]
    heads, first, _ = tables[AFTER]
    row = dict(zip(heads, first, strict=True))
    assert (row["right to wrong"], row["wrong to right"], row["McNemar p"]) == ("14", "6", "0.115")


def test_tasks_of_shares_have_an_average_as_reports_of_llm_compressor_do() -> None:
    comparison = compared_tasks.comparison()
    (row, *_), pair = comparison.pairs[0].tasks, comparison.pairs[0]

    def rows(*tasks: TaskComparison) -> list[tuple[str, ...]]:
        (table, *_) = task_table.tables(replace(comparison, pairs=(replace(pair, tasks=tasks),)))
        return list(table.rows)

    other = replace(row, task="gsm8k", reference=0.6, other=0.57)
    assert rows(row, other)[-1] == ("average", "-", "0.7000", "0.6650", "95.0 %")
    assert rows(row)[-1][0] == "arc_easy"


def test_every_document_that_changed_can_be_unfolded() -> None:
    page = read(compared_tasks.comparison())
    (heads, *rows) = page.tables["arc_easy: 14 right to wrong and 6 wrong to right of 200: fp8 against bf16"]
    assert [row[heads.index("change")] for row in rows] == ["right to wrong"] * 6 + ["wrong to right"] * 4
    assert rows[2][heads.index("margin in nats")] == "+2.50 to -0.50"
    assert len([entry for entry in page.all("details") if entry.get("class") == "example"]) == 11
    text = "".join(page.text)
    for part in ("question 9\nin two lines", "first 9", "second 9", "because of 9", "worse, -20.5000 to -22.5000"):
        assert part in text


def test_a_terminal_and_markdown_have_the_first_of_both_directions(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compared_tasks.comparison(compared_tasks.HOSTILE)
    (table,) = task_changes.few(comparison)
    assert [row[table.heads.index("document")] for row in table.rows] == ["0", "6", "1"]
    console.print_renderable(tile_table.render(comparison))
    for text in (capsys.readouterr().out, markdown.render(comparison, None)):
        assert "Flips: fp8 against bf16. arc\\_easy" in text or "Flips: fp8 against bf16. arc_easy" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert "Recovery" in text
    assert not re.search(r"(?<!\\)[<`]|(?<!\\)\[l\]|^# heading", text, re.MULTILINE)
    lines = [line for line in text.split("\n") if line.startswith("| arc")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[-3:]}) == 1


def test_text_from_outside_stays_text_on_the_page() -> None:
    page = read(compared_tasks.comparison(compared_tasks.HOSTILE))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img"}
    text = "".join(page.text)
    assert "<script>document.title = 'run'</script>" in text
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r"[\x00\x07\x1b\u202e]", text)
