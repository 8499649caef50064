"""A whole run on the double of vLLM one of whose ranks dies, or hangs: it ends in seconds and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import SHIPPED
from tests.contract.commands import Commands, Running
from tests.contract.conftest import DOUBLES

RUN = (
    *("run", "--model_path", str(SHIPPED), "--evaluators", "latency", "--batch_size", "1,2", "--loads", "1"),
    *(
        "--input_len",
        "8",
        "--output_len",
        "3",
        "--dataset",
        "moe_sample",
        "--output_dir",
        "records",
        "--arm",
        "tp:engine=vllm,worker=spawned",
    ),
)


def start(commands: Commands, folder: Path, *options: str) -> Running:
    """The run, which hangs in its first request. Its ranks are `sleep`."""
    double = {"folder": folder, "double": DOUBLES / "vllm_0_22", "program": "moe-eval"}
    return commands.start(*RUN, *options, variables={"VLLM_DOUBLE": "ranks=2,hang_at=1"}, **double)


def ranks(running: Running) -> list[psutil.Process]:
    """The processes of both ranks, once they are there and the engine waits for them."""
    limit = time.monotonic() + 60
    while True:
        processes = [child for arm in running.arms() for child in arm.children() if child.name() == "sleep"]
        if len(processes) == 2:
            return processes
        assert time.monotonic() < limit, (running.folder / "stderr").read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), r"Rank 1 of vLLM (process {pid}) has died, perhaps of too little memory or a CUDA error."),
        (("--timeout", "3"), "it did not answer within 3 s and was ended"),
    ],
    ids=["killed", "hangs"],
)
def test_a_run_whose_rank_dies_or_hangs_ends_in_seconds_without_an_orphan(
    commands: Commands, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    running = start(commands, tmp_path, *options)
    both = ranks(running)
    if not options:
        both[1].send_signal(signal.SIGKILL)
    ended = running.wait(60)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert not ended.left
    assert not [rank for rank in both if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    failures = [line for line in ended.err.splitlines() if " failed after " in line]
    assert len(failures) == 3, "the other tasks are of the same load, which is over, or of one for routing"
    assert all(reason.format(pid=both[1].pid) in line for line in failures)
    assert json.loads((tmp_path / "records" / "run.json").read_text())["status"] == "failed"
