"""Imports vllm with the right environment, and inspects the installed version."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from moe_eval.engines.served.package import KnownFailure, Traits, expected_api, import_library
from moe_eval.frozen import frozen
from moe_eval.machine import cuda_driver, nsys

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
    causeless=("Engine core initialization failed",),
)
# what a rank prints of an error, but for errors that only point to another process's
CAUSE = r"\b\w+(?:Error|Exception): (?!.*(?:initialization failed|Executor failed)).+"
# read when an LLM is built: whether the engine core is a process of its own
MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"
# seconds that a step may take until vLLM ends its engine core, 300 by default (vllm/envs.py). It reads whole ones
STEP_LIMIT = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
# what an engine in this process imports while it is built
_OF_ENGINES = ("vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.worker.gpu_worker")
# vLLM logs to standard output by default, where results are printed
_LOG_STREAM = ("VLLM_LOGGING_STREAM", "ext://sys.stderr")
_SPAWN = ("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
# if it is not set, Inductor sets it to a folder below vLLM's compile cache of one arm (triton_heuristics.py of torch).
# Then every arm compiles the kernels that all of them use
_TRITON_CACHE, _TRITON_HOME = "TRITON_CACHE_DIR", "TRITON_HOME"


@frozen
class Library:
    """What the installed version offers: the settings of EngineArgs, and what `quantization` takes.

    `final_only` is the output kind that returns a request only when it is finished.
    """

    version: str
    module: ModuleType
    fields: Mapping[str, dataclasses.Field[Any]]
    quantizations: frozenset[str]
    final_only: Any


def load(*, in_process: bool) -> Library:
    """Import vllm and inspect it, or raise a UsageError."""
    os.environ[MULTIPROCESSING] = "0" if in_process else "1"
    os.environ.setdefault(*_LOG_STREAM)
    module = import_library(VLLM)
    version = str(getattr(module, "__version__", "of an unknown version"))
    with expected_api(VLLM, version):
        root = Path(importlib.import_module("vllm.envs").VLLM_CACHE_ROOT)
        if _TRITON_HOME not in os.environ:
            os.environ.setdefault(_TRITON_CACHE, str(root / "triton_cache"))
        quantization = importlib.import_module("vllm.model_executor.layers.quantization")
        return Library(
            version=version,
            module=module,
            fields={field.name: field for field in dataclasses.fields(module.EngineArgs) if field.name[0] != "_"},
            quantizations=frozenset(map(str, quantization.QUANTIZATION_METHODS)),
            final_only=importlib.import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY,
        )


def import_ahead() -> None:
    """Import vLLM and what its engines need. CUDA is not initialised."""
    os.environ.setdefault(*_LOG_STREAM)
    for module in _OF_ENGINES:
        importlib.import_module(module)


def spawn_where_forks_fail() -> None:
    """Have vLLM start fresh interpreters where a fork cannot use CUDA, or Nsight Systems cannot trace it safely.

    Else vLLM forks, which saves importing it again in the engine core and in every rank. It looks for torch's use of
    CUDA itself, and a library's own is looked for here.
    """
    if nsys.inside() or cuda_driver.is_initialised():
        os.environ.setdefault(*_SPAWN)
