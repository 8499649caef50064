"""The options of nsys profile, and the range that it records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from moe_eval.errors import UsageError
from moe_eval.machine import nsys

REPORT = Path("out/bf16.nsys-rep")


def options_of(*words: str, captures: int = 1) -> list[str]:
    command = list(nsys.arguments(("program", "--its"), REPORT, captures=captures, options=words))
    assert command[:2] == ["nsys", "profile"]
    assert command[-2:] == ["program", "--its"]
    return command[2:-2]


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--trace=cuda"], "--trace=cuda,nvtx"),
        (["--trace", "cuda"], "--trace=cuda,nvtx"),
        (["-t", "cuda"], "--trace=cuda,nvtx"),
        (["-tcuda"], "--trace=cuda,nvtx"),
        (["--cuda-graph-trace=graph"], "--cuda-graph-trace=node"),
        (["-f", "false"], "--force-overwrite=true"),
        (["--capture-range=none"], "--capture-range=cudaProfilerApi"),
    ],
)
def test_an_option_of_the_user_s_is_in_place_of_ours(words: list[str], absent: str) -> None:
    plain, options = options_of(), options_of(*words)
    assert absent in plain
    assert options == [*(option for option in plain if option != absent), *words]


def test_another_option_is_added_last() -> None:
    assert options_of("--gpu-metrics-devices=all") == [*options_of(), "--gpu-metrics-devices=all"]


def test_several_captures_are_several_reports() -> None:
    assert "--capture-range-end=stop" in options_of()
    assert "--capture-range-end=repeat" in options_of(captures=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", ()), ("--trace=cuda -s cpu", ("--trace=cuda", "-s", "cpu")), ("--stats 'a b'", ("--stats", "a b"))],
)
def test_options_are_split_as_a_shell_splits_them(text: str, words: tuple[str, ...]) -> None:
    assert nsys.options_of(text) == words


@pytest.mark.parametrize("text", ["--output=x", "-o x", "-ox", "--output x", "-e A=1", "--env-var=A=1", "cuda", "'"])
def test_what_would_hide_the_report_or_a_secret_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--nsys_args"):
        nsys.options_of(text)


def test_a_capture_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def ranged(name: str) -> Iterator[None]:
        events.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: events.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: events.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range", ranged)
    with nsys.capture("b1"):
        events.append("work")
    assert events == ["synchronize", "start", "b1", "work", "synchronize", "stop"]
    with pytest.raises(KeyError), nsys.capture("b1"):
        raise KeyError
    assert events[-1] == "stop"
