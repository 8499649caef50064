"""From which load on does FP8 pay? Qwen3-30B-A3B's shape, random weights, on one GPU through `vllm serve`.

    python benchmarks/h100_serving.py OUT                       every part, one after another
    python benchmarks/h100_serving.py OUT serving               one part
    python benchmarks/h100_serving_page.py OUT docs/results/h100-serving.md

Parts:
    serving   BF16 against FP8 by concurrency, 512 tokens in and 128 out, driven by AIPerf: about five minutes a load
    lockstep  the latency evaluator at the same batch sizes, to put beside it

A part that was stopped goes on where it was. Further options, such as `--loads 3`, go to `moe-eval run`.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from failing_ranks import COMMAND
from h100 import write_shape

USERS = "1,2,4,8,16,32,64,128"
LENGTHS = ("--input_len", "512", "--output_len", "128")
LIMITS = ("--ttft_ms", "1000", "--tpot_ms", "20")
ARMS = "weights=random,moe_backend=triton"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    args, further = parser.parse_known_args()
    shape = args.out / "shape"
    if not shape.is_dir():
        write_shape(shape, 48)
    for part in args.parts or PARTS:
        PARTS[part](args.out, further)


def serving(out: Path, further: Sequence[str]) -> None:
    load = ("--concurrency", USERS, "--num_requests", "30", *LIMITS)
    run(out, "serving", *LENGTHS, *load, "--model_args", ARMS, *further)


def lockstep(out: Path, further: Sequence[str]) -> None:
    load = ("--batch_size", USERS, "--num_iterations", "12")
    run(out, "latency", *LENGTHS, *load, "--model_args", ARMS, *further)


def run(out: Path, evaluator: str, *options: str) -> None:
    """`moe-eval run` with one evaluator, into a folder of its name."""
    folder, shape = out / evaluator, str(out / "shape")
    arms = ("--engine", "vllm", "--model_path", shape, "--fp8_model_path", shape, "--precisions", "bf16,fp8")
    resume = ["--resume"] * (folder / "run.json").is_file()
    command = [*COMMAND, "run", *arms, "--evaluators", evaluator, "--dataset", "random", *options]
    subprocess.run([*command, "--output_dir", str(folder), *resume], check=False)


PARTS: Mapping[str, Callable[[Path, Sequence[str]], None]] = {"serving": serving, "lockstep": lockstep}


if __name__ == "__main__":
    main()
