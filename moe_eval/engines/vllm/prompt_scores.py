"""Prompt log-probabilities of vLLM without a table of the vocabulary for every request.

The function of vLLM's default runner (`_get_prompt_logprobs_dict` of vllm/v1/worker/gpu_model_runner.py, 0.22) writes
the log-softmax of all logits in float32 and reads it again for ranks, and its copies make the host wait for the GPU
three times a request. Here the same function gets a kernel that reads the logits once and writes three numbers a token,
and memory that the GPU copies to by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

FUNCTION = "_get_prompt_logprobs_dict"
_TRIED = 4096  # logits. Triton compiles another kernel for a number that is no multiple of 16
Scores = tuple[Tensor, Tensor, Tensor, None]


class _Sampler:
    """What the function takes of a sampler. Logits stay logits until the kernel reads them."""

    def __init__(self, read: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
        self._read = read

    @staticmethod
    def compute_logprobs(logits: Tensor) -> Tensor:
        return logits

    def gather_logprobs(self, logits: Tensor, count: int, token_ids: Tensor) -> Scores:
        """Ids, log-probabilities and rank of tokens (n,) and of the `count` most probable ones, by logits (n, v)."""
        ids = token_ids[:, None]
        if count:
            ids = torch.cat([ids, logits.topk(count, dim=1).indices], 1)
        maximum, log_total, ranks = self._read(logits, token_ids)
        # the maximum goes first: large logits would swallow the logarithm's digits
        logprobs = logits.gather(1, ids).float() - maximum[:, None] - log_total[:, None]
        return ids.int(), logprobs, ranks, None


def hasten(runner: Any) -> bool:
    """Give a worker's runner the kernel. False where it is another runner or device, or Triton does not run."""
    try:
        tensors = importlib.import_module("vllm.v1.outputs").LogprobsTensors
        function, empty, device = getattr(runner, FUNCTION), tensors.empty_cpu, runner.device
        dtype = runner.model_config.dtype
    except (ImportError, AttributeError):
        return False
    if device.type != "cuda":
        return False
    try:
        read = importlib.import_module("moe_eval.engines.vllm.softmax_kernel").read
        read(torch.zeros((1, _TRIED), dtype=dtype, device=device), torch.zeros(1, dtype=torch.int64, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # Triton raises errors of many classes
        return False

    kernel, pinned = _Sampler(read), staticmethod(partial(_pinned, tensors, empty))

    def scores(*arguments: Any) -> Any:
        sampler = runner.sampler
        runner.sampler, tensors.empty_cpu = kernel, pinned
        try:
            return function(*arguments)
        finally:
            runner.sampler, tensors.empty_cpu = sampler, staticmethod(empty)

    setattr(runner, FUNCTION, scores)
    return True


def _pinned(tensors: Any, empty: Callable[[int, int], Any], positions: int, width: int) -> Any:
    return tensors(*(part.pin_memory() for part in empty(positions, width)[:3]))
