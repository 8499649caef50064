"""Log-probabilities from hidden states without a [tokens, vocabulary] tensor in float32.

The output head is applied to one slice of the vocabulary at a time. Each slice is folded into a running maximum and a
running sum of exponentials (the online softmax of Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from moe_eval.errors import UsageError

# Float32 elements of one tile of logits: 1 MiB on a CPU, about what a core has as its cache. 256 MiB on a GPU, where
# launches stop showing.
_CPU_TILE = 1 << 18
_GPU_TILE = 1 << 26
_VOCABULARY_SLICE = 1024
# Elements of a tile that has all of a small vocabulary. It saves more than the cache does where no tokens are ranked.
_CPU_WHOLE = 1 << 20
_PARTS = 8  # of the work on a CPU, at least: enough that threads end together
_SMALL = 1 << 28  # multiplications that are not worth threads

Part = TypeVar("Part")
Result = TypeVar("Result")


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
        rows, (vocabulary, width) = len(hidden), self.weight.shape
        columns = targets[:, None] if ids is None else torch.cat([targets[:, None], ids], 1)
        if not hidden.is_cuda:
            hidden = hidden.float()  # once, not once for every slice
        tile = _GPU_TILE if hidden.is_cuda else _CPU_TILE
        height = max(1, min(rows, tile // min(vocabulary, _VOCABULARY_SLICE)))
        # on a CPU a slice of half-precision weights is copied to float32, and that copy is to fit into a tile too
        copied = width if not hidden.is_cuda and self.weight.dtype != torch.float32 else 1
        step = min(vocabulary, max(_VOCABULARY_SLICE, tile // max(height, copied)))
        if not hidden.is_cuda and top_k <= 1 and max(height, copied) * vocabulary <= _CPU_WHOLE:
            step = vocabulary

        @torch.no_grad()
        def run(part: tuple[int, int]) -> _Running:
            top, begin = part
            state = _Running(columns[top : top + height], min(top_k, vocabulary), vocabulary)
            for first in range(begin, min(begin + span, vocabulary), step):
                last = min(first + step, begin + span, vocabulary)
                state.fold(self.logits(hidden[top : top + height], first, last), first)
            return state

        threads = 1 if hidden.is_cuda or rows * vocabulary * width < _SMALL else torch.get_num_threads()
        tops = range(0, rows, height)
        # parts do not depend on the number of threads, and neither do the digits of the sums
        spans = 1 if hidden.is_cuda or len(tops) >= _PARTS else -(-_PARTS // max(1, len(tops)))
        span = -(-vocabulary // (spans * step)) * step
        begins = range(0, vocabulary, span)
        states = iter(_each(run, [(top, begin) for top in tops for begin in begins], threads))
        blocks = [reduce(_Running.join, islice(states, len(begins))) for _ in tops]
        results = [state.result() for state in blocks or [_Running(columns, min(top_k, vocabulary), vocabulary)]]
        return RowScores(*(torch.cat(column) for column in zip(*results, strict=True)))


def _each(run: Callable[[Part], Result], parts: Sequence[Part], threads: int) -> list[Result]:
    """The results of parts, in order, each computed by one thread.

    Threads of one operation wait for each other at its end, and operations on tiles are short. Where other processes
    have a core, that costs several times the work. Threads with parts of their own do not wait.
    """
    if threads == 1:
        return list(map(run, parts))
    # the number is one of the calling thread, and the default of threads to come
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = list(pool.map(run, parts))
    torch.set_num_threads(threads)
    return results


class _Running:
    """The running softmax of rows, and the logits of some of their tokens. The first of them is the target."""

    def __init__(self, ids: Tensor, top_k: int, vocabulary: int) -> None:
        rows, device = len(ids), ids.device
        self.ids, self.vocabulary = ids, vocabulary
        self.maximum = torch.full((rows,), -torch.inf, device=device)
        self.total = torch.zeros(rows, device=device)
        self.picked = torch.full(ids.shape, -torch.inf, device=device)
        self.best = torch.zeros(rows, dtype=torch.long, device=device)
        self.top_logits = torch.full((rows, top_k), -torch.inf, device=device)
        self.top_ids = torch.zeros((rows, top_k), dtype=torch.long, device=device)

    def fold(self, logits: Tensor, first: int) -> None:
        """Take in the logits of vocabulary entries from `first` on, which are overwritten."""
        width = logits.shape[1]
        if width == self.vocabulary:
            self.picked = logits.gather(1, self.ids)
        else:
            local = self.ids - first
            here = (local >= 0) & (local < width)
            self.picked = torch.where(here, logits.gather(1, local.clamp(0, width - 1)), self.picked)
        if self.top_ids.shape[1] > 1:
            values, ids = logits.topk(min(self.top_ids.shape[1], width), dim=1)
            self._merge_top(values, ids + first)
        self._raise_maximum(*self._best(logits, first))
        self.total += logits.sub_(self.maximum[:, None]).exp_().sum(dim=1)

    def _best(self, logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The maximum of every row and its token, which counts only where the maximum rises."""
        # which rows those are would have to be waited for, or they are all rows
        if logits.is_cuda or logits.shape[1] == self.vocabulary:
            values, ids = logits.max(dim=1)
            return values, ids + first
        values, ids = logits.amax(dim=1), self.best.clone()
        rising = (values > self.maximum).nonzero()[:, 0]
        ids[rising] = logits[rising].argmax(dim=1) + first
        return values, ids

    def join(self, later: _Running) -> _Running:
        """Take in the state of the same rows over later vocabulary entries."""
        self.picked = torch.maximum(self.picked, later.picked)
        self._merge_top(later.top_logits, later.top_ids)
        self._raise_maximum(later.maximum, later.best)
        self.total += later.total * (later.maximum - self.maximum).exp()
        return self

    def _merge_top(self, logits: Tensor, ids: Tensor) -> None:
        merged, merged_ids = torch.cat([self.top_logits, logits], 1), torch.cat([self.top_ids, ids], 1)
        self.top_logits, order = merged.topk(self.top_ids.shape[1], dim=1)
        self.top_ids = merged_ids.gather(1, order)

    def _raise_maximum(self, values: Tensor, ids: Tensor) -> None:
        # strictly greater: the lowest id wins a tie, as argmax over the whole row has it
        self.best = torch.where(values > self.maximum, ids, self.best)
        maximum = torch.maximum(self.maximum, values)
        self.total *= (self.maximum - maximum).exp()
        self.maximum = maximum

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
