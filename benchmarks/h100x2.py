"""FP8 on one GPU or BF16 on two? Qwen3-30B-A3B's shape on two H100s through vLLM, as a quick look.

    python benchmarks/h100x2.py OUT docs/results/h100x2.md

It writes the shape, checks that all parallel sizes compute one function, measures five arms with one load each, and
writes the page from the records. A step that does not fit into --seconds is left out, and the page says so. What the
figures mean is kept as it stands in the page. --kernels adds collectives. It needs Nsight Systems and more seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from h100 import write_shape
from h100_page import MEANING, latency, read_arms, table

from moe_eval.checkpoint import tokenizer as tokens
from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.records.by_arm import ArmRecords
from moe_eval.report.markdown import columns

SIZES = {"tp1": {}, "tp2": {"tensor_parallel_size": 2}}
SIZES["ep2"] = {**SIZES["tp2"], "enable_expert_parallel": True}
ARMS = (("bf16", "tp1"), ("fp8", "tp1"), ("bf16", "tp2"), ("fp8", "tp2"), ("fp8", "ep2"))
SHARED = {"weights": "random", "moe_backend": "triton", "worker": "spawned"}
BATCHES = "1,8,32,64"
LAYERS_COMPARED, TOP_K, WINDOW, WINDOWS = 4, 64, 128, 16
HOW = """Qwen3-30B-A3B's shape, random weights, one load an arm: a quick look without a verdict.
All ranks take their parts of the same tensors, so that every arm computes one function but for its precision.
`benchmarks/h100x2.py` made the figures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--seconds", type=float, default=690.0)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--kernels", action="store_true", help="trace kernels too, which takes a load more an arm")
    parser.add_argument("--score", choices=tuple(SIZES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        score(args.out, args.score)
        return
    end = time.monotonic() + args.seconds
    write_shape(args.out / "shape", args.layers)
    write_shape(args.out / "small", LAYERS_COMPARED)
    run(end, speed_command(args.out, kernels=args.kernels))
    for name in SIZES:
        run(end, [sys.executable, __file__, str(args.out), str(args.page), "--score", name])
    write_page(args.out, args.page)


def speed_command(out: Path, *, kernels: bool = False) -> list[str]:
    """`moe-eval run` with the five arms."""
    arms = []
    for precision, name in ARMS:
        options = "".join(f",{key}={str(value).lower()}" for key, value in SIZES[name].items())
        arms += ["--arm", f"{precision}_{name}:precision={precision}{options}"]
    evaluators = "latency,kernels" if kernels else "latency"
    program = "from moe_eval.cli import main; import sys; sys.exit(main())"
    shared = ",".join(f"{key}={value}" for key, value in SHARED.items())
    return [
        *(sys.executable, "-c", program, "run", "--engine", "vllm", "--model_path", str(out / "shape")),
        *arms,
        *("--model_args", shared, "--evaluators", evaluators, "--dataset", "wikitext_local"),
        *("--batch_size", BATCHES, "--input_len", "512", "--output_len", "64", "--loads", "1"),
        *("--num_iterations", "4", "--warmup_iterations", "5", "--timeout", "240", "--output_dir", str(out / "run")),
        *(("--resume",) if (out / "run" / "run.json").is_file() else ()),
    ]


def run(end: float, command: Sequence[str]) -> None:
    """Run a command as long as there is time."""
    if (left := end - time.monotonic()) < 30:
        print(f"left out: {' '.join(command)}", flush=True)
        return
    running = subprocess.Popen(command)
    try:
        running.wait(left - 10)
    except subprocess.TimeoutExpired:
        running.terminate()  # it ends its arms, and what it has measured stays
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()


def score(out: Path, name: str) -> None:
    """The most probable tokens of one parallel size, on a few layers and in BF16."""
    options = {**SHARED, **SIZES[name], "enforce_eager": True}
    folder = str(out / "small")
    settings = EngineSettings(
        checkpoint=folder, precision="bf16", max_length=256, batch_size=16, kv_tokens=16 * 256, options=options
    )
    engine = registry.load("vllm", settings, tokens.load(folder, None, False))
    rows = np.random.default_rng(1).integers(0, 8000, (WINDOWS, WINDOW)).tolist()
    scores = engine.score([Window(tuple(row[:1]), tuple(row[1:])) for row in rows], top_k=TOP_K)
    parts = {part: np.concatenate([getattr(window, part) for window in scores]) for part in ("top_ids", "top_logprobs")}
    np.savez(out / f"scores_{name}.npz", **parts)
    engine.close()


def agreement(first: Path, second: Path) -> tuple[float, float]:
    """Share of equal first tokens, and the mean of p log(p/q) over the tokens that both hold among their TOP_K."""
    one, other = (np.load(file) for file in (first, second))
    equal = float((one["top_ids"][:, 0] == other["top_ids"][:, 0]).mean())
    match = one["top_ids"][:, :, None] == other["top_ids"][:, None, :]
    partner = np.where(match.any(2), np.take_along_axis(other["top_logprobs"], match.argmax(2), 1), np.nan)
    terms = np.exp(one["top_logprobs"]) * (one["top_logprobs"] - partner)
    return equal, float(np.nansum(terms, axis=1).mean())


def write_page(out: Path, file: Path) -> None:
    arms = read_arms(out / "run")
    parts = ["# Two H100s: FP8 on one GPU or BF16 on two", HOW]
    parts += ["## Speed", f"```\n{table(arms)}\n```\n\n{per_gpu(arms)}" if arms else "Not run yet."]
    if MEANING in (before := file.read_text() if file.is_file() else ""):
        parts.append(MEANING + before.split(MEANING)[1].split("\n## ")[0].rstrip())
    parts += ["## Ranks and floors", ranks(arms) if arms else "Not run yet."]
    parts += ["## Collectives", collectives(arms), "## One function", function(out)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(parts) + "\n")


def per_gpu(arms: Sequence[ArmRecords]) -> str:
    rows = []
    for record in latency(arms):
        engine = record.labels.engine
        gpus = max(1, engine.gpus if engine else 1)
        for shape in record.shapes:
            joules, rate = shape.metrics.j_per_tok, shape.output_tokens_per_sec
            rows.append(
                (
                    *(record.arm, str(shape.batch_size), str(gpus)),
                    *("-" if rate is None else f"{value:,.0f}" for value in (rate or 0, (rate or 0) / gpus)),
                    "-" if joules is None else f"{joules.median:.2f}",
                )
            )
    return columns(("arm", "batch", "GPUs", "output tok/s", "tok/s per GPU", "J per token, all GPUs"), rows)


def ranks(arms: Sequence[ArmRecords]) -> str:
    """Tokens by rank, and the three roofs of a decode step."""
    rows = []
    for record in latency(arms):
        for shape in record.shapes:
            routing = record.routing[shape.batch_size] if record.routing else None
            fullest = routing.rank_max_over_mean if routing else None
            imbalance = "-" if fullest is None else f"{fullest:.3f}"
            step = shape.floors.decode_step
            roofs: tuple[str, ...] = ("-", "-", "-", "-")
            if step is not None:
                floor = step.floor
                share = "-" if step.fraction is None else f"{100 * step.fraction:.0f} %"
                roofs = (*_roofs(floor.memory_seconds, floor.flops_seconds, floor.link_seconds), share)
            rows.append((record.arm, str(shape.batch_size), imbalance, *roofs))
    links = "not measured"
    if (rates := latency(arms)[0].rates) is not None:
        speeds = [f"{rate / 1e9:.0f} GB/s over {count} GPUs" for count, rate in rates.link_bytes_per_s.items()]
        links = ", ".join(speeds) or rates.no_links or links
    heads = ("arm", "batch", "fullest rank / mean", "memory ms", "compute ms", "link ms", "of floor")
    return f"Link: {links}.\n\n{columns(heads, rows)}"


def _roofs(*seconds: float | None) -> tuple[str, ...]:
    return tuple("-" if value is None else f"{1000 * value:.3f}" for value in seconds)


def collectives(arms: Sequence[ArmRecords]) -> str:
    """What collectives cost in a decode step, and the slowest rank's experts, where kernels were traced."""
    rows = []
    for arm in arms:
        for shape, record in arm.kernels.items():
            phase = record.phases.get("decode")
            if phase is None:
                continue
            matched = phase.collectives
            experts, reduce = (phase.categories.get(name) for name in ("expert_gemm", "allreduce"))
            figures = (
                reduce.ms if reduce else None,
                matched.transfer_ms if matched else None,
                max((rank.wait_ms for rank in phase.ranks), default=None),
                experts.ms if experts else None,
                experts.spread_ms if experts else None,
            )
            rows.append((arm.name, shape, *("-" if value is None else f"{value:.3f}" for value in figures)))
    heads = ("arm", "shape", "all-reduce ms", "transfer ms", "waiting ms", "expert GEMM ms", "spread over ranks ms")
    return columns(heads, rows) if rows else "Not traced. Install Nsight Systems, and add --kernels."


def function(out: Path) -> str:
    """Agreement between parallel sizes."""
    files = [(name, out / f"scores_{name}.npz") for name in SIZES]
    rows = []
    for (first, one), (second, other) in [*pairwise(files), (files[0], files[2])]:
        if one.is_file() and other.is_file():
            equal, divergence = agreement(one, other)
            rows.append((first, second, f"{100 * equal:.1f} %", f"{divergence:.5f}"))
    heads = ("parallel size", "against", "same most probable token", f"KLD over {TOP_K} tokens, nats")
    return columns(heads, rows) if rows else "Not run yet."


if __name__ == "__main__":
    main()
