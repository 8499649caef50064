"""TensorRT-LLM's names and words for the shared code of served engines."""

from moe_eval.engines.served.traits import Traits

FLOOR = "1.1"

TRTLLM = Traits(
    name="trtllm",
    title="TensorRT-LLM",
    package="tensorrt_llm",
    requirements="torch, CUDA and MPI",
    versions=f"a version from {FLOOR} to 1.4",
    readable="BF16, FP8 (ModelOpt or blocks of 128x128) or NVFP4",
    parallel_sizes=("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"),
    cluster_option="orchestrator_type",
    cluster_fix="start one process per GPU with mpirun and trtllm-llmapi-launch",
    memory_fix=(
        "Give a smaller max_num_tokens, max_batch_size or kv_cache_free_gpu_memory_fraction, or more GPUs with "
        "tensor_parallel_size."
    ),
)
