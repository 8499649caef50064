"""Free cores from times that psutil would report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moe_eval.machine import cores
from moe_eval.machine.cores import FreeCores

Advance = Callable[..., None]


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Advance:
    """Four cores of which this process may use 0 to 2. Lets seconds pass, with work of others by core and own work."""
    clock, busy, own = [100.0], [0.0] * 4, [0.0]
    core = type(psutil.cpu_times())

    def times(*, percpu: bool) -> list[object]:
        assert percpu
        return [core(**dict.fromkeys(core._fields, 0.0) | {"user": work, "idle": clock[0] - work}) for work in busy]

    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cores.psutil, "cpu_times", times)
    process = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=own[0], system=0.0))
    monkeypatch.setattr(cores.psutil, "Process", lambda: process)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")

    def pass_by(seconds: float, *others: float, ours: float = 0.0) -> None:
        clock[0] += seconds
        own[0] += ours
        busy[0] += ours
        for index, work in enumerate(others):
            busy[index] += work

    return pass_by


@pytest.mark.parametrize(
    ("others", "ours", "free"),
    [
        ((), 0, 3),
        ((), 6, 3),
        ((2, 0, 0), 2, 2),
        ((1, 1, 1), 3, 2),
        ((2, 2, 2), 0, 1),
        ((0, 0, 0, 2), 0, 3),
        ((0.4,), 0, 3),
    ],
)
def test_cores_that_others_use_are_not_free(
    advance: Advance, others: tuple[float, ...], ours: float, free: int
) -> None:
    counter = FreeCores()
    assert counter.count() == 3
    advance(2.0, *others, ours=ours)
    assert counter.count() == free


def test_what_passes_within_a_second_is_counted_later(advance: Advance) -> None:
    counter = FreeCores()
    advance(0.5, 0.5, 0.5, 0.5)
    assert counter.count() == 3
    advance(0.5, 0.5, 0.5, 0.5)
    assert counter.count() == 1


@pytest.mark.parametrize(("text", "free"), [("200000 100000", 2), ("max 100000", 3), ("50000 100000", 1)])
def test_a_container_has_its_quota(advance: Advance, text: str, free: int) -> None:
    del advance
    cores._QUOTA.write_text(text, encoding="ascii")
    assert FreeCores().count() == free
