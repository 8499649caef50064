"""Imports tensorrt_llm with the right environment, and inspects the installed version."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from moe_eval.engines.served.package import KnownFailure, Traits, expected_api, import_library
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

FLOOR = "1.1"

_NO_FP8 = "Give a ModelOpt checkpoint (hf_quant_config.json with FP8), or one with blocks of 128x128."
_LESS = (
    "Give a smaller max_num_tokens, max_batch_size or kv_cache_free_gpu_memory_fraction, or more GPUs with "
    "tensor_parallel_size."
)
_MANAGER_V2 = ">=1.4.0rc1"  # whose manager of the key-value cache advises the opposite of the one before
# issue 5872: the text names the component that could not be created, and those that were
_KV_SHORT = r"(?i)insufficient GPU memory(?!.*not be created: (?!KV|Initial KV)).*KV cache|memory for the KV cache"
# Source: TensorRT-LLM's issues by number, and its release notes.
_FAILURES = (
    KnownFailure(
        (),
        "The key-value cache of {title} {version} has too little memory for {task} {checkpoint} ({detail}). Give a "
        "larger kv_cache_free_gpu_memory_fraction, a smaller max_batch_size or a smaller max_seq_len.",
        _MANAGER_V2,
        _KV_SHORT,
    ),
    KnownFailure(
        (),
        "The key-value cache of {title} {version} has too little memory for {task} {checkpoint} ({detail}). Give a "
        "smaller kv_cache_free_gpu_memory_fraction, max_num_tokens or max_batch_size, or more GPUs with "
        "tensor_parallel_size.",
        pattern=_KV_SHORT,
    ),
    KnownFailure(
        ("insufficient GPU memory",), f"The GPU's memory does not suffice for {{task}} {{checkpoint}}. {_LESS}"
    ),
    KnownFailure(
        ("TMA WS grouped gemm", "TMA WS Grouped Gemm", "Failed to initialize cutlass TMA WS"),
        "The autotuner of {title} {version} crashed over the experts' kernels while {task} {checkpoint} ({detail}). "
        "Add enable_autotuner=false.",
    ),
    KnownFailure(
        ("before the current process has finished its bootstrapping phase", "freeze_support()"),
        "{title} starts processes that run this script again. Put the script's calls under `if __name__ == "
        '"__main__":`.',
    ),
    KnownFailure(
        ("libmpi", "cannot load MPI library", "libpmi"),
        "{title} finds no MPI library ({detail}). Install it (apt-get install libopenmpi-dev), or use NVIDIA's "
        "TensorRT-LLM image.",
    ),
)
_LATEST = ">=1.3.0rc27"  # the newest sources that were read
TRTLLM = Traits(
    name="trtllm",
    title="TensorRT-LLM",
    package="tensorrt_llm",
    requirements="torch, CUDA and MPI",
    versions=f"a version from {FLOOR} to 1.4",
    readable="BF16, FP8 (ModelOpt or blocks of 128x128), NVFP4 or MXFP4",
    inline=("mxfp4", "mxfp8", "nvfp4"),
    # TensorRT-LLM, _torch/model_config.py and models/quant_config_utils.py
    unreadable={
        "fp8": f"TensorRT-LLM does not read as quantised at all. {_NO_FP8}",
        "fp8 dynamic": f"TensorRT-LLM does not read as quantised at all. {_NO_FP8}",
        "fp8 static": f"TensorRT-LLM reads as blocks of 128x128 that it does not have. {_NO_FP8}",
        "compressed-tensors float-8-tensor": f"TensorRT-LLM refuses. {_NO_FP8}",
    },
    readers={
        "compressed-tensors float-4-tensor_group": _LATEST,
        "compressed-tensors": ">=1.3.0rc5",
        "mxfp8": _LATEST,
        "nvfp4": _LATEST,
        "modelopt MXFP8": _LATEST,
        "modelopt W4A16_NVFP4": _LATEST,
    },
    parallel_sizes=("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"),
    cluster_option="orchestrator_type",
    cluster_fix="start one process per GPU with mpirun and trtllm-llmapi-launch",
    failures=_FAILURES,
    causeless=("Executor worker returned error", "Executor worker died during initialization"),
    memory_fix=_LESS,
)
# read by tensorrt_llm when it is imported or when its first model is built
IN_PROCESS = "TLLM_WORKER_USE_SINGLE_PROCESS"
NO_FUSION = "TRTLLM_QWEN3_EAGER_FUSION_DISABLED"


@frozen
class Library:
    """What the installed version offers: the constructor's arguments, and their classes where they are nested.

    `sampling` are the names of SamplingParams, `moe_backends` those that moe_config.backend takes.
    """

    version: str
    module: ModuleType
    fields: Mapping[str, FieldInfo]
    configs: Mapping[str, type[BaseModel]]
    sampling: frozenset[str]
    moe_backends: tuple[str, ...]

    @property
    def times_own_tokens(self) -> bool:
        """Whether a request's first token has a time of its own while requests wait for one another.

        Before 1.2 an iteration stamps every request that it knows, including those that it leaves waiting (NVIDIA's
        pull request 8005).
        """
        try:
            return Version(self.version).release >= (1, 2)
        except InvalidVersion:
            return False

    def sampling_params(self, **values: Any) -> Any:
        """A SamplingParams of these values, or a UsageError if this version lacks one of them."""
        lacking = sorted(set(values) - self.sampling)
        if lacking:
            raise UsageError(
                f"TensorRT-LLM {self.version} has no sampling setting {', '.join(lacking)}. Install another version."
            )
        return self.module.SamplingParams(**values)


def load(*, in_process: bool, disable_fusion: bool) -> Library:
    """Import tensorrt_llm with the right environment variables and inspect it.

    Args:
        disable_fusion: turn Qwen3's fusion of all-reduce and norm off.
    """
    _set_environment({IN_PROCESS: "1" if in_process else None} | ({NO_FUSION: "1"} if disable_fusion else {}))
    module = import_library(TRTLLM)
    version = str(module.__version__)
    _check_version(version)
    with expected_api(TRTLLM, version):
        return _inspect(module, version)


def _set_environment(environment: Mapping[str, str | None]) -> None:
    if "tensorrt_llm" in sys.modules:
        differences = sorted(name for name, value in environment.items() if os.environ.get(name) != value)
        if differences:
            raise UsageError(
                f"tensorrt_llm was imported before {' and '.join(differences)} could be set. Run this arm in a fresh "
                "process, or set the environment before anything imports tensorrt_llm."
            )
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _inspect(module: ModuleType, version: str) -> Library:
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    llm_args = (
        getattr(llmapi, "TorchLlmArgs", None) or importlib.import_module("tensorrt_llm.llmapi.llm_args").TorchLlmArgs
    )
    configs = {
        "kv_cache_config": llmapi.KvCacheConfig,
        "cuda_graph_config": llmapi.CudaGraphConfig,
        "moe_config": llmapi.MoeConfig,
    }
    return Library(
        version=version,
        module=module,
        fields=llm_args.model_fields,
        configs=configs,
        sampling=frozenset(field.name for field in dataclasses.fields(module.SamplingParams)),
        moe_backends=_literals(configs["moe_config"].model_fields["backend"].annotation),
    )


def _check_version(version: str) -> None:
    try:
        old = Version(version).release < Version(FLOOR).release
    except InvalidVersion:
        return  # a build of the user's own, which the inspection judges
    if old:
        raise UsageError(
            f"TensorRT-LLM {version} is too old: before {FLOOR} its PyTorch backend returns no log-probabilities of a "
            f"prompt. Run pip install 'tensorrt_llm>={FLOOR}'."
        )


def _literals(annotation: Any) -> tuple[str, ...]:
    """The texts of a Literal, also inside an Optional or a Union."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(str(text) for text in typing.get_args(annotation))
    return tuple(text for part in typing.get_args(annotation) for text in _literals(part))
