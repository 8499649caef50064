"""vLLM's names and words for the shared code of served engines."""

from moe_eval.engines.served.traits import KnownFailure, Traits

VLLM = Traits(
    name="vllm",
    title="vLLM",
    package="vllm",
    requirements="torch and CUDA",
    versions="a version from 0.18 to 0.22",
    readable="BF16, FP8 (per tensor or blocks of 128x128) or NVFP4",
    parallel_sizes=(
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "data_parallel_size",
    ),
    cluster_option="distributed_executor_backend",
    cluster_fix="distributed_executor_backend=ray for several machines",
    memory_fix=(
        "Give a smaller max_num_batched_tokens, max_num_seqs or gpu_memory_utilization, or more GPUs with "
        "tensor_parallel_size."
    ),
    online={"fp8": "fp8_per_tensor", "fp8_block": "fp8_per_block"},
    failures=(
        KnownFailure(
            (
                "No available memory for the cache blocks",
                "KV cache is needed",
                "less than desired GPU memory utilization",
            ),
            "The GPU's free memory does not hold a key-value cache for {checkpoint} ({detail}). Give a smaller "
            "max_length, another gpu_memory_utilization or more GPUs with tensor_parallel_size, or end other "
            "programs on the GPU.",
        ),
    ),
    fatal_errors=("EngineDeadError", "EngineGenerateError"),
)
