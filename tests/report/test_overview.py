"""Many arms: the best in full, each of them in a table, and nothing lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moe_eval.cli import execute
from moe_eval.cli.conclude import concluded
from moe_eval.cli.options.measuring import PerfOptions
from moe_eval.comparison import pairs
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.verdicts import Verdict
from moe_eval.report import charts, markdown, overview, sections
from tests.doubles import recorded_arms
from tests.doubles.report_page import read

# in turns better and worse than the reference
MS = {"bf16": 100.0, **{f"arm{at}": 100.0 + (-1) ** at * (10 + at) for at in range(9)}}
BEST = [f"arm{at}" for at in (7, 5, 3, 1)] + [f"arm{at}" for at in (0, 2, 4, 6, 8)]


@pytest.fixture(scope="module")
def arms() -> list[ArmRecords]:
    """Nine arms at two batch sizes, four of which pay, and their reference."""
    return [
        recorded_arms.arm(name, {batch: [[ms + load / 100] * 2 for load in range(4)] for batch in (1, 8)})
        for name, ms in MS.items()
    ]


@pytest.fixture(scope="module")
def many(arms: list[ArmRecords]) -> ComparisonRecord:
    return pairs.compare(arms)


def test_charts_and_tiles_are_of_the_best_and_the_table_is_of_all(many: ComparisonRecord) -> None:
    report = sections.of_report(many, None)
    assert [answer.title for answer in report.answers] == [f"{name} against bf16" for name in BEST[:6]]
    (table,) = report.overview
    assert [row[0] for row in table.rows] == BEST
    verdicts = {pair.other: pair.verdict.value for pair in many.pairs}
    assert {row[0]: row[1] for row in table.rows} == verdicts
    (speed,) = charts.speed(overview.leading(many))
    assert {tip.partition(" ")[0] for tip in speed.tips.values()} == {"bf16", *BEST[:6]}
    assert len({tip.rpartition("-")[0] for tip in speed.tips}) == 7, "each has its colour"
    assert report.notes[0] == "Tiles and charts are of the best 6 arms. 3 more are in the table."


def test_what_the_page_folds_and_markdown_leaves_out_is_the_rest(many: ComparisonRecord) -> None:
    page = "".join(read(many).text)
    assert all(pair.sentence in page for pair in many.pairs)
    text = markdown.render(many, None)
    shown = {pair.other for pair in many.pairs if pair.sentence in text}
    assert shown == set(BEST[:6])
    assert all(f"| {name} " in text for name in BEST)


def test_a_terminal_has_a_row_for_each_and_sentences_of_the_best(
    many: ComparisonRecord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")  # a row is a line where heads fold
    concluded(many, page=Path("report.html"))
    lines = capsys.readouterr().out.splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith(" ──"))
    rows = [line.split() for line in lines[head + 1 : head + 10]]
    assert [row[0] for row in rows] == BEST
    assert {row[0]: row[1] for row in rows} == {pair.other: pair.verdict.value for pair in many.pairs}
    ratios = {pair.other: pair.headlines[0].ratio for pair in many.pairs}
    assert {row[0]: float(row[2].rstrip("x")) for row in rows} == pytest.approx(ratios, rel=0.005)
    assert [line.partition(" ")[0] for line in lines if line.startswith("arm")] == BEST[:6]
    assert (
        "Sentences and other tables are of the best 6 arms. 3 more are in the table. The report has all."
        in " ".join(lines)
    )
    assert len(lines) < 9 + 6 * 3 + 10


def test_perf_s_own_table_is_of_the_best(arms: list[ArmRecords], many: ComparisonRecord) -> None:
    table = execute._table(PerfOptions(), execute.Outcome(many, plan=None, arms=arms))  # type: ignore[arg-type]
    assert table is not None
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.lines(None) if line.startswith("| arm")]
    assert {name for name, batch in rows if batch in "18"} == set(BEST[:6])


def test_few_arms_are_all_shown_in_full_in_their_order(many: ComparisonRecord) -> None:
    few = replace(many, pairs=many.pairs[:6])
    report = sections.of_report(few, None)
    assert [answer.title for answer in report.answers] == [f"arm{at} against bf16" for at in range(6)]
    assert report.overview == ()
    assert "answers" not in {fold.ident for fold in report.folds}


def test_an_arm_that_cannot_be_compared_or_is_broken_is_in_the_table(many: ComparisonRecord) -> None:
    first, second, *rest = many.pairs
    first = replace(first, verdict=Verdict.BROKEN, headlines=())
    second = replace(second, verdict=Verdict.NOT_COMPARABLE, headlines=())
    (table,) = overview.table(replace(many, pairs=(first, second, *rest)))
    rows = {row[0]: row[1:3] for row in table.rows}
    assert rows["arm0"] == ("broken", "-")
    assert rows["arm1"] == ("not comparable", "-")
