"""The installed tensorrt_llm: imported with the right environment, and looked at before it is trusted."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packaging.version import InvalidVersion, Version

from moe_eval.errors import UsageError

FLOOR = "1.1"
# read by tensorrt_llm when it is imported or when its first model is built
IN_PROCESS = "TLLM_WORKER_USE_SINGLE_PROCESS"
NO_FUSION = "TRTLLM_QWEN3_EAGER_FUSION_DISABLED"


@dataclass(frozen=True)
class Library:
    """What the installed version offers.

    Attributes:
        version: as it says itself.
        fields: the constructor's arguments by name, as pydantic FieldInfo.
        configs: the classes of its nested settings by the name of the constructor's argument.
        sampling: the names of SamplingParams.
        moe_backends: the names that moe_config.backend takes.
    """

    version: str
    module: ModuleType
    fields: Mapping[str, Any]
    configs: Mapping[str, Any]
    sampling: frozenset[str]
    moe_backends: tuple[str, ...]

    @property
    def times_own_tokens(self) -> bool:
        """Whether the time of a request's first token is its own where requests wait for one another.

        Before 1.2 an iteration stamps every request that it knows, also those which it leaves waiting (NVIDIA's pull
        request 8005).
        """
        try:
            return Version(self.version).release >= (1, 2)
        except InvalidVersion:
            return False

    def sampling_params(self, **wanted: Any) -> Any:
        """A SamplingParams of these values.

        Raises:
            UsageError: this version lacks one of them.
        """
        lacking = sorted(set(wanted) - self.sampling)
        if lacking:
            raise UsageError(
                f"TensorRT-LLM {self.version} has no sampling setting {', '.join(lacking)}; install another version."
            )
        return self.module.SamplingParams(**wanted)


def load(environment: Mapping[str, str | None]) -> Library:
    """Import tensorrt_llm under these environment variables (None for unset) and look at what it has.

    Raises:
        UsageError: it cannot be imported, is older than FLOOR, or was imported before under other variables.
    """
    if "tensorrt_llm" in sys.modules:
        differs = sorted(name for name, value in environment.items() if os.environ.get(name) != value)
        if differs:
            raise UsageError(
                f"tensorrt_llm was imported before {' and '.join(differs)} could be set; run this arm in a fresh "
                "process, or set the environment before anything imports tensorrt_llm."
            )
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    try:
        module = importlib.import_module("tensorrt_llm")
    # whatever its shared libraries, MPI and torch raise where they do not fit this machine
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"TensorRT-LLM is installed but cannot be imported ({type(error).__name__}: {reason}); install it again "
            "with the torch, CUDA and MPI that it asks for."
        ) from error
    version = str(module.__version__)
    _check_version(version)
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    try:
        llm_args = (
            getattr(llmapi, "TorchLlmArgs", None)
            or importlib.import_module("tensorrt_llm.llmapi.llm_args").TorchLlmArgs
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
            sampling=frozenset(each.name for each in dataclasses.fields(module.SamplingParams)),
            moe_backends=_literals(configs["moe_config"].model_fields["backend"].annotation),
        )
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        raise UsageError(
            f"TensorRT-LLM {version} has another API than moe_eval knows ({error}); use a version from {FLOOR} to 1.4."
        ) from error


def _check_version(version: str) -> None:
    try:
        old = Version(version).release < Version(FLOOR).release
    except InvalidVersion:
        return  # a build of one's own; what it has is found by looking
    if old:
        raise UsageError(
            f"TensorRT-LLM {version} is too old: its PyTorch backend returns no log-probabilities of a prompt before "
            f"{FLOOR}; run pip install 'tensorrt_llm>={FLOOR}'."
        )


def _literals(annotation: Any) -> tuple[str, ...]:
    """The texts of a Literal, also inside an Optional or a Union."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(str(each) for each in typing.get_args(annotation))
    return tuple(text for each in typing.get_args(annotation) for text in _literals(each))
