"""A trace of a server under load: when it is taken, and what it says of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from moe_eval.data.served_requests import Lengths, LoadPoint, of_stream
from moe_eval.engines.endpoint.server import Server
from moe_eval.errors import EngineError
from moe_eval.evaluators import load_generator, serving_trace
from moe_eval.evaluators.load_generator import Drive
from moe_eval.records.kernels import KernelsRecord
from tests.doubles import chrome_trace
from tests.doubles.arm_process import FACTS

GPU_FACTS = replace(FACTS, device="cuda:0")


@dataclass
class Play:
    """A server whose users are there until `ends`. Its profiler leaves a trace of vLLM's shape."""

    write: Callable[[Path], object] = chrome_trace.write
    facts = GPU_FACTS
    driven: list[Drive] = field(default_factory=list)
    ends: bool = False

    def check(self) -> None:
        """It runs."""

    def running(self) -> float | None:
        return 3.0

    @contextmanager
    def profiled(self, target: Path) -> Iterator[None]:
        yield
        self.write(target)
        self.ends = True


def trace(play: Play, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 30) -> KernelsRecord:
    def run(drive: Drive, *_: object) -> None:
        play.driven.append(drive)
        if len(play.driven) == 1:  # the warm-up
            return
        limit = time.monotonic() + seconds
        while not play.ends and time.monotonic() < limit:
            time.sleep(0.005)

    monkeypatch.setattr(load_generator, "run", run)
    monkeypatch.setattr(serving_trace, "CAPTURED_SECONDS", 0.01)
    monkeypatch.setattr(serving_trace, "_LOOK_SECONDS", 0.001)
    requests = of_stream(range(100), [Lengths(4, 3)], 12, "counted").requests
    drive = Drive(Server("http://127.0.0.1:1/v1", "x"), LoadPoint(2), requests, 10, 2, "x", None)
    return serving_trace.measure(
        play,  # type: ignore[arg-type]
        drive,
        folder / "raw",
        None,
        settle_s=0.01,
        trace_folder=folder,
        name="t",
    )


def test_requests_of_steps_are_those_that_the_engine_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(target: Path) -> None:
        chrome_trace.write(target, steps=3)
        text = target.read_text()
        for number in (31, 32, 29):  # the steps of decode, in order
            text = text.replace("_generation_1(1)", f"_generation_{number}(9)", 2)
        target.write_text(text.replace("context_1(512)_generation_0(0)", "context_1(512)_generation_30(30)"))

    record = trace(Play(write), tmp_path, monkeypatch)
    (note,) = (note for note in record.notes if note.startswith("Requests in steps"))
    _, _, counts = note.partition(": ")
    assert counts == "3 decode steps of 29 to 32 (30.7 in the mean), 1 mixed step of 31."
    assert {"decode", "mixed"} <= set(record.phases)
    assert (tmp_path / "t.json.gz").is_file()


def test_without_names_they_are_the_servers_own_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(target: Path) -> None:
        chrome_trace.write(target)
        target.write_text(target.read_text().replace('"execute_context', '"other'))

    record = trace(Play(write), tmp_path, monkeypatch)
    assert "Requests in steps, by the server's own count while it was traced: 3." in record.notes


def test_no_pause_of_the_generator_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator waits between its warm-up and what it measures: the warm-up is a run of its own."""
    play = Play()
    trace(play, tmp_path, monkeypatch)
    assert [(drive.warm_up, drive.count) for drive in play.driven] == [(0, 6), (0, 12)]


def test_a_load_that_is_over_is_not_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"The load at 2 users ended before it was traced\. Give more"):
        trace(Play(), tmp_path, monkeypatch, seconds=0)


def test_a_profiler_that_leaves_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="left no trace"):
        trace(Play(lambda _: None), tmp_path, monkeypatch)
