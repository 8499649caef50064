"""A test double of vLLM 0.22.1; see the README one folder up."""

from .double.args import EngineArgs
from .double.llm import LLM
from .double.outputs import CompletionOutput, RequestOutput
from .sampling_params import SamplingParams

__version__ = "0.22.1"
__all__ = ["LLM", "CompletionOutput", "EngineArgs", "RequestOutput", "SamplingParams", "__version__"]
