"""The LLM API."""

from .._api import API
from ..executor import RequestError
from .llm_args import CudaGraphConfig, KvCacheConfig, LlmArgs, MoeConfig, TorchCompileConfig, TorchLlmArgs

LLM = API.LLM
SamplingParams = API.SamplingParams
RequestOutput = API.RequestOutput
CompletionOutput = API.CompletionOutput

__all__ = [
    "LLM",
    "CompletionOutput",
    "CudaGraphConfig",
    "KvCacheConfig",
    "LlmArgs",
    "MoeConfig",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "TorchCompileConfig",
    "TorchLlmArgs",
]
