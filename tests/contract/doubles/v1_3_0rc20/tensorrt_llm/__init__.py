"""A test double of TensorRT-LLM 1.3.0rc20; see the README two folders up."""

from pathlib import Path

DOUBLE = "1.3.0rc20"
# all other modules are the same in every version
__path__.append(str(Path(__file__).resolve().parents[2] / "common" / "trtllm_package"))

from . import executor, llmapi, sampling_params  # noqa: E402
from ._api import API  # noqa: E402

__version__ = API.version
LLM = API.LLM
SamplingParams = API.SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__", "executor", "llmapi", "sampling_params"]
