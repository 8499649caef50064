"""Log-probabilities from hidden states without a [tokens, vocabulary] tensor in float32.

The output head is applied to one slice of the vocabulary at a time. Each slice is folded into a running maximum and a
running sum of exponentials (the online softmax of Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_eval.errors import UsageError

log = logging.getLogger(__name__)

# Float32 elements of one tile of logits: 8 MiB on a CPU, where larger tiles leave the cache and smaller ones make
# the matrix products short. 256 MiB on a GPU, where launches stop showing.
_CPU_TILE = 1 << 21
_GPU_TILE = 1 << 26
_VOCABULARY_SLICE = 8192


class RowScores(NamedTuple):
    """Scores of n rows: float32 (n,), bool (n,), int64 (n, k), float32 (n, k), float32 (n, ids of a row)."""

    logprobs: Tensor
    greedy: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    of_ids: Tensor


class Head:
    """The output layer of a causal LM: a linear map and the element-wise step some families put behind it."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        layer = model.get_output_embeddings()  # type: ignore[operator]
        if type(layer) is not nn.Linear:
            raise UsageError(
                f"The output head of {type(model).__name__} is a {type(layer).__name__}, not a plain linear layer. Use "
                "lm_eval --model hf for this checkpoint."
            )
        self.weight: Tensor = layer.weight
        self.bias: Tensor | None = layer.bias
        self._factor, self._cap = _after_head(config)
        self._fuses: bool | None = None  # whether fused_head runs here, once it was tried

    @torch.no_grad()
    def logits(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Float32 logits of vocabulary entries first..last-1 for hidden states (n, width): shape (n, last - first)."""
        weight = self.weight[first:last]
        if hidden.is_cuda and weight.dtype != torch.float32:
            # float32 out of the tensor cores' accumulator: no rounding of the logits to 8 bits of mantissa
            out = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        else:
            out = hidden.float() @ weight.float().t()
        if self.bias is not None:
            out += self.bias[first:last].float()
        if self._factor != 1:
            out *= self._factor
        return torch.tanh(out / self._cap) * self._cap if self._cap else out

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor, top_k: int = 0, ids: Tensor | None = None) -> RowScores:
        """Score `targets` (n,) under the softmax over the whole vocabulary of hidden states (n, width).

        Args:
            ids: further tokens of every row to score, int64, shape (n, ids of a row).
        """
        is_16_bit = hidden.is_cuda and hidden.dtype == self.weight.dtype != torch.float32
        if is_16_bit and not top_k and ids is None and len(hidden):
            if self._fuses is None:
                self._fuses = self._tries_fused(hidden[:64], targets[:64])
            if self._fuses:
                return self._fused(hidden, targets)
        return self._sliced(hidden, targets, top_k, ids)

    def _fused(self, hidden: Tensor, targets: Tensor) -> RowScores:
        from moe_eval.engines import fused_head

        with torch.cuda.device(hidden.device):  # Triton launches on the current one
            logprobs, greedy = fused_head.score(
                hidden, self.weight, self.bias, targets, factor=self._factor, cap=self._cap
            )
        none = logprobs.new_empty((len(targets), 0))
        return RowScores(logprobs, greedy, none.long(), none, none)

    def _tries_fused(self, hidden: Tensor, targets: Tensor) -> bool:
        """Whether the kernel of fused_head runs here and agrees with slices of logits."""
        expected = self._sliced(hidden, targets).logprobs
        try:
            logprobs = self._fused(hidden, targets).logprobs
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton is missing, finds no compiler, or not enough of the GPU's shared memory
            log.info("The output head runs without its kernel of Triton: %s", error)
            return False
        return torch.allclose(logprobs, expected, rtol=1e-3, atol=1e-3)

    def _sliced(self, hidden: Tensor, targets: Tensor, top_k: int = 0, ids: Tensor | None = None) -> RowScores:
        rows, vocabulary = hidden.shape[0], self.weight.shape[0]
        if not hidden.is_cuda and hidden.dtype != torch.float32:
            hidden = hidden.float()  # once, not once for every slice
        tile = _GPU_TILE if hidden.is_cuda else _CPU_TILE
        # on a CPU a slice of half-precision weights is copied to float32, and that copy is to fit into a tile too
        copied = hidden.shape[1] if not hidden.is_cuda and self.weight.dtype != torch.float32 else 1
        step = min(vocabulary, max(_VOCABULARY_SLICE, tile // max(rows, copied, 1)))
        height = max(1, tile // step)

        columns = targets[:, None] if ids is None else torch.cat([targets[:, None], ids], 1)
        state = _Running(columns, min(top_k, vocabulary))
        for first in range(0, vocabulary, step):
            last = min(first + step, vocabulary)
            for top in range(0, rows, height):
                part = slice(top, min(top + height, rows))
                state.fold(part, self.logits(hidden[part], first, last), first)
        return state.result()


class _Running:
    """The running softmax of every row, and the logits of some of its tokens. The first of them is the target."""

    def __init__(self, ids: Tensor, top_k: int) -> None:
        rows, device = len(ids), ids.device
        self.ids = ids
        self.maximum = torch.full((rows,), -torch.inf, device=device)
        self.total = torch.zeros(rows, device=device)
        self.picked = torch.full(ids.shape, -torch.inf, device=device)
        self.best = torch.zeros(rows, dtype=torch.long, device=device)
        self.top_logits = torch.full((rows, top_k), -torch.inf, device=device)
        self.top_ids = torch.zeros((rows, top_k), dtype=torch.long, device=device)

    def fold(self, rows: slice, logits: Tensor, first: int) -> None:
        """Take in the logits of vocabulary entries from `first` on."""
        width = logits.shape[1]
        local = self.ids[rows] - first
        here = (local >= 0) & (local < width)
        self.picked[rows] = torch.where(here, logits.gather(1, local.clamp(0, width - 1)), self.picked[rows])

        k = self.top_ids.shape[1]
        if k > 1:
            values, ids = logits.topk(min(k, width), dim=1)
            merged = torch.cat([self.top_logits[rows], values], 1)
            merged_ids = torch.cat([self.top_ids[rows], ids + first], 1)
            self.top_logits[rows], order = merged.topk(k, dim=1)
            self.top_ids[rows] = merged_ids.gather(1, order)

        values, ids = logits.max(dim=1)
        before = self.maximum[rows]
        # strictly greater: the lowest id wins a tie, as argmax over the whole row has it
        self.best[rows] = torch.where(values > before, ids + first, self.best[rows])
        maximum = torch.maximum(before, values)
        # the log of the slice's sum of exponentials above its own maximum, in torch's one pass for it
        addend = nn.functional.cross_entropy(logits, ids, reduction="none").exp()
        self.total[rows] = self.total[rows] * (before - maximum).exp() + addend * (values - maximum).exp()
        self.maximum[rows] = maximum

    def result(self) -> RowScores:
        # the maximum goes first: large logits would swallow the logarithm's digits
        maximum, log_total = self.maximum[:, None], self.total.log()[:, None]
        picked = self.picked - maximum - log_total
        top_logits, top_ids = self.top_logits, self.top_ids
        if top_ids.shape[1] == 1:  # needs no search of its own
            top_logits, top_ids = maximum, self.best[:, None]
        top_logprobs = top_logits - maximum - log_total
        return RowScores(picked[:, 0], self.best == self.ids[:, 0], top_ids, top_logprobs, picked[:, 1:])


def body(model: Any) -> Any:
    """The language model below its head. Some classes name none as their base (Llama 4)."""
    return model.model if model.base_model is model and hasattr(model, "model") else model.base_model


def _after_head(config: Any) -> tuple[float, float]:
    """What a family of Transformers does behind the head, by the configuration field that requests it.

    Returns:
        A factor of the logits, and the cap of cap * tanh(logits / cap), 0 for none.
    """
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        return 1.0, cap
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        return 1 / divisor, 0.0
    if factor := getattr(config, "logit_scale", None):  # Cohere
        return factor, 0.0
    return 1.0, 0.0
