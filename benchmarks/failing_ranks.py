"""What a user sees when a rank dies or hangs, and when GPUs are missing or full: two GPUs, a few layers, vLLM.

    python benchmarks/failing_ranks.py SHAPE OUT        writes OUT/failures.json

SHAPE is a folder that `h100.py shape` wrote. Every case starts `moe-eval run`. Where a rank has to fail, it fails
once latency is measured, and seconds count from then to the end of the command.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

COMMAND = (sys.executable, "-c", "import sys; from moe_eval.cli import main; sys.exit(main())")
RANK = "VLLM::Worker"
TWO = "tensor_parallel_size=2"
SHARED = "weights=random,moe_backend=triton,worker=spawned,enforce_eager=true"
FILL = """import sys, time, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(0.9 * free), dtype=torch.uint8, device="cuda")
print("filled", flush=True)
time.sleep(600)"""
LIMIT = 240.0  # seconds, more than any case should take


def write(shape: Path, out: Path) -> None:
    """Every case, each on disk as soon as it has ended."""
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for case, result in cases(shape, out):
        results[case] = result
        (out / "failures.json").write_text(json.dumps(results, indent=1) + "\n")


def cases(shape: Path, out: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    yield "a rank that is killed (SIGKILL)", failing(shape, out / "killed", signal.SIGKILL)
    stopped = failing(shape, out / "stopped", signal.SIGSTOP, "--stall_timeout", "20")
    yield "a rank that stops (SIGSTOP), --stall_timeout 20", stopped
    yield "heads that two GPUs do not divide", refused(odd(shape, out / "odd_shape"), out / "odd", f"a:{TWO}")
    yield "more GPUs than there are", refused(shape, out / "many", f"a:{TWO[:-1]}16")
    yield "an arm that one GPU does not hold", refused(shape, out / "large", "a:kv_cache_memory_bytes=900000000000")
    with filled():
        yield "a GPU that another process fills", refused(shape, out / "full", f"a:{TWO}")


def odd(shape: Path, folder: Path) -> Path:
    """The shape with another number of heads."""
    shutil.copytree(shape, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 15, "num_key_value_heads": 5}))
    return folder


def refused(shape: Path, folder: Path, arm: str) -> Mapping[str, object]:
    begun = time.monotonic()
    process = start(shape, folder, arm)
    return ended(process, begun, psutil.Process(process.pid))


def failing(shape: Path, folder: Path, number: signal.Signals, *options: str) -> Mapping[str, object]:
    """Send a signal to one rank while latency is measured."""
    process = start(shape, folder, f"a:{TWO}", *options)
    tree = psutil.Process(process.pid)
    end = time.monotonic() + LIMIT
    while not list(folder.glob("arms/*/load_0.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(3)
    ranks = [child for child in tree.children(recursive=True) if RANK in " ".join(child.cmdline())]
    workers = tree.children(recursive=True)
    if ranks:
        ranks[-1].send_signal(number)
    return ended(process, time.monotonic(), *workers, ranks=len(ranks))


def start(shape: Path, folder: Path, arm: str, *more: str) -> subprocess.Popen[str]:
    options = [*more, "--engine", "vllm", "--model_path", str(shape), "--arm", f"{arm},precision=bf16"]
    options += ["--model_args", SHARED, "--evaluators", "latency", "--dataset", "random", "--batch_size", "8"]
    options += ["--input_len", "512", "--output_len", "64", "--num_iterations", "2000", "--loads", "1"]
    command = [*COMMAND, "run", *options, "--output_dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(
    process: subprocess.Popen[str], begun: float, *watched: psutil.Process, ranks: int | None = None
) -> Mapping[str, object]:
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    seconds = time.monotonic() - begun
    _, alive = psutil.wait_procs(watched, timeout=5)
    for orphan in alive:
        orphan.kill()
    lines = [line for line in output.splitlines() if line.strip()]
    return {
        "seconds": round(seconds, 1),
        "code": process.returncode,
        "ranks": ranks,
        "processes_left": len(alive),
        "traceback": "Traceback (most recent call last)" in output,
        "output": lines[-12:],
    }


@contextmanager
def filled() -> Iterator[None]:
    """Nine tenths of the first GPU's free memory, held by another process."""
    process = subprocess.Popen([sys.executable, "-c", FILL], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
