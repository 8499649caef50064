"""The rate of a link, by gloo on a CPU."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from moe_eval.machine import links


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_ring_sends_every_part_but_one_twice(count: int) -> None:
    # reduce-scatter, then all-gather: n - 1 steps of a part each
    assert links.ring_bytes(1, count) == pytest.approx(float(2 * (count - 1) * Fraction(1, count)))


def test_the_rate_between_two_processes() -> None:
    rate = links.measure((0, 1), "gloo", 1 << 20)
    assert isinstance(rate, float)
    assert 1e6 < rate < 1e13


def test_a_process_that_fails_or_hangs_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def started(code: str) -> None:
        def popen(_command: list[str], **streams: int) -> subprocess.Popen[bytes]:
            ranks.append(start([sys.executable, "-S", "-c", code if not ranks else "import time; time.sleep(60)"]))
            return ranks[-1]

        ranks.clear()
        monkeypatch.setattr(links.subprocess, "Popen", popen)

    started("raise SystemExit(3)")
    assert (
        links.measure((0, 1))
        == "the link between 2 GPUs was not measured (a process of torch.distributed ended with code 3)"
    )
    assert all(rank.poll() is not None for rank in ranks)
    monkeypatch.setattr(links, "_SECONDS", 0.2)
    started("import time; time.sleep(60)")
    assert "did not answer within 0.2 s" in str(links.measure((0, 1)))
    assert all(rank.poll() is not None for rank in ranks)


def test_the_slowest_stage_of_a_pipeline_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[tuple[int, ...], float | str] = {(4, 6): 3e11, (5, 7): 2e11}
    monkeypatch.setattr(links, "measure", lambda gpus: rates[tuple(gpus)])
    assert links.slowest([4, 6, 5, 7], 2) == 2e11
    rates[4, 6] = "the cable is loose"
    assert links.slowest([4, 6, 5, 7], 2) == "the cable is loose"
