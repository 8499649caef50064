"""A test double of TensorRT-LLM 1.4.0rc1; see the README two folders up."""

from . import executor, llmapi, sampling_params
from ._double import API

__version__ = API.version
LLM = API.LLM
SamplingParams = API.SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__", "executor", "llmapi", "sampling_params"]
