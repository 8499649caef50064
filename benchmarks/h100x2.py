"""FP8 on one GPU or BF16 on two? Qwen3-30B-A3B's shape on two GPUs of one host through vLLM, as a quick look.

    python benchmarks/h100x2.py OUT                        every part, one after another
    python benchmarks/h100x2.py OUT speed nsys             these parts alone
    python benchmarks/h100x2_page.py OUT docs/results/h100x2.md

Parts:
    speed     five arms, one load each: latency, energy, routing, floors, and kernels of all ranks by torch's profiler
    nsys      FP8 on both GPUs by Nsight Systems, beside torch's profiler
    function  a few layers of the shape in every parallel size, whose most probable tokens must agree
    shipped   perplexity of the shipped model in every parallel size, and on Transformers
    cache     an FP8 against a BF16 key-value cache on one GPU, 32 prompts of 2,048 tokens
    failures  what a user sees when ranks die or hang, and when GPUs are missing or full

A part that was stopped goes on where it was. On a host of four GPUs two parts can run side by side, each on two
of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import failing_ranks
import numpy as np
from h100 import write_shape

from moe_eval.checkpoint import tokenizer as tokens
from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings

SIZES: Mapping[str, Mapping[str, object]] = {
    "tp1": {},
    "tp2": {"tensor_parallel_size": 2},
    "ep2": {"tensor_parallel_size": 2, "enable_expert_parallel": True},
}
ARMS = (("bf16", "tp1"), ("fp8", "tp1"), ("bf16", "tp2"), ("fp8", "tp2"), ("fp8", "ep2"))
RANDOM = {"weights": "random", "moe_backend": "triton", "cuda_graph_batch_sizes": "1:8:32:64"}
SPAWNED = {**RANDOM, "worker": "spawned"}
EAGER = {"moe_backend": "triton", "worker": "spawned", "enforce_eager": True}
# vLLM records stacks by default, which slows every operator down
QUIET = {"torch_profiler_with_stack": False, "torch_profiler_dump_cuda_time_total": False}
BATCHES = "1,8,32,64"
ONE_LOAD = ("--loads", "1")
LAYERS_COMPARED, TOP_K, WINDOW, WINDOWS = 4, 64, 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--score", choices=tuple(SIZES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        score(args.out, args.score)
        return
    for folder, layers in ((args.out / "shape", args.layers), (args.out / "small", LAYERS_COMPARED)):
        if not folder.is_dir():
            write_shape(folder, layers)
    for part in args.parts or PARTS:
        PARTS[part](args.out)


def speed(out: Path) -> None:
    traces = {"profiler": "torch", "torch_profiler_dir": str(out.resolve() / "traces"), **QUIET}
    options = {**SPAWNED, "profiler_config": json.dumps(traces)}
    # 256 tokens take longer than a second, which the GPUs' counters of energy need
    shape = ("--batch_size", BATCHES, "--input_len", "512", "--output_len", "256", "--profiler", "torch")
    repeats = ("--num_iterations", "4", "--warmup_iterations", "2")
    run(
        out,
        "speed",
        *named_arms(ARMS),
        *settings(options),
        "--evaluators",
        "latency,kernels",
        *shape,
        *ONE_LOAD,
        *repeats,
    )


def nsys(out: Path) -> None:
    shape = ("--batch_size", BATCHES, "--input_len", "512", "--output_len", "64", "--profiler", "nsys")
    run(out, "nsys", *named_arms(ARMS[3:4]), *settings(SPAWNED), "--evaluators", "kernels", *shape)


def cache(out: Path) -> None:
    """Both arms have FP8 weights, as a deployment that thinks of its cache has."""
    arms = ("--arm", "bf16_cache:precision=fp8", "--arm", "fp8_cache:precision=fp8,kv_cache_dtype=fp8")
    shape = ("--batch_size", "32", "--input_len", "2048", "--output_len", "64", "--num_iterations", "8")
    run(
        out,
        "cache",
        *arms,
        *settings(RANDOM),
        "--evaluators",
        "latency,kernels",
        "--profiler",
        "torch",
        *shape,
        *ONE_LOAD,
    )


def shipped(out: Path) -> None:
    arms = [part for name in SIZES for part in ("--arm", f"{name}:precision=bf16,{joined({**EAGER, **SIZES[name]})}")]
    arms += ["--arm", "transformers:engine=transformers,precision=bf16"]
    run(out, "shipped", *arms, "--evaluators", "quality", "--input_len", "512", model=SHIPPED)


def function(out: Path) -> None:
    for name in SIZES:
        if not (out / f"scores_{name}.npz").is_file():
            subprocess.run([sys.executable, __file__, str(out), "--score", name], check=False)


def score(out: Path, name: str) -> None:
    """The most probable tokens of one parallel size, on a few layers and in BF16."""
    folder = str(out / "small")
    arm = EngineSettings(
        checkpoint=folder,
        precision="bf16",
        max_length=256,
        batch_size=16,
        kv_tokens=16 * 256,
        options={"weights": "random", **EAGER, **SIZES[name]},
    )
    engine = registry.load("vllm", arm, tokens.load(folder, None, False))
    rows = np.random.default_rng(1).integers(0, 8000, (WINDOWS, WINDOW)).tolist()
    scores = engine.score([Window(tuple(row[:1]), tuple(row[1:])) for row in rows], top_k=TOP_K)
    parts = {part: np.concatenate([getattr(window, part) for window in scores]) for part in ("top_ids", "top_logprobs")}
    np.savez(out / f"scores_{name}.npz", **parts)
    engine.close()


def named_arms(chosen: Sequence[tuple[str, str]]) -> list[str]:
    arms = []
    for precision, name in chosen:
        arms += ["--arm", f"{precision}_{name}:{joined({'precision': precision, **SIZES[name]})}"]
    return arms


def settings(options: Mapping[str, object]) -> tuple[str, str]:
    return "--model_args", joined(options)


def joined(options: Mapping[str, object]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


def run(out: Path, name: str, *options: str, model: Path | None = None) -> None:
    """`moe-eval run` into a folder of that name."""
    folder = out / name
    resume = ["--resume"] * (folder / "run.json").is_file()
    shared = ["--engine", "vllm", "--model_path", str(model or out / "shape"), "--dataset", "wikitext_local"]
    command = [*failing_ranks.COMMAND, "run", *shared, *options, "--output_dir", str(folder), *resume]
    subprocess.run(command, check=False)


def failures(out: Path) -> None:
    failing_ranks.write(out / "small", out / "failures")


PARTS: Mapping[str, Callable[[Path], None]] = {
    "speed": speed,
    "nsys": nsys,
    "function": function,
    "shipped": shipped,
    "cache": cache,
    "failures": failures,
}


if __name__ == "__main__":
    main()
