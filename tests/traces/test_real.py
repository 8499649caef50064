"""Traces of real engines on real GPUs: this project's own, and others where they lie beside the checkout."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from moe_eval.comparison import kernel_difference
from moe_eval.traces import breakdown
from moe_eval.traces.figures import Breakdown
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
def pair(request: pytest.FixtureRequest) -> tuple[str, Breakdown, Breakdown]:
    one, two, _ = PAIRS[request.param]
    return request.param, *(breakdown.make(files.read(shared(each))) for each in (one, two))


def test_every_step_is_there_and_nearly_all_time_is_classified(pair: tuple[str, Breakdown, Breakdown]) -> None:
    name, *both = pair
    for file, precision, found in zip(PAIRS[name], ("bf16", "fp8"), both, strict=False):
        _, graphs = plain_sums(shared(str(file)))
        assert [(each.name, each.steps + sum(each.aside.values())) for each in found.phases] == [
            ("prefill", 1),
            ("decode", graphs),
        ]
        assert graphs == PAIRS[name][2]
        assert all(each.classified >= 0.98 for each in found.phases)
        assert all(each.moe_layers == 48 for each in found.phases)
        assert (found.seen.precision, found.seen.backend) == (precision, "triton")
        for each in found.phases:
            assert each.share("expert_gemm").launches_per_layer == 2
            assert each.share("gate_gemm").launches == 48


@needs_shared
def test_the_expert_gemm_s_share_is_that_of_the_triton_kernels() -> None:
    path = shared("dummy-bf16-b8")
    found = breakdown.make(files.read(path))
    sums, _ = plain_sums(path)
    share = sums["fused_moe_kernel"] / sum(sums.values())
    assert 0.66 <= share <= 0.68
    experts = sum(each.share("expert_gemm").ms * each.steps for each in found.phases)
    everything = sum(each.kernel_ms * each.steps for each in found.phases)
    assert experts / everything == pytest.approx(share, abs=0.01)  # medians times steps, and copies count as well
    assert 0.66 <= experts / everything <= 0.68


def test_the_difference_names_what_quantisation_costs(pair: tuple[str, Breakdown, Breakdown]) -> None:
    _, one, two = pair
    for phase in kernel_difference.make(one, two):
        change = {each.category: each.change_ms for each in phase.changes}
        assert change["expert_gemm"] < 0 < change["quant_dequant"]
        assert any("quant" in each.name or "amax" in each.name or "max_reduction" in each.name for each in phase.new)
        assert "quant_dequant" in kernel_difference.explain(phase, ("bf16", "fp8"))


@needs_shared
def test_batch_1_is_explained_in_one_paragraph() -> None:
    """TPOT without the profiler: 4.86 and 4.83 ms. Kernels get faster by half a millisecond, gaps slower by more."""
    one, two = (breakdown.make(files.read(shared(each))) for each in PAIRS["b1"][:2])
    (decode,) = [each for each in kernel_difference.make(one, two) if each.name == "decode"]
    assert decode.busy_ms == pytest.approx((4.63, 4.27), abs=0.01)
    assert decode.step_ms == pytest.approx((5.07, 5.30), abs=0.02)
    assert sum(each.before_launches for each in decode.changes) == 895
    assert sum(each.after_launches for each in decode.changes) == 1231
    expert = next(each for each in decode.changes if each.category == "expert_gemm")
    assert (expert.before_ms, expert.after_ms) == pytest.approx((1.56, 0.93), abs=0.01)
    decode_one = one.phase("decode")
    assert decode_one is not None
    assert decode_one.busy_ceiling.free == pytest.approx(1.5, abs=0.02)
    text = kernel_difference.explain(decode, ("bf16", "fp8"), 4.86 / 4.83)
    assert "\n" not in text
    for part in ("0.636 ms less", "quant_dequant +0.515 ms", "gaps between kernels grow by 0.60", "1.086x", "1.006x"):
        assert part in text
    assert (decode.step_ratio or 0) < 4.86 / 4.83 < (decode.busy_ratio or 0)


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_project_s_own_traces(batch: int) -> None:
    """Taken by benchmarks/h100.py with natural prompts; TPOT without the profiler in docs/results/h100.md."""
    paths = [OWN / f"{precision}_b{batch}_i512_o9.json.gz" for precision in ("bf16", "fp8")]
    found = [breakdown.make(files.read(path)) for path in paths]
    for each, path, precision in zip(found, paths, ("bf16", "fp8"), strict=True):
        sums, graphs = plain_sums(path)
        assert (graphs, [(one.name, one.steps) for one in each.phases]) == (8, [("prefill", 1), ("decode", 8)])
        assert each.seen.precision == precision
        assert all(one.classified > 0.99 for one in each.phases)
        experts = sum(one.ms * phase.steps for phase in each.phases for one in phase.functions
                      if one.category == "expert_gemm")  # fmt: skip
        assert experts == pytest.approx(sums["fused_moe_kernel"] / 1000)
    for phase in kernel_difference.make(*found):
        change = {each.category: each.change_ms for each in phase.changes}
        assert change["expert_gemm"] < 0 < change["quant_dequant"]
