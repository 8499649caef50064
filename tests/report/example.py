"""A comparison written by hand: fp8 with speed and kernels, nvfp4 emulated, one failed arm, one not comparable."""

from __future__ import annotations

import copy
import math
from typing import Any

# ms per decode step and per prefill of the reference at batch 1; the other arm's is before * the factor
_STEP = {
    "expert_gemm": (2.10, 0.52), "attention": (0.61, 1.0), "gate_gemm": (0.08, 1.0), "dense_gemm": (0.74, 0.97),
    "routing_permute": (0.22, 1.05), "quant_dequant": (0.0, 0.0), "norm": (0.19, 1.0), "rope_kv": (0.11, 1.0),
    "activation": (0.13, 1.0), "sampling": (0.05, 1.0), "memory": (0.04, 1.0), "elementwise": (0.09, 1.0),
    "other": (0.012, 1.0),
}  # fmt: skip
_QUANT = 0.31
_BATCHES = {
    1: (1.04, 0.981, 1.102, "inconclusive"),
    8: (1.292, 1.268, 1.317, "pays"),
    32: (1.443, 1.441, 1.445, "pays"),
}


def comparison() -> dict[str, Any]:
    """A new one for every test."""
    return copy.deepcopy({
        "schema": 1,
        "reference": "bf16",
        "arms": [
            _arm("bf16", "TRITON", perplexity={"token_ppl": 14.2213, "word_ppl": 21.5121, "bits_per_byte": 0.81234}),
            _arm("fp8", "DEEPGEMM", perplexity={"token_ppl": 14.2784, "word_ppl": None, "bits_per_byte": 0.81345}),
            _arm("nvfp4", None, emulated=True, engine="hf"),
            _arm("mxfp4", None, status="failed", error="CUDA out of memory <at load>"),
            _arm("fp8_other", "CUTLASS", gpu="NVIDIA B200"),
        ],
        "pairs": [_fp8(), _nvfp4(), _not_comparable()],
    })  # fmt: skip


def run() -> dict[str, Any]:
    return {
        "machine": {"os": "Linux", "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85017493504}]},
        "versions": {"torch": "2.11.0", "vllm": "0.22.1"},
        "git": "c41782c07aba",
        "workload": {"digest": "a6d8fa5e037f3212", "source": "wikitext_local"},
        "schedule": {"mode": "reloaded", "blocks": 2, "per_block": 3},
        "started": "2026-01-02T03:04:05+00:00",
        "asked": {"precisions": "bf16,fp8,nvfp4", "batch_size": "1,8,32"},
    }


def _arm(name: str, backend: str | None, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "precision": name, "precision_seen": None, "engine": "vllm", "engine_version": "0.22.1",
        "gpu": "NVIDIA H100 80GB HBM3", "emulated": False, "moe_backend": backend, "status": "finished", "error": None,
        "perplexity": None, **more,
    }  # fmt: skip


def _fp8() -> dict[str, Any]:
    return {
        "reference": "bf16", "other": "fp8", "verdict": "pays",
        "sentence": "fp8 pays from batch 8 (1.292x, 1.268 to 1.317) at +0.4 % perplexity; at batch 1 it does not.",
        "because": "at batch 1 the expert GEMMs are 48 % of the step, and quantisation takes back 0.31 ms.",
        "settled_by": "more blocks: give --blocks 4", "differs": [],
        "schedule": {"mode": "sequential", "blocks": 2, "per_block": 3, "one_run": True},
        "shapes": [_shape(batch) for batch in _BATCHES],
        "quality": _quality(0.00401, 0.00081, 0.00132, 0.0187),
        "labels": [{"label": "moe_backend", "reference": "TRITON", "other": "DEEPGEMM"}],
    }  # fmt: skip


def _shape(batch: int) -> dict[str, Any]:
    value, low, high, verdict = _BATCHES[batch]
    e2e, tpot, ttft = 1310.715 * batch**0.4, 4.887 * batch**0.4, 64.426 * batch**0.5
    speed = {"value": value, "low": low, "high": high, "blocks": 2}
    medians = {"e2e_ms": [e2e, e2e / value], "tpot_ms": [tpot, tpot / value], "ttft_ms": [ttft, ttft / 1.19]}
    phases = {phase: _phase(scale * batch**0.4) for phase, scale in (("prefill", 11.0), ("decode", 1.0))}
    return {
        "name": f"b{batch}_i512_o256", "batch_size": batch, "input_len": 512, "output_len": 256, "verdict": verdict,
        "reason": "the interval holds 1" if batch == 1 else "the interval lies above 1",
        "speed": {
            "e2e_ms": {**speed, "source": "cuda_events"}, "tpot_ms": {**speed, "source": "engine"},
            "ttft_ms": {"value": 1.19, "low": 0.43, "high": 3.283, "blocks": 2, "source": "engine"},
        },
        "medians": {**medians, "j_per_tok": [1.514 / batch, 1.118 / batch]},
        "intervals": {name: [[0.99 * one, 1.01 * one], [0.98 * two, 1.02 * two]]
                      for name, (one, two) in medians.items()},
        "fair": None if batch == 1 else True, "fair_reason": "bf16: not measured" if batch == 1 else None,
        "clocks": {"sm_mhz": [1980.0, 1965.0], "slow_samples": [0, batch]},
        "kernels": {phase: each for phase, (each, _) in phases.items()},
        "breakdown": {phase: each for phase, (_, each) in phases.items()},
        "ceiling": {"prefill": {"busy": 1.81, "wall": None, "share": 0.448},
                    "decode": {"busy": 1.93, "wall": 1.76, "share": 0.4831}},
        "predicted": {"busy": 1.213, "step": 1.187}, "measured": value,
    }  # fmt: skip


def _phase(scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    sides = {name: [scale * ms, scale * ms * factor] for name, (ms, factor) in _STEP.items()}
    sides["quant_dequant"] = [0.0, scale * _QUANT]
    change = sum(after - before for before, after in sides.values())
    overlap, waiting, residual, before = 0.01 * scale, 0.12 * scale, -0.004 * scale, 4.887 * scale
    kernels = {
        "categories": {
            name: {"before_ms": one, "after_ms": two, "change_ms": two - one, "before_launches": 48.0,
                   "after_launches": 96.0 if name == "quant_dequant" else 48.0}
            for name, (one, two) in sides.items()
        },
        "kernel_change_ms": change, "step_is": "wall",
        "step_ms": [before, before + change - overlap + waiting + residual],
        "busy_ms": [4.362 * scale, 3.6 * scale], "overlap_change_ms": overlap, "waiting_change_ms": waiting,
        "residual_ms": residual, "predicted_ratio_busy": 1.21, "predicted_ratio_step": 1.18, "measured_ratio": 1.04,
        "new": [{"name": "void deep_gemm::fp8<64, 128>(int)", "category": "expert_gemm", "fused_with": [],
                 "ms": 1.09 * scale, "launches": 96.0}],
        "vanished": [], "text": "the expert GEMMs of fp8 take less time per step than those of bf16.",
    }  # fmt: skip
    return kernels, sides


def _quality(value: float, error: float, mean: float, p99: float) -> dict[str, Any]:
    return {
        "ln_ppl_ratio": {"value": value, "error": error, "low": value - 2 * error, "high": value + 2 * error},
        "ppl_change": math.expm1(value), "kld_mean": mean, "kld_p99": p99, "same_top1": 0.9812,
        "noise_floor": 0.000213, "flag": None, "no_interval": None, "random_weights": False,
    }  # fmt: skip


def _nvfp4() -> dict[str, Any]:
    return {
        "reference": "bf16", "other": "nvfp4", "verdict": "inconclusive",
        "sentence": "nvfp4, quality only: +2.3 % perplexity (+1.8 to +2.8 %)", "because": "",
        "settled_by": "an engine that runs nvfp4 natively tells its speed", "differs": [], "shapes": [],
        "quality": _quality(0.0231, 0.0024, 0.0219, 0.2931),
        "labels": [{"label": "engine", "reference": "vllm", "other": "hf"},
                   {"label": "moe_backend", "reference": "TRITON", "other": None}],
    }  # fmt: skip


def _not_comparable() -> dict[str, Any]:
    return {
        "reference": "bf16", "other": "fp8_other", "verdict": "not comparable",
        "sentence": "fp8_other is not comparable with bf16: another GPU.", "because": "", "settled_by": None,
        "differs": ["GPU: NVIDIA H100 80GB HBM3 against NVIDIA B200"], "shapes": [], "quality": None,
        "labels": [{"label": "gpu", "reference": "NVIDIA H100 80GB HBM3", "other": "NVIDIA B200"}],
    }  # fmt: skip
