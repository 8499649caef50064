"""The pydantic argument classes of one version, made from tables.

A row is: field, annotation, default, columns. Columns are the versions that have the field: "0" is 1.2.0, "1" is
1.3.0rc8, "2" is 1.4.0rc1. Fields the facts know only by a pattern (use_cute_dsl_*, disk_cache_*) are left out.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from .versions import Version

ALL, LATER, NEWEST = "012", "12", "2"
Row = tuple[str, Any, Any, str]
_KV_TYPES = frozenset({"auto", "fp8", "nvfp4", "float16", "bfloat16", "float32"})
_COMPUTE_TYPES = frozenset({"auto", "float16", "bfloat16", "float32"})


class LoadFormat(enum.Enum):
    """Where weights come from."""

    AUTO = "auto"
    DUMMY = "dummy"
    VISION_ONLY = "vision_only"
    GMS = "gms"


class StrictBaseModel(BaseModel):
    """Refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())


class KvCacheRules(StrictBaseModel):
    """Checks of KvCacheConfig."""

    @field_validator("free_gpu_memory_fraction", check_fields=False)
    @classmethod
    def _fraction(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value <= 1:
            raise ValueError("free_gpu_memory_fraction has to lie between 0 and 1")
        return value

    @field_validator("dtype", check_fields=False)
    @classmethod
    def _dtype(cls, value: str) -> str:
        newest = {"fp8_ds_mla"} if "pool_ratio" in cls.model_fields else set()
        if value.lower() not in _KV_TYPES | newest:
            raise ValueError(f"no KV cache is of dtype {value!r}")
        return value.lower()


class ArgsRules(StrictBaseModel):
    """Checks of the arguments of LLM; quant_config is filled from the checkpoint and is no field."""

    _quant_config: Any = None

    @property
    def quant_config(self) -> Any:
        return self._quant_config

    @property
    def world_size(self) -> int:
        sizes: Any = self
        return sizes.tensor_parallel_size * sizes.pipeline_parallel_size * sizes.context_parallel_size

    @field_validator("load_format", mode="before", check_fields=False)
    @classmethod
    def _load_format(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = LoadFormat(value.lower())
        if value is LoadFormat.GMS and "telemetry_config" not in cls.model_fields:
            raise ValueError("load_format 'gms' is not known")
        return value

    @field_validator("dtype", check_fields=False)
    @classmethod
    def _compute_dtype(cls, value: str) -> str:
        if value not in _COMPUTE_TYPES:
            raise ValueError(f"dtype {value!r} is not supported")
        return value

    @field_validator("sampler_type", check_fields=False)
    @classmethod
    def _sampler(cls, value: str) -> str:
        if value == "TRTLLMSampler" and "telemetry_config" in cls.model_fields:
            raise ValueError("TRTLLMSampler was removed")
        return value

    @model_validator(mode="after")
    def _parallel(self) -> ArgsRules:
        sizes: Any = self
        whole = sizes.tensor_parallel_size
        cluster = max(sizes.moe_cluster_parallel_size or 1, 1)
        tensor, expert = sizes.moe_tensor_parallel_size or -1, sizes.moe_expert_parallel_size or -1
        if tensor < 0:
            tensor = whole // (max(expert, 1) * cluster)
        if expert < 0:
            expert = whole // (tensor * cluster) if tensor else 0
        if tensor * expert * cluster != whole:
            raise ValueError(f"MoE sizes {tensor} x {expert} x {cluster} do not make tensor_parallel_size {whole}")
        return self


def _rows(types: dict[str, Any], column: int) -> dict[str, list[Row]]:
    """The tables; later ones name classes made from earlier ones."""
    many = [(name, Any, None, ALL) for name in _UNTYPED.split()]
    v2 = (bool | Literal["auto"], "auto") if column == 2 else (bool, False)
    graph = types.get("CudaGraphConfig")
    return {
        "KvCacheConfig": [
            ("enable_block_reuse", bool, True, ALL),
            *[(name, Any, None, ALL) for name in _WINDOW],
            ("max_tokens", int | None, None, ALL),
            ("sink_token_length", int | None, None, "0"),
            ("onboard_blocks", bool, True, "0"),
            ("free_gpu_memory_fraction", float | None, 0.9, ALL),
            ("secondary_offload_min_priority", int | None, None, ALL),
            ("event_buffer_max_size", int, 0, ALL),
            ("enable_partial_reuse", bool, True, ALL),
            ("copy_on_partial_reuse", bool, True, ALL),
            ("use_uvm", bool, False, ALL),
            ("attention_dp_events_gather_period_ms", int, 5, ALL),
            ("max_gpu_total_bytes", int | None, 0, LATER),
            ("dtype", str, "auto", ALL),
            ("mamba_ssm_cache_dtype", str, "auto", ALL),
            ("tokens_per_block", int, 32, ALL),
            ("use_kv_cache_manager_v2", *v2, ALL),
            ("max_util_for_resume", float, 0.95, ALL),
            *[(name, Any, None, NEWEST) for name in _NEWEST_CACHE.split()],
        ],
        "CudaGraphConfig": [
            ("batch_sizes", list[int] | None, None, ALL),
            ("max_batch_size", int, 0, ALL),
            ("enable_padding", bool, False, ALL),
            ("mode", Literal["decode", "encode"], "decode", NEWEST),
        ],
        "MoeConfig": [
            ("backend", types["backend"], types["default"], ALL),
            ("max_num_tokens", int | None, None, ALL),
            ("load_balancer", Any, None, ALL),
            ("disable_finalize_fusion", bool, False, ALL),
            ("use_low_precision_moe_combine", bool, False, NEWEST),
            *[(name, Any, None, ALL) for name in types["moe_extra"]],
        ],
        "TorchCompileConfig": [
            *[(name, bool, False, ALL) for name in ("enable_fullgraph", "enable_inductor", "enable_userbuffers")],
            ("enable_piecewise_cuda_graph", bool, False, ALL),
            ("capture_num_tokens", list[int] | None, None, ALL),
            ("max_num_streams", int, 1, ALL),
            ("prefill_cuda_graph_backend", Literal["disabled", "piecewise", "breakable"], "disabled", NEWEST),
        ],
        "TorchLlmArgs": [
            ("model", str | Path, ..., ALL),
            ("tokenizer", Any, None, ALL),
            ("tokenizer_mode", Literal["auto", "slow"], "auto", ALL),
            ("dtype", str, "auto", ALL),
            *[(name, bool, False, ALL) for name in _SWITCHES.split()],
            *[(f"{name}_parallel_size", int, 1, ALL) for name in ("tensor", "pipeline", "context")],
            *[(f"moe_{name}_parallel_size", int | None, None, ALL) for name in ("tensor", "expert", "cluster")],
            ("model_kwargs", dict[str, Any] | None, None, ALL),
            ("load_format", LoadFormat, LoadFormat.AUTO, ALL),
            ("kv_cache_config", types.get("KvCacheConfig"), None, ALL),
            ("max_batch_size", int | None, 2048, ALL),
            ("max_input_len", int | None, 1024, ALL),
            ("max_seq_len", int | None, None, ALL),
            ("max_beam_width", int | None, 1, ALL),
            ("max_num_tokens", int | None, 8192, ALL),
            ("num_postprocess_workers", int, 0, ALL),
            ("perf_metrics_max_requests", int, 0, ALL),
            ("orchestrator_type", Literal["rpc", "ray"] | None, None, ALL),
            ("env_overrides", dict[str, str] | None, None, LATER),
            ("garbage_collection_gen0_threshold", int, 20000, ALL),
            ("cuda_graph_config", graph and graph | None, None, ALL),
            ("moe_config", types.get("MoeConfig"), None, ALL),
            ("nvfp4_gemm_config", Any, None, LATER),
            ("attn_backend", str, "TRTLLM", ALL),
            ("sampler_type", Literal["auto", "TorchSampler", "TRTLLMSampler"], "auto", ALL),
            ("batch_wait_timeout_ms", float, 0, ALL),
            ("batch_wait_timeout_iters", int, 0, ALL),
            ("batch_wait_max_tokens_ratio", float, 0, ALL),
            ("torch_compile_config", types.get("TorchCompileConfig", Any) | None, None, ALL),
            ("enable_autotuner", bool, True, ALL),
            ("stream_interval", int, 1, ALL),
            ("allreduce_strategy", Literal[_STRATEGIES], "AUTO", ALL),
            ("ray_worker_nsight_options", Any, None, LATER),
            ("disable_flashinfer_sampling", bool, False, "1"),
            ("max_stats_len", int, 1000, ALL),
            ("layer_wise_benchmarks_config", Any, None, LATER),
            *many,
            *[(name, Any, None, NEWEST) for name in _NEWEST_ARGS.split()],
            ("generation_config", Literal["trtllm", "auto"], "trtllm", NEWEST),
            *[(name, bool, False, NEWEST) for name in _NEWEST_SWITCHES],
        ],
    }


_UNTYPED = (
    "revision tokenizer_revision gpus_per_node pp_partition cp_config lora_config guided_decoding_backend "
    "batched_logits_processor speculative_config sparse_attention_config scheduler_config peft_cache_config "
    "cache_transceiver_config iter_stats_max_iterations request_stats_max_iterations postprocess_tokenizer_dir "
    "reasoning_parser otlp_traces_endpoint mpi_session attention_dp_config checkpoint_loader checkpoint_format "
    "ray_worker_extension_cls ray_placement_config"
)
_SWITCHES = (
    "skip_tokenizer_init trust_remote_code enable_attention_dp enable_lm_head_tp_in_adp enable_lora "
    "enable_chunked_prefill gather_generation_logits return_perf_metrics disable_overlap_scheduler "
    "enable_iter_perf_stats enable_iter_req_stats print_iter_log enable_layerwise_nvtx_marker enable_min_latency "
    "force_dynamic_quantization mm_encoder_only"
)
_NEWEST_CACHE = (
    "block_reuse_config pool_ratio avg_seq_len kv_cache_event_hash_algo mamba_state_config enable_swa_scratch_reuse"
)
_NEWEST_ARGS = (
    "custom_tokenizer post_processor_hook perf_metrics_output_dir telemetry_config num_serve_frontends "
    "kv_cache_compression_config"
)
_WINDOW = ("max_attention_window", "host_cache_size", "cross_kv_cache_fraction")
_NEWEST_SWITCHES = ("enable_in_graph_sampling", "encode_only", "enable_energy_metrics")
_STRATEGIES = ("AUTO", "NCCL", "UB", "MINLATENCY", "ONESHOT", "TWOSHOT", "LOWPRECISION", "MNNVL", "NCCL_SYMMETRIC")
_BASES = {"KvCacheConfig": KvCacheRules, "TorchLlmArgs": ArgsRules}


def build(version: Version) -> dict[str, Any]:
    """The argument classes of a version, by name."""
    types: dict[str, Any] = {"backend": Literal[version.moe_backends], "default": version.moe_default}
    types["moe_extra"] = version.moe_extra
    for name in ("KvCacheConfig", "CudaGraphConfig", "MoeConfig", "TorchCompileConfig", "TorchLlmArgs"):
        fields: dict[str, Any] = {}
        for field, annotation, default, columns in _rows(types, version.column)[name]:
            nested = field in ("kv_cache_config", "moe_config") or (field == "cuda_graph_config" and version.column > 0)
            # 1.2.0's published signature lists cuda_graph_config as null
            factory = types["CudaGraphConfig"] if field == "cuda_graph_config" and nested else annotation
            if str(version.column) in columns:
                fields[field] = (annotation, Field(default_factory=factory) if nested else default)
        base = _BASES.get(name, StrictBaseModel)
        types[name] = create_model(name, __base__=base, __module__="tensorrt_llm.llmapi.llm_args", **fields)
    for name in ("backend", "default", "moe_extra"):
        del types[name]
    return {**types, "LlmArgs": types["TorchLlmArgs"], "StrictBaseModel": StrictBaseModel, "LoadFormat": LoadFormat}
