"""The rate of the links between GPUs, from an all-reduce in processes of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_BYTES = 256 << 20  # far beyond what the start of a collective costs
_ROUNDS, _TIMES, _WARM_UPS = 3, 5, 3
_SECONDS = 90.0  # NCCL takes some seconds to start, and a link that hangs answers never


def ring_bytes(size: float, count: int) -> float:
    """Bytes that every rank sends in an all-reduce of `size` bytes: 2 (n - 1) / n of them.

    No algorithm without sums in the network sends fewer (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69(2), 2009).
    """
    return 2 * (count - 1) / count * size


def measure(gpus: Sequence[int], backend: str = "nccl", size: int = _BYTES) -> float | str:
    """Bytes a second that every one of some GPUs sends in a large all-reduce, or why there is no figure.

    Args:
        gpus: torch's indices of them.
        backend: of torch.distributed. gloo is for a CPU.
        size: of the tensor in bytes.
    """
    count = len(gpus)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        arguments = [backend, str(count), str(size), str(Path(folder) / "meeting"), str(file)]
        command = [sys.executable, "-m", "moe_eval.machine.links", *arguments]
        # output goes nowhere, since NCCL is talkative and a pipe that nobody reads fills up
        quiet = subprocess.DEVNULL
        ranks = [
            subprocess.Popen([*command, str(rank), str(gpu)], stdin=quiet, stdout=quiet, stderr=quiet)
            for rank, gpu in enumerate(gpus)
        ]
        try:
            failed = _wait(ranks)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if failed is not None:
            return f"the link between {count} GPUs was not measured ({failed})"
        return ring_bytes(size, count) / float(json.loads(file.read_text()))


def slowest(gpus: Sequence[int], count: int) -> float | str:
    """As measure, of the slowest of the parts of `count` GPUs that follow each other, such as stages of a pipeline."""
    rates: list[float] = []
    for first in range(0, len(gpus), count):
        rate = measure(gpus[first : first + count])
        if isinstance(rate, str):
            return rate
        rates.append(rate)
    return min(rates)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> str | None:
    """Wait until all have ended, and return why the measurement failed. The first that fails ends it."""
    end = time.monotonic() + _SECONDS
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            return f"a process of torch.distributed ended with code {next(code for code in codes if code)}"
        if None not in codes:
            return None
        if time.monotonic() > end:
            return f"torch.distributed did not answer within {_SECONDS:g} s"
        time.sleep(0.05)


def _run(rank: int, gpu: int, count: int, size: int, *, backend: str, meeting: str, file: str) -> None:
    import torch
    from torch import distributed

    cuda = backend == "nccl"
    if cuda:
        torch.cuda.set_device(gpu)
    distributed.init_process_group(backend, init_method=f"file://{meeting}", world_size=count, rank=rank)
    tensor = torch.ones(size // 2, dtype=torch.bfloat16, device="cuda" if cuda else "cpu")

    def seconds(times: int) -> float:
        distributed.barrier()
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)  # sums would overflow
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    seconds(_WARM_UPS)
    best = min(statistics.median(seconds(1) for _ in range(_TIMES)) for _ in range(_ROUNDS))
    if rank == 0:
        Path(file).write_text(json.dumps(best))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _backend, _count, _size, _meeting, _file, _rank, _gpu = sys.argv[1:]
    _run(int(_rank), int(_gpu), int(_count), int(_size), backend=_backend, meeting=_meeting, file=_file)
