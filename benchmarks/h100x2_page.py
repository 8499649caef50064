"""The page about benchmarks/h100x2.py's records: python benchmarks/h100x2_page.py OUT docs/results/h100x2.md

What the figures mean is kept as it stands in the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from h100_page import MEANING, latency, read_arms, table
from h100x2 import SIZES, TOP_K

from moe_eval.comparison import pairs
from moe_eval.records import by_arm, run_files
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.kernels import PhaseTime
from moe_eval.records.labels import Status
from moe_eval.report import quality_table
from moe_eval.report.console import plain_text
from moe_eval.report.markdown import columns

HOW = """Qwen3-30B-A3B's shape with random weights through vLLM, one load an arm: a quick look without a verdict.
TP2 is tensor parallelism over both GPUs, EP2 has whole experts on each GPU beside it, TP1 is one GPU.
All ranks take their parts of the same tensors, so that every arm computes one function but for its precision.
`benchmarks/h100x2.py` made the figures."""


def write_page(out: Path, file: Path) -> None:
    arms = read_arms(out / "speed")
    parts = ["# Two GPUs: FP8 on one or BF16 on two", HOW]
    if MEANING in (before := file.read_text() if file.is_file() else ""):
        parts.append(MEANING + before.split(MEANING)[1].split("\n## ")[0].rstrip())
    parts += ["## Speed", f"{machine(arms)}\n\n{speed(arms)}" if arms else "Not run yet."]
    parts += ["## Collectives", collectives(out)]
    parts += ["## Experts, ranks and floors", ranks(arms) if arms else "Not run yet."]
    parts += ["## One function", function(out), "## The shipped model", shipped(out / "shipped")]
    parts += ["## FP8 in the key-value cache", cache(out / "cache")]
    parts += ["## Failures", failures(out / "failures" / "failures.json")]
    file.write_text("\n\n".join(parts) + "\n")


def machine(arms: Sequence[ArmRecords]) -> str:
    first = latency(arms)[0]
    origin, shape = first.origin, first.shapes[0]
    assert origin.machine is not None
    versions = f"driver {origin.machine.driver}, vLLM {origin.versions['vllm']}, torch {origin.versions['torch']}"
    return (
        f"{first.gpu_name}, {versions}. {shape.input_len} tokens in, {shape.output_len} out, "
        f"medians of {shape.num_iterations} iterations after {shape.warmup_iterations[0]} of warm-up.\n"
        "TTFT and TPOT are by vLLM's own clock, tok/s by the host's. Energy is of all GPUs of an arm. It is not told "
        "where the samples were too short for the GPUs' counters."
    )


def speed(arms: Sequence[ArmRecords]) -> str:
    rows = []
    for record in latency(arms):
        gpus = max(1, record.labels.engine.gpus if record.labels.engine else 1)
        for shape in record.shapes:
            figures = shape.metrics
            rate = shape.output_tokens_per_sec
            times = (figures.ttft_ms, figures.tpot_ms, figures.j_per_tok)
            ttft, tpot, joules = ("-" if time is None else f"{time.median:.2f}" for time in times)
            rates = ("-" if rate is None else f"{rate / share:,.0f}" for share in (1, gpus))
            rows.append((record.arm, str(shape.batch_size), str(gpus), ttft, tpot, *rates, joules))
    heads = ("arm", "batch", "GPUs", "TTFT ms", "TPOT ms", "output tok/s", "tok/s per GPU", "J per token")
    return columns(heads, sorted(rows, key=lambda row: int(row[1])))


def ranks(arms: Sequence[ArmRecords]) -> str:
    """Tokens by rank, and the three roofs of a decode step."""
    rows = []
    for record in latency(arms):
        for shape in record.shapes:
            routing = record.routing.get(shape.batch_size) if record.routing else None
            fullest = routing.rank_max_over_mean if routing else None
            step = shape.floors.decode_step
            roofs: tuple[str, ...] = ("-", "-", "-", "-")
            if step is not None:
                floor = step.floor
                share = "-" if step.fraction is None else f"{100 * step.fraction:.0f} %"
                roofs = (*_roofs(floor.memory_seconds, floor.flops_seconds, floor.link_seconds), share)
            experts = "-" if shape.experts_per_layer_step is None else f"{shape.experts_per_layer_step:.1f}"
            imbalance = "-" if fullest is None else f"{fullest:.3f}"
            rows.append((record.arm, str(shape.batch_size), experts, imbalance, *roofs))
    links = "not measured"
    measured = [record.rates for record in latency(arms) if record.rates is not None]
    speeds = {count: rate for rates in measured for count, rate in rates.link_bytes_per_s.items()}
    if measured:
        figures = ", ".join(f"{rate / 1e9:.0f} GB/s over {count} GPUs" for count, rate in speeds.items())
        links = figures or next((rates.no_links for rates in measured if rates.no_links), links)
    heads = ("arm", "batch", "experts a layer", "fullest rank / mean", "memory ms", "compute ms", "link ms", "of floor")
    return f"Link: {links}. The roofs are of a decode step.\n\n{columns(heads, rows)}"


def _roofs(*seconds: float | None) -> tuple[str, ...]:
    return tuple("-" if value is None else f"{1000 * value:.3f}" for value in seconds)


def collectives(out: Path) -> str:
    """What collectives cost in a phase, and the slowest rank's experts, where kernels were traced."""
    rows = []
    for folder, profiler in (("speed", "torch"), ("nsys", "nsys")):
        for arm in by_arm.read(out / folder) if (out / folder).is_dir() else []:
            for shape, record in arm.kernels.items():
                for name in ("decode", "prefill"):
                    if (phase := record.phases.get(name)) is not None:
                        batch = shape.partition("_")[0].removeprefix("b")
                        rows.append((name, batch, arm.name, profiler, *map(_milliseconds, _parts(phase))))
    rows.sort(key=lambda row: (row[0], int(row[1])))
    heads = (*("phase", "batch", "arm", "profiler", "busy", "transfer", "waiting", "unmatched", "experts"), "spread")
    legend = (
        "Milliseconds of a step. Waiting is the longest of all ranks. Unmatched collectives have no partner on another "
        "rank. Spread is that of the experts over ranks.\nRanks do not start their profilers at the same time, so the "
        "one prefill of a trace waits for the last. A server's does not."
    )
    return f"{legend}\n\n{columns(heads, rows)}" if rows else "Not run yet."


def _parts(phase: PhaseTime) -> tuple[float | None, ...]:
    matched = phase.collectives
    experts, reduce = (phase.categories.get(kind) for kind in ("expert_gemm", "allreduce"))
    return (
        phase.busy_ms,
        matched.transfer_ms if matched else None,
        max((rank.wait_ms for rank in phase.ranks), default=None),
        reduce.ms if reduce else None,
        experts.ms if experts else None,
        experts.spread_ms if experts else None,
    )


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def function(out: Path) -> str:
    """Agreement between parallel sizes."""
    files = [(name, out / f"scores_{name}.npz") for name in SIZES]
    rows = []
    for (first, one), (second, other) in [*pairwise(files), (files[0], files[2])]:
        if one.is_file() and other.is_file():
            equal, divergence = agreement(one, other)
            rows.append((first, second, f"{100 * equal:.1f} %", f"{divergence:.1e}"))
    heads = ("parallel size", "against", "same most probable token", f"KLD over {TOP_K} tokens, nats")
    return columns(heads, rows) if rows else "Not run yet."


def agreement(first: Path, second: Path) -> tuple[float, float]:
    """Share of equal first tokens, and the mean of p log(p/q) over the tokens that both hold among their TOP_K."""
    one, other = (np.load(file) for file in (first, second))
    equal = float((one["top_ids"][:, 0] == other["top_ids"][:, 0]).mean())
    match = one["top_ids"][:, :, None] == other["top_ids"][:, None, :]
    partner = np.where(match.any(2), np.take_along_axis(other["top_logprobs"], match.argmax(2), 1), np.nan)
    terms = np.exp(one["top_logprobs"]) * (one["top_logprobs"] - partner)
    return equal, float(np.nansum(terms, axis=1).mean())


def shipped(folder: Path) -> str:
    arms = by_arm.read(folder) if folder.is_dir() else []
    arms = [arm for arm in arms if arm.quality and arm.quality.status is Status.FINISHED]
    if len(arms) < 2:
        return "Not run yet."
    compared = pairs.compare(arms, runs=run_files.read_run(folder))
    records = [arm.quality for arm in arms if arm.quality is not None]
    return f"```\n{plain_text(quality_table.render(records, compared)).strip()}\n```"


def cache(folder: Path) -> str:
    arms = read_arms(folder)
    if not arms:
        return "Not run yet."
    rows = []
    for record in latency(arms):
        engine = record.labels.engine
        assert engine is not None
        rows.append(
            (record.arm, str(engine.kv_cache_dtype), str(engine.attention_backend), str(engine.kv_cache_tokens))
        )
    heads = ("arm", "cache in", "attention", "tokens that the cache holds")
    return f"```\n{table(arms)}\n```\n\n{columns(heads, rows)}"


def failures(file: Path) -> str:
    if not file.is_file():
        return "Not run yet."
    rows, sentences = [], []
    for case, result in json.loads(file.read_text()).items():
        rows.append((case, f"{result['seconds']:.0f} s", str(result["code"]), str(result["processes_left"])))
        lines = [line for line in result["output"] if " failed after " in line] or result["output"][-1:]
        sentences.append(f"- {case}: `{lines[0]}`")
    heads = ("case", "until the end", "exit code", "processes left")
    return f"{columns(heads, rows)}\n\n" + "\n".join(sentences)


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
