"""`moe-eval compare` on what lm-eval logged: tables, gates, sources and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe_eval.cli import main
from moe_eval.records.harness import RECORD_FILE, RESULTS_FILE
from tests.doubles import harness_results as made
from tests.doubles.harness_runs import RECORD

GOOD, WORSE = [1.0] * 300 + [0.0] * 200, [0.0] * 40 + [1.0] * 260 + [0.0] * 200


def compared(folder: Path, *words: str | Path) -> int:
    return main(["compare", *map(str, words), "--output_dir", str(folder / "out")])


def test_a_table_of_tasks_is_in_every_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scores in (("a", GOOD), ("b", WORSE)):
        made.write(tmp_path / name / "org__model", {"arc_easy": scores})
    assert compared(tmp_path, tmp_path / "a", tmp_path / "b") == 0
    out = capsys.readouterr().out
    assert "arc_easy drops by 0.080 acc" in out
    assert "right to wrong" in out
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "right to wrong" in text
        assert "drops" in text
    (pair,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]
    assert pair["tasks"][0]["flips"]["losses"] == 40
    assert compared(tmp_path, tmp_path / "a", tmp_path / "b", "--max_drop", "0.2") == 0
    assert "arc_easy holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        ("task:arc_easy>=-0.01", 1),
        ("task:arc_easy>=-0.2,flips<=0.2", 0),
        ("model@b:task:arc_easy>=-0.2", 0),
        ("task:arc_easy>=-0.08", 2),
        ("task:absent>=-0.01", 2),
        ("flips<=0.02", 1),
        ("flips<=0.08", 2),
        ("flips<=2", 2),
        ("task:>=1", 2),
    ],
)
def test_a_gate_has_tasks_and_flips(tmp_path: Path, gate: str, code: int) -> None:
    for name, scores in (("a", GOOD), ("b", WORSE)):
        made.write(tmp_path / name / "model", {"arc_easy": scores})
    assert compared(tmp_path, tmp_path / "a", tmp_path / "b", "--gate", gate) == code


def test_a_run_of_the_plug_in_is_a_source_and_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = made.write(tmp_path / "ours" / "model", {"t": GOOD})
    run = tmp_path / "ours" / "run"
    run.mkdir()
    RECORD.write(run)
    (run / RESULTS_FILE).write_text(next(beside.glob("results_*")).read_text())
    (run / "samples_t.jsonl").write_text(next(beside.glob("samples_*")).read_text())
    assert (run / RECORD_FILE).is_file()
    made.write(tmp_path / "theirs" / "other", {"t": WORSE})
    assert compared(tmp_path, tmp_path / "ours", tmp_path / "theirs") == 0
    assert "other against bf16" in capsys.readouterr().out


def test_other_prompts_end_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write(tmp_path / "a", {"t": GOOD})
    made.write(tmp_path / "b", {"t": GOOD}, prompts="another")
    assert compared(tmp_path, tmp_path / "a", tmp_path / "b") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "t has other prompts or targets in 500 of 500 documents, first in document 0." in line
