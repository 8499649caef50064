"""Where a command's words go: one object, the conclusion alone, and plain lines in a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moe_eval.cli import main
from moe_eval.cli.options.commands import COMMANDS
from moe_eval.cli.options.option import options_of
from moe_eval.records import disk
from moe_eval.records.comparison import COMPARISON_FILE
from tests.doubles import recorded_arms as made

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def ran(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds a finished run of bf16 and fp8. It is the working directory."""
    shutil.copytree(recorded, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def printed(capsys: Capture) -> tuple[dict[str, Any], str]:
    out, err = capsys.readouterr()
    content: dict[str, Any] = json.loads(out)
    return content, err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_the_three(name: str) -> None:
    assert {"json", "quiet", "verbose"} < set(options_of(COMMANDS[name].options))


def test_the_object_of_a_comparison_is_its_record(ran: Path, capsys: Capture) -> None:
    assert main(["compare", "first", "--output_dir", "out", "--json"]) == 0
    content, err = printed(capsys)
    record = disk.read_object(Path("out") / COMPARISON_FILE, "moe-eval compare")
    assert content == {**record, "report": str(Path("out") / "report.html")}
    assert "fp8 " in err
    assert "Report: " in err


@pytest.mark.parametrize("words", [[], ["."], ["first"], ["../runs"]])
def test_a_folder_of_folders_is_compared_and_this_one_by_default(ran: Path, words: list[str], capsys: Capture) -> None:
    assert main(["compare", *words, "--output_dir", "out", "--json"]) == 0
    assert [pair["other"] for pair in printed(capsys)[0]["pairs"]] == ["fp8"]


def test_several_runs_in_a_folder(ran: Path, capsys: Capture) -> None:
    (ran / "second").mkdir()
    made.write(ran / "second", [made.arm("nvfp4", {1: [[50.0, 51.0]] * 3}, run_id="f" * 32)])
    assert main(["compare", "--output_dir", "out", "--json"]) == 0
    assert [arm["name"] for arm in printed(capsys)[0]["arms"]] == ["bf16", "fp8", "nvfp4"]


def test_a_gate_is_in_the_object(ran: Path, capsys: Capture) -> None:
    assert main(["compare", "first", "--output_dir", "out", "--json", "--gate", "speed>=99"]) in (1, 2)
    gate = printed(capsys)[0]["gate"]
    assert gate["result"] in ("fails", "not decided")
    assert "speed>=99" in gate["reasons"][0]


@pytest.mark.parametrize(
    "words",
    [
        "rum",
        "compare nowhere",
        "run --scope none",
        "run --engine x",
        "kernels nothing.json",
        "log nowhere",
        "completion",
    ],
)
def test_a_failure_is_an_object_with_the_same_code(words: str, ran: Path, capsys: Capture) -> None:
    code = main(words.split())
    message = capsys.readouterr().err
    assert main([*words.split(), "--json"]) == code == 2
    content, err = printed(capsys)
    assert err == message
    assert content["error"] in message


def test_quiet_is_the_conclusion_alone(ran: Path, capsys: Capture) -> None:
    assert main(["compare", "first", "--output_dir", "out", "--quiet", "--gate", "speed>=0.1"]) in (0, 2)
    out, err = capsys.readouterr()
    verdict, condition = out.splitlines()
    assert verdict.startswith("fp8")
    assert condition.startswith("speed>=0.1 ")
    assert err == ""


def test_an_end_in_a_file_is_plain_lines(ran: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["compare", "first", "--output_dir", "out"]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    lines = out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert [cell.strip() for cell in table[0].strip("|").split("|")][:3] == ["arm", "figure", "value"]
    assert all(line.startswith("| fp8") for line in table[2:])
    assert any(line.startswith("fp8") for line in lines)
    assert any(line.startswith("Report: ") for line in lines)
