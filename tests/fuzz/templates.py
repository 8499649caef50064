"""Folders of files that commands read, each valid, from which examples are made."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.doubles import chrome_trace, harness_results, nsys_database, recorded_arms
from tests.doubles.servers import recorded_run

SIZES = ["--batch_size", "8", "--input_len", "512", "--output_len", "256"]
_TIMES = {"p50": 800.0, "average": 801.0, "minimum": 700.0, "maximum": 900.0}
TOOLS: Mapping[str, Any] = {
    "latency.json": {
        "model_id": "Q",
        "avg_latency": 1.0,
        "latencies": [1.0, 1.01, 0.99],
        "percentiles": {"50": 1.0, "99": 1.01},
    },
    "throughput.json": {
        "elapsed_time": 4.0,
        "num_requests": 8,
        "total_num_tokens": 8 * 768,
        "requests_per_second": 2.0,
        "tokens_per_second": 1536.0,
    },
    "serving.json": {
        "date": "20261127-080000",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "label": None,
        "model_id": "Q",
        "num_prompts": 16,
        "request_rate": "inf",
        "max_concurrency": 8,
        "duration": 10.0,
        "completed": 16,
        "failed": 0,
        "total_input_tokens": 16 * 512,
        "total_output_tokens": 16 * 256,
        "output_throughput": 409.6,
        "median_ttft_ms": 90.0,
        "median_tpot_ms": 9.5,
        "median_e2el_ms": 2500.0,
    },
    "trtllm.json": {
        "engine": {
            "model": "Q",
            "version": "1.2.0",
            "dtype": "bfloat16",
            "kv_cache_dtype": None,
            "quantization": "NVFP4",
        },
        "machine": {"name": recorded_arms.GPU},
        "world_info": {"tp_size": 1, "pp_size": 1, "ep_size": 1, "world_size": 1, "max_batch_size": 8},
        "request_info": {
            "num_requests": 10,
            "avg_num_concurrent_requests": 7.9,
            "avg_input_length": 512.0,
            "avg_output_length": 256.0,
        },
        "performance": {
            "total_latency_ms": 8000.0,
            "system_output_throughput_tok_s": 320.0,
            "request_latency_percentiles_ms": _TIMES,
        },
        "streaming_metrics": {"ttft_percentiles": _TIMES, "tpot_percentiles": _TIMES},
    },
    "aiperf.json": {
        "schema_version": "1.4",
        "aiperf_version": "0.13.0",
        "was_cancelled": False,
        "request_latency": {"unit": "ms", "avg": 2750.0, "p50": 2500.0},
        "time_to_first_token": {"unit": "ms", "avg": 88.0, "p50": 80.0},
        "request_count": {"unit": "requests", "avg": 16.0},
        "input_sequence_length": {"unit": "tokens", "avg": 512.0},
        "output_sequence_length": {"unit": "tokens", "avg": 256.0},
        "telemetry_data": {"endpoints": {"localhost": {"gpus": {"gpu_0": {"gpu_name": recorded_arms.GPU}}}}},
        "input_config": {"models": {"items": [{"name": "Q"}]}, "phases": [{"name": "profiling", "concurrency": 8}]},
    },
}
YAML: Mapping[str, Any] = {
    "model_path": None,
    "precisions": ["bf16", "fp8"],
    "emulate": True,
    "scope": "experts",
    "dataset": "moe_sample",
    "input_len": 64,
    "num_chunks": 4,
    "batch_size": [1, 2],
    "output_len": 8,
    "num_iterations": 5,
    "loads": 3,
    "aa": False,
    "min_gain": 0.01,
    "timeout": 60,
    "evaluators": ["quality", "latency"],
    "gate": "speed>=1.2",
    "model_args": "dtype=float32",
    "price_per_gpu_hour": 2.5,
    "profiler": "torch",
}
ARMS: Mapping[str, Any] = {
    "dataset": "moe_sample",
    "input_len": 64,
    "output_len": 8,
    "arms": {
        "defaults": {"engine": "vllm", "gpu_memory_utilization": 0.8},
        "a": {"checkpoint": "moe", "precision": "bf16", "tensor_parallel_size": 1, "env": {"VLLM_USE_DEEP_GEMM": "1"}},
        "b": {"checkpoint": "moe", "precision": "bf16", "expert_parallel": 1, "moe_backend": "auto", "max_num_seqs": 8},
    },
}
_CONFIG: Mapping[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "num_experts": 6,
    "moe_intermediate_size": 12,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": False},
                "input_activations": {"type": "float", "num_bits": 8, "strategy": "tensor"},
            }
        },
        "kv_cache_scheme": {"type": "float", "num_bits": 8, "dynamic": False},
    },
}
_MODELOPT = {
    "producer": {"name": "modelopt", "version": "0.31"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head", "*gate*"]},
}
_EXPERT = "model.layers.0.mlp.experts.0.up_proj"
_HEADER: Mapping[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.norm.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
    f"{_EXPERT}.weight": {"dtype": "F8_E4M3", "shape": [2, 4], "data_offsets": [8, 16]},
    f"{_EXPERT}.weight_scale": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
}


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(20)


def checkpoint(folder: Path) -> None:
    """An MoE in FP8 as its settings, its index and a header say it."""
    folder.mkdir()
    index = {"metadata": {"total_size": 20}, "weight_map": dict.fromkeys(list(_HEADER)[1:], "model.safetensors")}
    files = {
        "config.json": _CONFIG,
        "hf_quant_config.json": _MODELOPT,
        "model.safetensors.index.json": index,
        "generation_config.json": {"eos_token_id": [1, 2]},
        "tokenizer_config.json": {"model_max_length": 512},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(safetensors(json.dumps(_HEADER).encode()))


def records(folder: Path) -> None:
    """Two runs, of which one has kernels, results of the harness, and an archive."""
    recorded_run(folder / "run")
    other = folder / "other"
    other.mkdir()
    arms = [
        recorded_arms.arm(name, {1: [[speed, speed + 1]] * 3}, run_id="f" * 32)
        for name, speed in (("a", 90.0), ("b", 80.0))
    ]
    kernels = recorded_arms.kernels("a")
    arms[0] = replace(arms[0], kernels={kernels.shape or "": kernels})
    recorded_arms.write(other, arms, record=recorded_arms.run(["a", "b"], run_id="f" * 32))
    for name in ("first", "second"):
        harness_results.write(
            folder / name, {"arc": [1, 0, 1, 1], "piqa": [0, 0, 1]}, groups={"both": (["arc", "piqa"], 0.6)}
        )


def traces(folder: Path) -> None:
    """One trace of every kind."""
    chrome_trace.write(folder / "chrome.json", steps=2, layers=2)
    nsys_database.write(folder / "nsys.sqlite", steps=2, layers=1)
    header = "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,Bytes (MB),Device,Strm,Name\n"
    rows = (f"{1000 * at},{900 + at},{at},4,3,2,,NVIDIA H100 (0),7,nvjet_tst_{at}" for at in range(1, 6))
    (folder / "stats.csv").write_text(header + "\n".join(rows) + "\n")


def options(folder: Path) -> None:
    """Options of a run, and arms by name, whose checkpoint lies beside them."""
    checkpoint(folder / "moe")
    (folder / "run.yaml").write_text(json.dumps(YAML))
    (folder / "arms.yaml").write_text(json.dumps(ARMS))


def tools(folder: Path) -> None:
    """A file of every tool."""
    for name, content in TOOLS.items():
        (folder / name).write_text(json.dumps(content))
