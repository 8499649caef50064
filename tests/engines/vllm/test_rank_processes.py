"""Ranks that die or hang while vLLM works: the client waits for ever, and the adapter does not."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from moe_eval.engines.base import GenerationRequest
from moe_eval.engines.vllm.engine import VllmEngine
from moe_eval.engines.vllm.rank_processes import Ranks
from moe_eval.errors import UsageError, WorkerDied
from tests.engines.conftest import window
from tests.engines.vllm.conftest import Load

TIMED = GenerationRequest(4, ignore_eos=True, timed=True)


def spawned(
    load: Load, monkeypatch: pytest.MonkeyPatch, knob: str = "hang_at=1"
) -> tuple[VllmEngine, list[psutil.Process]]:
    """An engine with two ranks that hangs in its first request, and the processes of the ranks."""
    monkeypatch.setenv("VLLM_DOUBLE", f"ranks=2,{knob}")
    engine = load(options={"worker": "spawned"})
    return engine, [psutil.Process(rank.pid) for rank in engine.session.llm.llm_engine.ranks]


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("is_timed", [True, False], ids=["generate", "stream"])
def test_a_rank_that_is_killed_ends_the_wait_and_the_other_ranks(
    load: Load, monkeypatch: pytest.MonkeyPatch, *, is_timed: bool
) -> None:
    engine, ranks = spawned(load, monkeypatch)
    threading.Timer(0.1, os.kill, [ranks[1].pid, signal.SIGKILL]).start()
    began = time.monotonic()
    with pytest.raises(WorkerDied, match=rf"^Rank 1 of vLLM \(process {ranks[1].pid}\) has died, .*\. Look for .*\.$"):
        engine.generate([[1, 2, 3]], TIMED) if is_timed else engine.score([window(1, 3, 9)])
    assert time.monotonic() - began < 5
    assert not any(map(lives, ranks))


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_rank_that_died_is_named_where_vllm_tells_first_that_its_core_has_ended(
    load: Load, monkeypatch: pytest.MonkeyPatch, *, is_watched: bool
) -> None:
    if not is_watched:  # as where the thread that watches has not had its turn
        monkeypatch.setattr(Ranks, "_watch", lambda _: None)
    engine, ranks = spawned(load, monkeypatch, "dead_at=1")
    ranks[1].kill()
    ranks[1].wait(5)
    with pytest.raises(WorkerDied, match=r"^Rank 1 of vLLM"):
        engine.generate([[1, 2, 3]], TIMED)


def test_a_rank_that_died_between_two_requests_is_told_at_the_next(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ranks = spawned(load, monkeypatch)
    ranks[0].kill()
    with pytest.raises(WorkerDied, match=r"^Rank 0 of vLLM"):
        engine.generate([[1, 2, 3]], TIMED)


def test_ranks_that_end_with_their_engine_are_no_failure(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ranks = spawned(load, monkeypatch)
    engine.close()
    assert not any(map(lives, ranks))
    engine.close()


def test_a_stall_timeout_is_vllm_s_own_limit_of_a_step(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", raising=False)
    monkeypatch.setenv("VLLM_DOUBLE", "dead_at=1")
    engine = load(options={"worker": "spawned", "stall_timeout": 7.5})
    assert os.environ["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] == "8"
    with pytest.raises(WorkerDied, match=r"ended while generating .* longer than 8 s ends it too \(stall_timeout\)\.$"):
        engine.generate([[1, 2, 3]], TIMED)
    with pytest.raises(UsageError, match="stall_timeout=soon is not a number of seconds"):
        load(options={"stall_timeout": "soon"})
