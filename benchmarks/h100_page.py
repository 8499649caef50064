"""The page about benchmarks/h100.py's records: python benchmarks/h100_page.py OUT docs/results/h100.md

OUT holds the records of `moe-eval perf`, OUT/run those of `moe-eval run`, every OUT/aa* those of one `perf --aa`,
OUT/traces what `h100.py traces` left, and inside.json is beside them. What the speeds mean is kept as it stands in the
page.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_eval.comparison import kernels, pairs
from moe_eval.evaluators import kernels_record
from moe_eval.evaluators.speed import OF_CALLS, timed_by
from moe_eval.records import by_arm
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.labels import Status
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.shape_latency import FloorReached
from moe_eval.report import kernels_table, speed_table
from moe_eval.report.console import plain_text
from moe_eval.report.markdown import columns
from moe_eval.traces.readers import files

MEANING = "## What it means"
TRACED = (1, 8, 32)
ARMS = ("bf16", "fp8")
_HOW = """This is Qwen3-30B-A3B's shape with random weights (normal 0.02, norms 1, another seed for every tensor).
The prompts are WikiText-2, cut with the shipped model's tokenizer, so that tokens repeat as they do in text.
vLLM has no tuned configuration of its Triton experts for this shape on an H100, and says so.
Another backend, or a tuned one, would be faster. `benchmarks/h100.py` made the figures and says how."""


def write_page(out: Path, file: Path) -> None:
    speed, run = (read_arms(folder) for folder in (out, out / "run"))
    repeats = [repeat_page(arms) for folder in sorted(out.glob("aa*")) if (arms := read_arms(folder))]
    parts = ["# One H100: BF16 against FP8 through vLLM", _HOW]
    parts += ["## Speed", speed_page(speed) if speed else "Not run yet."]
    parts += ["### Experts and floors", floors_page(run) if run else "Not run yet."]
    if MEANING in (before := file.read_text() if file.is_file() else ""):
        parts.append(MEANING + before.split(MEANING)[1].split("\n## ")[0].rstrip())
    parts += ["## BF16 against itself", *(repeats or ["Not run yet."])]
    traces = out / "traces"
    parts += ["## Where the time goes", kernels_page(traces, speed) if traces.is_dir() else "Not run yet."]
    inside_file = out / "inside.json"
    inside = inside_page(json.loads(inside_file.read_text())) if inside_file.is_file() else "Not run yet."
    parts += ["## The evaluator and scoring", inside]
    file.write_text("\n\n".join(parts) + "\n")


def read_arms(folder: Path) -> list[ArmRecords]:
    """The arms of a folder whose latency was measured, the reference first; none where there is no folder."""
    if not any(folder.glob("perf_*_sm*.json")):
        return []
    return [arm for arm in by_arm.read(folder) if arm.latency and arm.latency.status is Status.FINISHED]


def latency(arms: Sequence[ArmRecords]) -> list[LatencyRecord]:
    return [arm.latency for arm in arms if arm.latency is not None]


def table(arms: Sequence[ArmRecords]) -> str:
    return plain_text(speed_table.render(latency(arms), pairs.compare(arms))).strip()


def speed_page(arms: Sequence[ArmRecords]) -> str:
    clocks = []
    for record in latency(arms):
        for shape in record.shapes:
            gpus = [gpu for turn in shape.turns for gpu in turn.gpus]
            clocks.append(
                (
                    record.arm,
                    str(shape.batch_size),
                    f"{statistics.median(gpu.sm_mhz_median for gpu in gpus):.0f}",
                    f"{min(gpu.sm_mhz_min for gpu in gpus):.0f}",
                    f"{statistics.fmean(gpu.power_w_mean for gpu in gpus):.0f}",
                    f"{max(gpu.temperature_c_max for gpu in gpus):.0f}",
                    ", ".join(sorted({reason for gpu in gpus for reason in gpu.reasons})) or "none",
                )
            )
    first = latency(arms)[0]
    machine, versions = first.origin.machine, first.origin.versions
    kernels_of_arms = ", ".join(f"{record.arm}: {record.quant_algo}, {record.moe_backend}" for record in latency(arms))
    heads = ("arm", "batch", "SM MHz median", "lowest", "W mean", "deg C most", "reasons to slow down")
    return "\n\n".join(
        [
            f"{first.gpu_name}, driver {machine.driver if machine else None}, vLLM {versions['vllm']}, torch "
            f"{versions['torch']}. {kernels_of_arms}.",
            table(arms),
            "### Scatter of loads",
            scatter_page(arms),
            "### Clocks",
            columns(heads, clocks),
        ]
    )


def scatter_page(arms: Sequence[ArmRecords]) -> str:
    """The median of every load, and how far loads of an arm and pairs of loads scatter."""
    rows = []
    for record in latency(arms):
        for shape in record.shapes:
            medians = [
                1000 * statistics.median(sample.last[timed_by(load, OF_CALLS)] for sample in load)
                for load in shape.loads
                if load
            ]
            scatter = statistics.stdev(math.log(median) for median in medians)
            loads = ", ".join(f"{median:,.1f}" for median in medians)
            rows.append((record.arm, str(shape.batch_size), loads, f"{100 * scatter:.2f} %"))
    return columns(("arm", "batch", "e2e ms of every load", "standard deviation"), rows)


def floors_page(arms: Sequence[ArmRecords]) -> str:
    """Experts that were counted, and the floors that follow from them."""
    experts, floors = [], []
    for record in latency(arms):
        for shape in record.shapes:
            place = (record.arm, str(shape.batch_size))
            experts.append((*place, f"{shape.experts_per_layer_step:.2f}", f"{shape.experts_of_independent_draws:.2f}"))
            for phase, reached in (("prefill", shape.floors.prefill), ("decode step", shape.floors.decode_step)):
                if reached is not None:
                    floors.append((*place, phase, *_floor_cells(reached)))
    first = latency(arms)[0]
    assert first.rates is not None
    assert first.workload is not None
    matrix = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in first.rates.matrix_flops_per_s.items())
    return "\n\n".join(
        [
            f"Prompts of digest {first.workload.digest}.",
            columns(("arm", "batch", "experts per layer and step", "if drawn independently"), experts),
            f"Measured rates: copy {first.rates.copy_bytes_per_s / 1e12:.2f} TB/s, {matrix}.",
            columns(("arm", "batch", "phase", "GB", "bound", "floor ms", "measured ms", "reached"), floors),
        ]
    )


def _floor_cells(reached: FloorReached) -> tuple[str, ...]:
    cells = (f"{reached.floor.bytes / 1e9:.1f}", reached.floor.bound, f"{reached.predicted_ms:.2f}")
    if reached.measured_ms is None or reached.fraction is None:
        return (*cells, "-", "-")
    return (*cells, f"{reached.measured_ms:.2f}", f"{100 * reached.fraction:.0f} %")


def repeat_page(arms: Sequence[ArmRecords]) -> str:
    engine = latency(arms)[0].labels.engine
    assert engine is not None
    assert engine.weight_bytes is not None
    layer = 128 * 3 * 2048 * 768 * 2  # bytes of the experts of one layer in BF16
    layers = engine.weight_bytes["experts"] // layer
    return f"### {layers} of 48 layers\n\n{table(arms)}\n\n{scatter_page(arms)}"


def kernels_page(folder: Path, arms: Sequence[ArmRecords]) -> str:
    """Decode steps of both arms, their difference, and what it predicts beside what was measured."""
    parts = [
        "One prefill and eight decode steps under torch's profiler, in runs of their own. Categories and ceilings are "
        "those of [the method](../method/kernels.md). The ratio without the profiler is that of the TPOT above."
    ]
    ceilings = []
    for batch in TRACED:
        stems = [f"{arm}_b{batch}_i512_o9" for arm in ARMS]
        reference, other = (kernels_record.make(stem, files.read(folder / f"{stem}.json.gz"), None) for stem in stems)
        changes = kernels.changes(reference, other, ARMS, {"decode": measured(arms, batch)})
        difference = kernels_table.paragraphs(kernels_table.difference({"decode": changes["decode"]}, ARMS))
        parts += [f"### Batch {batch}", changes["decode"].text, plain_text(difference).strip()]
        for arm, stem, record in zip(ARMS, stems, (reference, other), strict=True):
            times = json.loads((folder / f"{stem}_times.json").read_text())
            plain = statistics.median(sample["last"]["cuda_events"] for sample in times["samples"])
            phase = record.phases["decode"]
            wall = phase.wall_ceiling.if_free if phase.wall_ceiling else None
            ceilings.append(
                (
                    arm,
                    str(batch),
                    f"{record.precision_seen} on {record.moe_backend_seen}",
                    f"{100 * phase.classified:.1f} %",
                    f"{100 * phase.categories['expert_gemm'].share:.1f} %",
                    f"{phase.ceiling.if_free:.2f}x",
                    f"{wall:.2f}x",
                    f"{phase.ceiling.if_twice_as_fast:.2f}x",
                    f"{100 * (times['profiled']['cuda_events'] / plain - 1):+.0f} %",
                )
            )
    heads = (
        "arm",
        "batch",
        "experts ran",
        "classified",
        "expert GEMM",
        "ceiling, busy",
        "ceiling, wall",
        "busy, GEMM twice as fast",
        "profiler's cost",
    )
    return "\n\n".join([*parts, "### Ceilings of a decode step", columns(heads, ceilings)])


def measured(arms: Sequence[ArmRecords], batch: int) -> float | None:
    """How many times shorter the second arm's TPOT is than the first's, where both were measured."""
    tpot = {
        record.arm: shape.metrics.tpot_ms.median
        for record in latency(arms)
        for shape in record.shapes
        if shape.batch_size == batch and shape.metrics.tpot_ms is not None
    }
    return tpot[ARMS[0]] / tpot[ARMS[1]] if set(ARMS) <= set(tpot) else None


def inside_page(inside: dict[str, Any]) -> str:
    ratios = [*inside["cost"], inside["score_vs_prefill"], inside["score_vs_lm_eval"]]
    rows = [
        (
            ratio["name"],
            "{:.4f}".format(ratio["ratio"][0]),
            "{:.4f} to {:.4f}".format(*ratio["ratio"][1:]),
            str(len(ratio["first_s"])),
        )
        for ratio in ratios
    ]

    def rate(blocks: list[list[float]]) -> str:
        seconds = statistics.median(second for block in blocks for second in block)
        return f"{inside['tokens'] / seconds:,.0f} tokens/s"

    facts, scored = inside["facts"], inside["score_vs_prefill"]
    return "\n\n".join(
        [
            f"{facts['device_name']}, vLLM {facts['version']}, {facts['precision']}, {facts['moe_backend_observed']}, "
            f"worker {facts['worker']}. One process and one load took turns of A B B A. Ratios are of seconds, with a "
            "95 % interval by block.",
            columns(("ratio", "value", "95 % interval", "blocks"), rows),
            f"Prefill {rate(scored['first_s'])}, scoring {rate(scored['second_s'])}, lm-evaluation-harness's vllm "
            f"{rate(inside['score_vs_lm_eval']['first_s'])}. The two scorings differ by at most "
            f"{inside['largest_difference_nats']:.3g} nats in a window.",
        ]
    )


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
