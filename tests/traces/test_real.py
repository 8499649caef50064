"""Traces of real engines on real GPUs: this project's own, and others where they lie beside the checkout."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from moe_eval.comparison import kernels
from moe_eval.evaluators import kernels_record
from moe_eval.records.kernels import KernelsRecord
from moe_eval.records.shape_comparison import PhaseChange
from moe_eval.traces.readers import files

OWN = Path(__file__).parent / "data"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
STEM = "vllm-0.22.1-h100-qwen3-30b-a3b"
PAIRS = {
    "b1": ("random-bf16-b1", "random-fp8-b1", 8),
    "b8": ("dummy-bf16-b8", "dummy-fp8-b8", 15),
    "b32": ("random-bf16-b32", "random-fp8-b32", 8),
}
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared traces are not beside the checkout")


def shared(name: str) -> Path:
    return SHARED / f"{STEM}-{name}.json.gz"


def read(path: Path) -> KernelsRecord:
    return kernels_record.make(path.name, files.read(path), None)


def changes(before: KernelsRecord, after: KernelsRecord, ratio: float | None = None) -> dict[str, PhaseChange]:
    return kernels.changes(before, after, ("bf16", "fp8"), {"decode": ratio})


def plain_sums(path: Path) -> tuple[dict[str, float], int]:
    """Microseconds by kernel name and the number of decode graphs, straight from the JSON."""
    with gzip.open(path) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    sums: dict[str, float] = defaultdict(float)
    for each in events:
        if each.get("cat") == "kernel":
            sums[each["name"]] += each["dur"]
    return sums, sum(each.get("name") == "cudaGraphLaunch" for each in events)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=needs_shared) for name in PAIRS])
def pair(request: pytest.FixtureRequest) -> tuple[str, KernelsRecord, KernelsRecord]:
    before, after, _ = PAIRS[request.param]
    return request.param, *(read(shared(each)) for each in (before, after))


def test_every_step_is_there_and_nearly_all_time_is_classified(pair: tuple[str, KernelsRecord, KernelsRecord]) -> None:
    name, *both = pair
    for file, precision, record in zip(PAIRS[name], ("bf16", "fp8"), both, strict=False):
        _, graphs = plain_sums(shared(str(file)))
        steps = {name: phase.steps + sum(phase.set_aside.values()) for name, phase in record.phases.items()}
        assert list(steps.items()) == [("prefill", 1), ("decode", graphs)]
        assert graphs == PAIRS[name][2]
        assert all(phase.classified >= 0.98 for phase in record.phases.values())
        assert all(phase.moe_layers == 48 for phase in record.phases.values())
        assert (record.precision_seen, record.moe_backend_seen) == (precision, "triton")
        for phase in record.phases.values():
            assert phase.categories["expert_gemm"].launches_per_layer == 2
            assert phase.categories["gate_gemm"].launches == 48


@needs_shared
def test_the_expert_gemm_s_share_is_that_of_the_triton_kernels() -> None:
    path = shared("dummy-bf16-b8")
    record = read(path)
    sums, _ = plain_sums(path)
    share = sums["fused_moe_kernel"] / sum(sums.values())
    assert 0.66 <= share <= 0.68
    experts = sum(phase.categories["expert_gemm"].ms * phase.steps for phase in record.phases.values())
    everything = sum(phase.total_ms * phase.steps for phase in record.phases.values())
    assert experts / everything == pytest.approx(share, abs=0.01)  # medians times steps, and copies count as well
    assert 0.66 <= experts / everything <= 0.68


def test_the_difference_names_what_quantisation_costs(pair: tuple[str, KernelsRecord, KernelsRecord]) -> None:
    _, before, after = pair
    for phase in changes(before, after).values():
        assert phase.categories["expert_gemm"].change_ms < 0 < phase.categories["quant_dequant"].change_ms
        assert any(
            "quant" in kernel.name or "amax" in kernel.name or "max_reduction" in kernel.name for kernel in phase.new
        )
        assert "quant_dequant" in phase.text


@needs_shared
def test_batch_1_is_explained_in_one_paragraph() -> None:
    """TPOT without the profiler: 4.86 and 4.83 ms. Kernels get faster by half a millisecond, gaps slower by more."""
    before, after = (read(shared(each)) for each in PAIRS["b1"][:2])
    decode = changes(before, after, 4.86 / 4.83)["decode"]
    assert decode.busy_ms == pytest.approx((4.63, 4.27), abs=0.01)
    assert decode.step_ms == pytest.approx((5.07, 5.30), abs=0.02)
    assert sum(category.before_launches for category in decode.categories.values()) == 895
    assert sum(category.after_launches for category in decode.categories.values()) == 1231
    expert = decode.categories["expert_gemm"]
    assert (expert.before_ms, expert.after_ms) == pytest.approx((1.56, 0.93), abs=0.01)
    assert before.phases["decode"].ceiling.if_free == pytest.approx(1.5, abs=0.02)
    assert "\n" not in decode.text
    for part in ("0.636 ms less", "quant_dequant +0.515 ms", "Gaps between kernels grow by 0.60", "1.086x", "1.006x"):
        assert part in decode.text
    assert (decode.predicted_ratio_step or 0) < 4.86 / 4.83 < (decode.predicted_ratio_busy or 0)


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_project_s_own_traces(batch: int) -> None:
    """Taken by benchmarks/h100.py with natural prompts; TPOT without the profiler in docs/results/h100.md."""
    paths = [OWN / f"{precision}_b{batch}_i512_o9.json.gz" for precision in ("bf16", "fp8")]
    records = [read(path) for path in paths]
    for record, path, precision in zip(records, paths, ("bf16", "fp8"), strict=True):
        sums, graphs = plain_sums(path)
        steps = [(name, phase.steps) for name, phase in record.phases.items()]
        assert (graphs, steps) == (8, [("prefill", 1), ("decode", 8)])
        assert record.precision_seen == precision
        assert all(phase.classified > 0.99 for phase in record.phases.values())
        experts = record.categories["expert_gemm"]
        assert experts.time == pytest.approx(sums["fused_moe_kernel"] / 1000)
        assert record.ceiling == pytest.approx(1 / (1 - experts.share))
        for phase in record.phases.values():
            (kernel,) = [kernel for kernel in phase.functions if kernel.category == "expert_gemm"]
            assert kernel.ms == pytest.approx(phase.categories["expert_gemm"].ms)
    for phase in changes(*records).values():
        assert phase.categories["expert_gemm"].change_ms < 0 < phase.categories["quant_dequant"].change_ms
