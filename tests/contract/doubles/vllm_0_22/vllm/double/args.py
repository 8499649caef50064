"""EngineArgs, and the configuration that comes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import TypeAdapter

from ..model_executor.layers.quantization import QUANTIZATION_METHODS
from .knobs import knob

GIB = 1 << 30
_KERNELS = (
    *("auto", "triton", "deep_gemm", "cutlass", "flashinfer_trtllm", "flashinfer_cutlass", "flashinfer_cutedsl"),
    *("marlin", "triton_unfused", "aiter", "emulation"),
)
MoEBackend = Literal[_KERNELS]


class AttentionBackendEnum(Enum):
    FLASH_ATTN = "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend"
    TRITON_ATTN = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"
    FLASHINFER = "vllm.v1.attention.backends.flashinfer.FlashInferBackend"


class CUDAGraphMode(Enum):
    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_AND_PIECEWISE = (2, 1)


_FIELDS: dict[str, tuple[Any, Any]] = {
    "model": (str, "Qwen/Qwen3-0.6B"),
    "enable_return_routed_experts": (bool, False),
    "tokenizer": (str | None, None),
    "tokenizer_mode": (str, "auto"),
    "skip_tokenizer_init": (bool, False),
    "runner": (Literal["auto", "generate", "pooling"], "auto"),
    "convert": (str, "auto"),
    "trust_remote_code": (bool, False),
    "load_format": (Any, "auto"),
    "dtype": (str, "auto"),
    "kv_cache_dtype": (Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"], "auto"),
    "seed": (int, 0),
    "max_model_len": (int, None),
    "cudagraph_capture_sizes": (list[int] | None, None),
    "max_cudagraph_capture_size": (int | None, None),
    "distributed_executor_backend": (Any, None),
    "pipeline_parallel_size": (int, 1),
    "tensor_parallel_size": (int, 1),
    "worker_extension_cls": (str, ""),
    "data_parallel_size": (int, 1),
    "prefill_context_parallel_size": (int, 1),
    "enable_expert_parallel": (bool, False),
    "moe_backend": (MoEBackend, "auto"),
    "linear_backend": (str, "auto"),
    "block_size": (int | None, None),
    "enable_prefix_caching": (bool | None, None),
    "gpu_memory_utilization": (float, 0.92),
    "kv_cache_memory_bytes": (int | None, None),
    "max_num_batched_tokens": (int | None, None),
    "max_num_seqs": (int | None, None),
    "max_logprobs": (int, 20),
    "logprobs_mode": (Literal["raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs"], "raw_logprobs"),
    "disable_log_stats": (bool, False),
    "revision": (str | None, None),
    "tokenizer_revision": (str | None, None),
    "hf_token": (bool | str | None, None),
    "hf_overrides": (Any, None),
    "quantization": (Any, None),
    "quantization_config": ("dict[str, Any] | QuantizationConfigArgs | None", None),
    "enforce_eager": (bool, False),
    "enable_chunked_prefill": (bool | None, None),
    "disable_custom_all_reduce": (bool, False),
    "limit_mm_per_prompt": (dict[str, Any], None),
    "speculative_config": (dict[str, Any] | None, None),
    "spec_method": (str | None, None),
    "enable_layerwise_nvtx_tracing": (bool, False),
    "pooler_config": (Any, None),
    "compilation_config": (Any, None),
    "profiler_config": (Any, None),
    "attention_backend": (AttentionBackendEnum | None, None),
    "generation_config": (str, "auto"),
    "override_generation_config": (dict[str, Any], None),
    "model_impl": (str, "auto"),
    "async_scheduling": (bool | None, None),
    "max_loras": (int, 1),
    "_api_process_rank": (int, 0),
}


@dataclass
class _Rules:
    """What EngineArgs does beyond holding its fields."""

    def create_engine_config(self) -> SimpleNamespace:
        """Raises ValueError for what the model, the settings or the memory do not allow."""
        this: Any = self
        hf = _read(this.model)
        _check_types(this)
        positions = hf["max_position_embeddings"]
        if this.max_model_len is not None and this.max_model_len > positions:
            raise ValueError(
                f"User-specified max_model_len ({this.max_model_len}) is greater than the derived max_model_len "
                f"({positions})."
            )
        dtype = str(hf.get("torch_dtype") or hf.get("dtype")) if this.dtype == "auto" else this.dtype
        quantization = None
        if this.quantization is not None:
            if this.quantization not in QUANTIZATION_METHODS:
                raise ValueError(f"Unknown quantization method: {this.quantization}.")
            if dtype == "float32":
                raise ValueError("torch.float32 is not supported for quantization method online.")
            quantization = OnlineQuantizationConfig(this.quantization, (this.quantization_config or {}).get("ignore"))
        config = SimpleNamespace(
            model_config=SimpleNamespace(
                model=this.model,
                hf_config=hf,
                dtype=getattr(torch, dtype),
                max_model_len=this.max_model_len or positions,
                max_logprobs=this.max_logprobs,
                enforce_eager=this.enforce_eager,
                quantization=this.quantization,
                enable_return_routed_experts=this.enable_return_routed_experts,
            ),
            quant_config=quantization,
            load_config=SimpleNamespace(load_format=str(this.load_format).lower()),
            kernel_config=SimpleNamespace(moe_backend=this.moe_backend),
            attention_config=SimpleNamespace(backend=_attention(this.attention_backend)),
            profiler_config=SimpleNamespace(**({"profiler": None} | dict(this.profiler_config or {}))),
            scheduler_config=SimpleNamespace(
                max_num_seqs=this.max_num_seqs or 256, max_num_batched_tokens=this.max_num_batched_tokens or 8192
            ),
            parallel_config=SimpleNamespace(
                world_size=this.tensor_parallel_size * this.pipeline_parallel_size,
                worker_extension_cls=this.worker_extension_cls,
            ),
            compilation_config=_graphs(this),
        )
        config.cache_config = _cache(this, hf, config)
        return config


@dataclass
class OnlineQuantizationConfig:
    """16-bit weights quantised while they are loaded."""

    shorthand: str
    ignored_layers: list[str] | None = field(default=None)


def _read(folder: str) -> dict[str, Any]:
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"Invalid repository ID or local directory specified: '{folder}'.")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "Qwen3MoeForCausalLM" not in found.get("architectures", ()):
        raise ValueError(f"Model architectures {found.get('architectures')} are not supported for now.")
    return found


def _check_types(args: Any) -> None:
    for name in ("kv_cache_dtype", "moe_backend", "max_num_seqs", "enforce_eager", "gpu_memory_utilization"):
        TypeAdapter(_FIELDS[name][0]).validate_python(getattr(args, name), strict=True)


def _attention(asked: Any) -> AttentionBackendEnum:
    return AttentionBackendEnum[asked] if isinstance(asked, str) else asked or AttentionBackendEnum.FLASH_ATTN


def _graphs(args: Any) -> SimpleNamespace:
    given = dict(args.compilation_config) if isinstance(args.compilation_config, dict) else {}
    if given.get("cudagraph_capture_sizes") and args.cudagraph_capture_sizes:
        raise ValueError("cudagraph_capture_sizes and compilation_config.cudagraph_capture_sizes are exclusive")
    mode = CUDAGraphMode[given.get("cudagraph_mode") or "FULL_AND_PIECEWISE"]
    limit = args.max_cudagraph_capture_size or min(512, 2 * (args.max_num_seqs or 256))
    candidates = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    default = [size for size in candidates if size <= limit]
    sizes = args.cudagraph_capture_sizes or given.get("cudagraph_capture_sizes") or default
    if args.enforce_eager:
        mode, sizes = CUDAGraphMode.NONE, []
    return SimpleNamespace(cudagraph_mode=mode, cudagraph_capture_sizes=sizes)


def _cache(args: Any, hf: dict[str, Any], config: SimpleNamespace) -> SimpleNamespace:
    """The start-up check of free memory, and the blocks of the cache."""
    total, free = 80 * GIB, int(float(knob("free", "79")) * GIB)
    if free < total * args.gpu_memory_utilization:
        raise ValueError(
            f"Free memory on device cuda:0 ({free / GIB:.2f}/80.0 GiB) on startup is less than desired GPU memory "
            f"utilization ({args.gpu_memory_utilization}). Decrease GPU memory utilization or reduce GPU memory used "
            "by other processes."
        )
    block = args.block_size or 16
    width = 1 if args.kv_cache_dtype.startswith("fp8") else config.model_config.dtype.itemsize
    page = 2 * hf["num_hidden_layers"] * hf["num_key_value_heads"] * hf["head_dim"] * width * block
    available = args.kv_cache_memory_bytes or 4 * GIB
    needed = -(-config.model_config.max_model_len // block) * page
    if needed > available:
        raise ValueError(
            f"To serve at least one request with the model's max seq len ({config.model_config.max_model_len}), "
            f"({needed / GIB:.2f} GiB KV cache is needed, which is larger than the available KV cache memory."
        )
    return SimpleNamespace(
        cache_dtype=args.kv_cache_dtype,
        gpu_memory_utilization=args.gpu_memory_utilization,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        enable_prefix_caching=args.enable_prefix_caching,
        block_size=block,
        num_gpu_blocks=available // page,
    )


EngineArgs = make_dataclass(
    "EngineArgs",
    [(name, kind, field(default=default)) for name, (kind, default) in _FIELDS.items()],
    bases=(_Rules,),
)
