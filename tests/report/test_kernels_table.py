"""Tables of traces: complete, aligned, and safe for names of any kind."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from moe_eval.comparison import kernels
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord
from moe_eval.report import kernels_table
from moe_eval.report.console import print_renderable
from tests.doubles.timeline import generation

HOSTILE = "[red]evil[/red] :smile: a|b\t\x1b[31m\u202e end"


def record(*, name: str = HOSTILE, fp8: bool = False) -> KernelsRecord:
    recording = generation(decode=2, fp8=fp8)
    recording.run("other", name, 900_000)
    return kernels_record.shortened(kernels_record.make(f"{name}.json", recording.trace(), "bf16"))


def plain(renderable: RenderableType, capsys: pytest.CaptureFixture[str]) -> str:
    print_renderable(renderable)
    return capsys.readouterr().out


def test_a_name_is_no_markup_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    text = plain(kernels_table.trace(record()), capsys)
    shown = "[red]evil[/red] :smile: a/b  [31m  end"
    assert f"| {shown}" in text
    assert f"{shown}.json:" in text
    assert not {"\x1b", "\t", "\u202e"} & set(text)


def test_a_file_gets_whole_rows_of_one_width(capsys: pytest.CaptureFixture[str]) -> None:
    text = plain(kernels_table.trace(record(name="k" * 90)), capsys)
    tables = [table.splitlines() for table in text.split("\n\n") if table.startswith("|")]
    assert len(tables) == 4
    for rows in tables:
        assert len({len(row) for row in rows}) == 1
    assert any("k" * 90 in row for row in tables[-1])
    assert "\u2026" not in text


def test_a_narrow_terminal_folds_cells_and_cuts_none() -> None:
    screen = io.StringIO()
    name = "".join(f"part{at:02}" for at in range(15))
    Console(file=screen, force_terminal=True, no_color=True, width=60).print(kernels_table.trace(record(name=name)))
    assert "\u2026" not in screen.getvalue()
    cells = [line.split("|")[1].strip() for line in screen.getvalue().splitlines() if line.startswith("|")]
    assert name in "".join(cells)


def test_a_difference_shows_every_phase_with_its_sum(capsys: pytest.CaptureFixture[str]) -> None:
    changes = kernels.changes(record(name="old"), record(name="new", fp8=True), ("bf16", "[b]fp8[/b]"), {})
    text = plain(kernels_table.difference(changes, ("bf16", "[b]fp8[/b]")), capsys)
    for phase in ("prefill", "decode"):
        assert f"| {phase}, ms per step" in text
        assert f"{phase}: the expert GEMMs of [b]fp8[/b] take" in text
    for line in ("| TOTAL", "| - overlap", "| + nothing running", "| + residual", "| = step"):
        assert text.count(line) >= 1
    assert "New kernels: new (" in text
    assert "Vanished kernels: old (" in text
