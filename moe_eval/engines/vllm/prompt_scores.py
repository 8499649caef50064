"""Prompt log-probabilities of vLLM without a table of the vocabulary for every request.

The function of vLLM's default runner (`_get_prompt_logprobs_dict` of vllm/v1/worker/gpu_model_runner.py, 0.22) writes
the log-softmax of all logits in float32 and reads it again for ranks, and its copies make the host wait for the GPU
three times a request. Here the same function gets the kernels of vLLM's second runner
(vllm/v1/worker/gpu/sample/logprob.py), which write one number a token, and memory that the GPU copies to by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

FUNCTION = "_get_prompt_logprobs_dict"
_ROWS = 8192  # of logits at once: the kernels' places within more may not fit into 32 bits
Scores = tuple[Tensor, Tensor, Tensor, None]


class _Sampler:
    """What the function takes of a sampler. Logits stay logits until the kernels read them."""

    def __init__(self, score: Callable[[Tensor, int, Tensor], Any]) -> None:
        self._score = score

    @staticmethod
    def compute_logprobs(logits: Tensor) -> Tensor:
        return logits

    def gather_logprobs(self, logits: Tensor, count: int, token_ids: Tensor) -> Scores:
        """Ids, log-probabilities and rank of tokens (n,) and of the `count` most probable ones, by logits (n, v)."""
        slices = [slice(first, first + _ROWS) for first in range(0, len(logits), _ROWS)]
        scored = [self._score(logits[rows], count, token_ids[rows])[:3] for rows in slices]
        ids, logprobs, ranks = scored[0] if len(scored) == 1 else map(torch.cat, zip(*scored, strict=True))
        return ids.to(torch.int32), logprobs, ranks.to(torch.int32), None


def hasten(runner: Any) -> bool:
    """Give a worker's runner the kernels. False where it is another runner or device, or a version without them."""
    try:
        score = importlib.import_module("vllm.v1.worker.gpu.sample.logprob").compute_topk_logprobs
        tensors = importlib.import_module("vllm.v1.outputs").LogprobsTensors
        function, empty, device = getattr(runner, FUNCTION), tensors.empty_cpu, runner.device
    except (ImportError, AttributeError):
        return False
    if device.type != "cuda":
        return False

    kernels, pinned = _Sampler(score), staticmethod(partial(_pinned, tensors, empty))

    def scores(*arguments: Any) -> Any:
        sampler = runner.sampler
        runner.sampler, tensors.empty_cpu = kernels, pinned
        try:
            return function(*arguments)
        finally:
            runner.sampler, tensors.empty_cpu = sampler, staticmethod(empty)

    setattr(runner, FUNCTION, scores)
    return True


def _pinned(tensors: Any, empty: Callable[[int, int], Any], positions: int, width: int) -> Any:
    return tensors(*(part.pin_memory() for part in empty(positions, width)[:3]))
