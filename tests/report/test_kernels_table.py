"""Tables of traces: complete, aligned, and safe for names of any kind."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from moe_eval.comparison import kernels
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import CaptureFault, CaptureWarning, Collectives, KernelsRecord, LateRank, RankTime
from moe_eval.report import kernels_table, kernels_words
from moe_eval.report.console import print_renderable
from moe_eval.report.renderable import Renderable
from moe_eval.traces.kernel_table import Launches
from tests.doubles.timeline import generation

LOST = Launches(np.array([1, 2]), np.array([7, 7]), np.array([True, True]))
HOSTILE = "[red]evil[/red] :smile: a|b\t\x1b[31m\u202e end"


def record(*, name: str = HOSTILE, fp8: bool = False) -> KernelsRecord:
    recording = generation(decode=2, fp8=fp8)
    recording.run("other", name, 900_000)
    return kernels_record.make(f"{name}.json", recording.trace(), "fp8" if fp8 else "bf16")


def plain(renderable: Renderable, capsys: pytest.CaptureFixture[str]) -> str:
    print_renderable(renderable)
    return capsys.readouterr().out


def test_a_name_is_no_markup_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    for full in (False, True):
        text = plain(kernels_table.trace(record(), full=full), capsys)
        assert "| [red]evil[/red] :smile: a/b [31m end" in text
        assert not {"\x1b", "\t", "\u202e"} & set(text)


def test_a_file_gets_whole_rows_of_one_width(capsys: pytest.CaptureFixture[str]) -> None:
    text = plain(kernels_table.trace(record(name="k" * 90), full=True), capsys)
    tables = [table.splitlines() for table in text.split("\n\n") if table.startswith("|")]
    assert len(tables) == 4
    for rows in tables:
        assert len({len(row) for row in rows}) == 1
    assert any("k" * 90 in row for row in tables[-1])
    assert "\u2026" not in text


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the tables by the first, which is at 1. Of rows with the same first the last."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[1]: cells for cells in lines}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen_of(make: Callable[[], Renderable], width: int) -> list[str]:
    with mock.patch.object(sys, "stdout", Terminal()) as screen, mock.patch.dict(os.environ, COLUMNS=f"{width}"):
        print_renderable(make())
    return screen.getvalue().splitlines()


def test_a_narrow_terminal_folds_the_names_of_the_full_output_and_cuts_none() -> None:
    name = "".join(f"part{at:02}" for at in range(15))
    lines = screen_of(lambda: kernels_table.trace(record(name=name), full=True), 60)
    full = lines[next(at for at, line in enumerate(lines) if line.startswith("The precision that was seen")) :]
    assert name in "".join(line.split()[0] for line in full if line)
    assert "\u2026" not in "".join(full)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_rows_of_the_compact_output_are_one_line_in_a_terminal(width: int) -> None:
    lines = screen_of(lambda: kernels_table.trace(record(name="k" * 90)), width)
    assert len(lines) <= 47
    assert all(len(line) <= width for line in lines)
    for name in ("expert_gemm", "routing_permute", "TOTAL"):
        assert sum(line.startswith(f" {name} ") for line in lines) == 1


def test_phases_stand_side_by_side_where_they_fit() -> None:
    names = ("bf16", "fp8")
    changes = kernels.changes(record(name="old"), record(name="new", fp8=True), names, {})
    for width, tables in ((70, 2), (130, 1)):
        lines = screen_of(lambda: kernels_table.paragraphs(kernels_table.difference(changes, names)), width)
        assert sum(line.startswith(" TOTAL ") for line in lines) == tables


def test_a_difference_shows_every_phase_with_its_sum(capsys: pytest.CaptureFixture[str]) -> None:
    records = [record(name="old"), record(name="new", fp8=True)]
    names = ("bf16", "[b]fp8[/b]")
    text = plain(kernels_table.comparison(records, kernels.changes(*records, names, {}), names), capsys)
    for phase in ("prefill", "decode"):
        assert f"{phase} bf16" in text
        assert f"\n{phase}: a step of" in text
        assert f"With free experts a {phase} step would take" in text
    by_name = {name: row[1:-1] for name, row in rows_of(text).items()}
    assert {"TOTAL", "- overlap", "+ nothing running", "+ residual", "= step"} <= set(by_name)
    assert by_name["new"][2:4] == ["decode", "[b]fp8[/b]"]
    assert by_name["old"][2:4] == ["decode", "bf16"]
    # two quantisations in three layers of 4.8 us in prefill, and of 0.6 us in decode
    assert by_name["quant_dequant"][1:] == ["none", "0.029", "+0.029", "new", "none", "0.004", "+0.004", "new"]
    assert "0.000" not in text


def test_a_figure_that_a_warning_withholds_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    whole = record(name="x")
    spoiled = ("wall_ms", "gap_ms", "idle_ms", "wall_ceiling", "span_ms")
    decode = replace(whole.phases["decode"], **dict.fromkeys(spoiled))
    warning = CaptureWarning(CaptureFault.PROFILER_IDLE, "The profiler made idle time.", "decode", spoiled)
    seen = replace(whole, phases={**whole.phases, "decode": decode}, warnings=(warning,))
    text = plain(kernels_table.trace(seen), capsys)
    lines = text.splitlines()
    assert lines[3].startswith(
        "Warning: Idle time made by the profiler (decode): The profiler made idle time. Withheld: "
    )
    assert lines[2].startswith("What a decode step takes is withheld. With free experts its kernels would take 0.")
    rows = rows_of(text)
    assert (rows["step"][5], rows["nothing running"][5]) == ("withheld", "withheld")
    assert "withheld" not in rows["step"][2]
    changes = kernels.changes(whole, seen, ("a", "b"), {})
    text = plain(kernels_table.comparison([whole, seen], changes, ("a", "b")), capsys)
    rows = rows_of(text)
    assert [rows[name][8] for name in ("+ nothing running", "= step")] == ["withheld", "withheld"]
    assert "withheld" not in rows["= step"][2:6]
    also = replace(decode, busy_ms=None)
    warning = replace(warning, withheld=(*spoiled, "busy_ms"))
    text = plain(kernels_table.trace(replace(seen, phases={"decode": also}, warnings=(warning,))), capsys)
    assert "What it would take with free experts is withheld." in text


def test_a_figure_that_the_trace_does_not_have_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    whole = record(name="x")
    untimed = dict.fromkeys(("busy_ms", "overlap_ms", "span_ms", "idle_ms", "wall_ms", "gap_ms", "wall_ceiling"))
    text = plain(
        kernels_table.trace(replace(whole, phases={"decode": replace(whole.phases["decode"], **untimed)})), capsys
    )
    assert "A decode step has 0." in text
    assert "withheld" not in text
    assert "| step" not in text


def test_ranks_are_a_sentence_a_column_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    whole = record(name="x")
    late = LateRank(1, 90, 2.5, {"expert_gemm": 2.125, "launch gaps": 0.25, "norm": 0.125})
    decode = replace(
        whole.phases["decode"],
        categories={
            name: replace(time, spread_ms=0.0 if name == "norm" else 0.75)
            for name, time in whole.phases["decode"].categories.items()
        },
        ranks=(RankTime(0, 0, 4.0, 1.5, 3.25, 900, 512), RankTime(1, 1, 4.0, 2.0, 0.0, 900)),
        collectives=Collectives(98, 2, 0.5, None, (late,)),
        expert_imbalance=1.14,
    )
    text = plain(kernels_table.trace(replace(whole, devices=2, phases={"decode": decode}), full=True), capsys)
    for sentence in (
        "decode: in collectives 2 ranks transfer for 0.500 ms and wait for none to 3.250 ms a step. ",
        "Rank 1 is last at 90 of 98 of them, by 2.500 ms, because of ",
        " because of expert_gemm (2.125 ms) and launch gaps (0.250 ms).",
        "2 collectives of the phase lack a rank and count as neither.",
        "The slowest rank's expert GEMMs take 1.14 times the mean.",
    ):
        assert sentence in text
    assert "Medians over the steps of the slowest rank, in ms per step:" in text
    by_name = {name: row[1:-1] for name, row in rows_of(text).items()}
    assert by_name["category"][1:] == ["decode ms", "%", "spread", "launches"]
    assert (by_name["expert_gemm"][3], by_name["norm"][3]) == ("0.750", "none")
    assert by_name["0"][1:9] == ["0", "4.000", "1.500", "3.250", "900", "512", "none", "none"]
    assert by_name["1"][5:] == ["900", "-", "90", "2.500", "expert_gemm 2.125, launch gaps 0.250, norm 0.125"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "none"), (1e-12, "none"), (-1e-12, "none"), (0.0004, "<0.001"), (1234.5, "1,234.500")],
)
def test_times_as_they_are_written(value: float | None, text: str) -> None:
    assert kernels_words.ms(value) == text


def test_shares_and_counts_as_they_are_written() -> None:
    assert [kernels_words.percent(share) for share in (0, 0.0001, 0.0512, 1)] == ["none", "<0.1", "5.1", "100.0"]
    assert [kernels_words.count(size) for size in (None, 0, 2.5, 1000)] == ["-", "none", "2.5", "1,000"]
    assert kernels_words.ms(-0.5, signed=True) == "-0.500"
    assert kernels_words.ms(0.5, signed=True) == "+0.500"


def test_warnings_come_first_and_what_they_withhold_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    trace = generation(decode=2).trace()
    slow = kernels_record.make("t", trace, None, unprofiled_ms=[1.0, 1.0], profiled_ms=2.0)
    text = " ".join(plain(kernels_table.trace(slow), capsys).split())
    assert text.index("Warning: Profiler overhead: ") < text.index("| category")
    assert "Withheld: span, wall, idle, gap, wall ceiling." in text
    spoiled = kernels_record.make("t", replace(trace, unanswered=LOST), None)
    text = plain(kernels_table.trace(spoiled), capsys)
    assert text.count("What it would take with free experts is withheld.") == len(spoiled.phases)
    assert "withheld" not in plain(kernels_table.trace(kernels_record.make("t", trace, None)), capsys)
