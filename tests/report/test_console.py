"""Progress and tables where output is no terminal: plain lines, complete, and nothing that moves a cursor."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest

from moe_eval.report import console
from moe_eval.report.progress import TaskProgress


@dataclass(frozen=True)
class _Task:
    arm: str
    name: str


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _show_tasks() -> None:
    tasks = [_Task("bf16", "quality"), _Task("fp8", "latency_b1")]
    with TaskProgress() as progress:
        progress.ready(tasks)
        for task, reason in zip(tasks, (None, "Out of memory."), strict=True):
            progress.begun(task)
            progress.done(task, reason)


def test_tasks_are_one_plain_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    _show_tasks()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "moe-eval: bf16 quality began, task 1 of 2.",
        "moe-eval: bf16 quality ended after 0.0 s.",
        "moe-eval: fp8 latency_b1 began, task 2 of 2.",
        "moe-eval: fp8 latency_b1 failed after 0.0 s: Out of memory.",
    ]


def test_a_terminal_gets_a_display_with_failures_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    _show_tasks()
    output = terminal.getvalue()
    assert "moe-eval: fp8 latency_b1 failed after 0.0 s: Out of memory." in output
    assert "2/2" in output
    assert "began" not in output


def test_sentences_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\rb\x1b[31mc\nd [red]e[/red]")
    assert capsys.readouterr().err == "moe-eval: a b [31mc d [red]e[/red]\n"


def test_tables_are_complete_and_plain_in_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "name " * 60
    console.print_renderable(console.text_table([[("arm", "[b]x[/b]"), ("note", long)], [("arm", "y"), ("note", "1")]]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "[b]x[/b]", long.strip(), ""]
    assert all(character.isprintable() for line in lines for character in line)


@pytest.mark.parametrize("most", ["", "at most "])
def test_the_minutes_left_follow_the_pace_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], most: str
) -> None:
    """Tasks take twice as long as planned. One that fails says nothing about the pace."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tasks = [_Task("bf16", name) for name in ("a", "b", "c", "d")]
    with TaskProgress() as progress:
        progress.ready(tasks, [100.0, 20.0, 200.0, 100.0], may_end_early=bool(most))
        for task, seconds, reason in zip(tasks, (200.0, 0.5, 400.0, 200.0), (None, "Broken.", None, None), strict=True):
            progress.begun(task)
            now[0] += seconds
            progress.done(task, reason)
    lines = capsys.readouterr().err.splitlines()
    assert f"bf16 d began, task 4 of {most}4." in "".join(lines)
    ended = [line.partition(" ended after ")[2] for line in lines if " ended " in line]
    assert ended == [
        f"200.0 s, and {most}about 11 minutes are left.",
        f"400.0 s, and {most}about 3 minutes are left.",
        "200.0 s.",
    ]
