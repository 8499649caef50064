"""The page about benchmarks/h100.py's records: python benchmarks/h100_page.py OUT docs/results/h100.md

OUT holds the records of `moe-eval perf`, OUT/run those of `moe-eval run`, every OUT/aa* those of one `perf --aa`,
OUT/traces what `h100.py traces` left, and inside.json is beside them. What the speeds mean is kept as it stands in the
page.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from h100 import QWEN3_30B_A3B

from moe_eval.comparison import kernels
from moe_eval.evaluators import kernels_record
from moe_eval.records.comparison import PhaseChange
from moe_eval.report import kernels_table, speed_table
from moe_eval.report.console import print_renderable
from moe_eval.report.quality_table import columns
from moe_eval.traces.readers import files

MEANING = "## What it means"
TRACED = (1, 8, 32)
ARMS = ("bf16", "fp8")
_HOW = """Qwen3-30B-A3B's shape with random weights (normal 0.02, norms 1, another seed for every tensor), prompts of
WikiText-2 cut with the shipped model's tokenizer, so that tokens repeat as they do in text. vLLM has no tuned
configuration of its Triton experts for this shape on an H100 and says so; another backend or a tuned one would be
faster. Made by `benchmarks/h100.py`, which says how."""


def write_page(out: Path, file: Path) -> None:
    finished, run = (_speeds(each) for each in (out, out / "run"))
    same = [same_page(found) for each in sorted(out.glob("aa*")) if (found := _speeds(each))]
    parts = ["# One H100: BF16 against FP8 through vLLM", _HOW]
    parts += ["## Speed", speed_page(finished) if finished else "Not run yet."]
    parts += ["### Experts and floors", floors_page(run) if run else "Not run yet."]
    if MEANING in (before := file.read_text() if file.is_file() else ""):
        parts.append(MEANING + before.split(MEANING)[1].split("\n## ")[0].rstrip())
    parts += ["## BF16 against itself", *(same or ["Not run yet."])]
    traces = out / "traces"
    parts += ["## Where the time goes", kernels_page(traces, finished) if traces.is_dir() else "Not run yet."]
    inside_file = out / "inside.json"
    parts += ["## The evaluator and scoring", inside_page(json.loads(inside_file.read_text()))
              if inside_file.is_file() else "Not run yet."]  # fmt: skip
    file.write_text("\n\n".join(parts) + "\n")


def _speeds(folder: Path) -> list[dict[str, Any]]:
    """The finished records of a folder, the reference first."""
    found = [json.loads(each.read_text()) for each in sorted(folder.glob("perf_*_sm*.json"))]
    return sorted(
        (each for each in found if each["status"] == "finished"), key=lambda each: each["reference"] is not None
    )


def speed_page(found: Sequence[dict[str, Any]]) -> str:
    clocks = []
    for record in found:
        for row in record["shapes"]:
            name = (record["arm"], str(row["batch_size"]))
            seen = [gpu for block in row["gpu"] for gpu in block["gpus"]]
            clocks.append(
                (*name, f"{statistics.median(gpu['sm_mhz_median'] for gpu in seen):.0f}",
                 f"{min(gpu['sm_mhz_min'] for gpu in seen):.0f}",
                 f"{statistics.fmean(gpu['power_w_mean'] for gpu in seen):.0f}",
                 f"{max(gpu['temperature_c_max'] for gpu in seen):.0f}",
                 ", ".join(sorted({reason for gpu in seen for reason in gpu["reasons"]})) or "none")
            )  # fmt: skip
    first = found[0]
    return "\n\n".join(
        [
            f"{first['gpu_name']}, driver {first['machine']['driver']}, vLLM {first['versions']['vllm']}, "
            f"torch {first['versions']['torch']}; "
            + "; ".join(f"{each['arm']}: {each['quant_algo']}, {each['moe_backend']}" for each in found),
            speed_table.render(found),
            "### Clocks",
            columns(
                ("arm", "batch", "SM MHz median", "lowest", "W mean", "deg C most", "reasons to slow down"), clocks
            ),
        ]
    )


def floors_page(found: Sequence[dict[str, Any]]) -> str:
    """Experts that were counted, and the floors that follow from them."""
    experts, floors = [], []
    for record in found:
        for row in record["shapes"]:
            name = (record["arm"], str(row["batch_size"]))
            fair = (row["versus_reference"] or {}).get("fair")
            experts.append(
                (*name, f"{row['experts_per_layer_step']:.2f}", f"{row['experts_of_independent_draws']:.2f}",
                 "reference" if fair is None else "yes" if fair else "no")
            )  # fmt: skip
            for phase, floor in row["floors"].items():
                floors.append(
                    (*name, phase.replace("_", " "), f"{floor['bytes'] / 1e9:.1f}", floor["bound"],
                     f"{floor['predicted_ms']:.2f}", *_reached(floor))
                )  # fmt: skip
    rates, workload = found[0]["rates"], found[0]["workload"]
    matrix = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates["matrix_flops_per_s"].items())
    return "\n\n".join(
        [
            "Of one `moe-eval run` at another time, on another machine of the kind ([its report](h100-run.md)), with "
            f"the same weights and prompts (digest {workload['digest']}).",
            columns(("arm", "batch", "experts per layer and step", "if drawn independently", "fair"), experts),
            f"Measured rates: copy {rates['copy_bytes_per_s'] / 1e12:.2f} TB/s, {matrix}.",
            columns(("arm", "batch", "phase", "GB", "bound", "floor ms", "measured ms", "reached"), floors),
        ]
    )


def _reached(floor: dict[str, Any]) -> tuple[str, str]:
    if floor["measured_ms"] is None:
        return "-", "-"
    return f"{floor['measured_ms']:.2f}", f"{100 * floor['fraction_of_floor']:.0f} %"


def same_page(found: Sequence[dict[str, Any]]) -> str:
    experts = found[0]["labels"]["engine"]["weight_bytes"]["experts"]
    shape = QWEN3_30B_A3B
    layer = shape["num_experts"] * 3 * shape["hidden_size"] * shape["moe_intermediate_size"] * 2  # bytes in BF16
    return f"### {experts // layer} of {shape['num_hidden_layers']} layers\n\n{speed_table.render(found)}"


def kernels_page(folder: Path, records: Sequence[dict[str, Any]]) -> str:
    """Decode steps of both arms, their difference, and what it predicts beside what was measured."""
    parts = [
        "One prefill and eight decode steps under torch's profiler, in runs of their own; categories and ceilings as "
        "in [kernels.md](../kernels.md). The ratio measured without the profiler is that of the TPOT above."
    ]
    ceilings = []
    for batch in TRACED:
        stems = [f"{arm}_b{batch}_i512_o9" for arm in ARMS]
        records_of_arms = [kernels_record.make(stem, files.read(folder / f"{stem}.json.gz"), None) for stem in stems]
        changes = kernels.changes(*records_of_arms, ARMS, {"decode": measured(records, batch)})
        parts += [f"### Batch {batch}", difference_text({"decode": changes["decode"]})]
        for arm, stem, record in zip(ARMS, stems, records_of_arms, strict=True):
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
    heads = ("arm", "batch", "experts ran", "classified", "expert GEMM", "ceiling, busy", "ceiling, wall",
             "busy, GEMM twice as fast", "profiler's cost")  # fmt: skip
    return "\n\n".join([*parts, "### Ceilings of a decode step", columns(heads, ceilings)])


def difference_text(changes: dict[str, PhaseChange]) -> str:
    """The tables and paragraphs of a difference as Markdown."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_renderable(kernels_table.difference(changes, ARMS))
    return text.getvalue().strip()


def measured(records: Sequence[dict[str, Any]], batch: int) -> float | None:
    """How many times shorter the second arm's TPOT is than the first's, where both were measured."""
    tpot = {
        record["arm"]: row["metrics"]["tpot_ms"]["median"]
        for record in records
        for row in record["shapes"]
        if row["batch_size"] == batch
    }
    return tpot[ARMS[0]] / tpot[ARMS[1]] if set(ARMS) <= set(tpot) else None


def inside_page(found: dict[str, Any]) -> str:
    rows = [(each["name"], "{:.4f}".format(each["ratio"][0]), "{:.4f} to {:.4f}".format(*each["ratio"][1:]),
             str(len(each["first_s"]))) for each in (*found["cost"], found["score_vs_prefill"],
                                                     found["score_vs_lm_eval"])]  # fmt: skip

    def rate(seconds: list[list[float]]) -> str:
        return f"{found['tokens'] / statistics.median(one for block in seconds for one in block):,.0f} tokens/s"

    facts, scored = found["facts"], found["score_vs_prefill"]
    return "\n\n".join(
        [
            f"{facts['device_name']}, vLLM {facts['version']}, {facts['precision']}, {facts['moe_backend_observed']}, "
            f"worker {facts['worker']}:\n"
            "one process, one load, turns of A B B A; ratios of seconds with a 95 % interval "
            "by block.",
            columns(("ratio", "value", "95 % interval", "blocks"), rows),
            f"Prefill {rate(scored['first_s'])}, scoring {rate(scored['second_s'])},\n"
            f"lm-evaluation-harness's vllm {rate(found['score_vs_lm_eval']['first_s'])}. The two scorings differ by\n"
            f"at most {found['largest_difference_nats']:.3g} nats in a window.",
        ]
    )


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
