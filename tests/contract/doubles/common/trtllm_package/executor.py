"""Errors and results of the executor."""

from ._api import API

# what API was built from is importable only now
from trtllm_double.outputs import Logprob, RequestError  # isort: skip

CompletionOutput = API.CompletionOutput

__all__ = ["CompletionOutput", "Logprob", "RequestError"]
