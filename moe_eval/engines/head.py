"""Log-probabilities from hidden states without a [tokens, vocabulary] tensor in float32.

The output head is applied to one slice of the vocabulary at a time. Each slice is folded into a running maximum and a
running sum of exponentials (the online softmax of Milakov and Gimelshein, arXiv 1805.02867).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from moe_eval.errors import UsageError

log = logging.getLogger(__name__)

# Float32 elements of one tile of logits, and of one row of it: 1 MiB on a CPU, about what a core has as its cache, and
# square, where the matrix product is fastest. 128 MiB on a GPU, where launches stop showing.
_CPU_TILE = 1 << 18
_GPU_TILE = 1 << 25
_VOCABULARY_SLICE = 512
_GPU_SLICE = 8192
# Elements of a tile that has all of a small vocabulary. It saves more than the cache does where no tokens are ranked.
_CPU_WHOLE = 1 << 20
_FEWEST_ROWS = 64  # of such a tile: products with fewer are slower
_BLOCK = 64  # logits
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
    def logits(self, hidden: Tensor, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Float32 logits of vocabulary entries first..last-1 for hidden states (n, width): shape (n, last - first).

        Args:
            out: where a CPU writes them.
        """
        weight = self.weight[first:last]
        if hidden.is_cuda and weight.dtype != torch.float32:
            # float32 out of the tensor cores' accumulator: no rounding of the logits to 8 bits of mantissa
            out = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        else:
            out = torch.mm(hidden.float(), weight.float().t(), out=out)
        if self.bias is not None:
            out += self.bias[first:last].float()
        if self._factor != 1:
            out *= self._factor
        return out.div_(self._cap).tanh_().mul_(self._cap) if self._cap else out

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
        tile, narrow = (_GPU_TILE, _GPU_SLICE) if hidden.is_cuda else (_CPU_TILE, _VOCABULARY_SLICE)
        # on a CPU a slice of half-precision weights is copied to float32, and that copy is to fit into a tile too
        copied = width if not hidden.is_cuda and self.weight.dtype != torch.float32 else 1
        is_whole = not hidden.is_cuda and top_k <= 1 and max(_FEWEST_ROWS, copied) * vocabulary <= _CPU_WHOLE
        height = max(1, min(rows, _CPU_WHOLE // vocabulary if is_whole else tile // min(vocabulary, narrow)))
        step = min(vocabulary, narrow if hidden.is_cuda else max(narrow, tile // max(height, copied)))
        if is_whole:
            step = vocabulary

        @torch.no_grad()
        def run(part: tuple[int, int]) -> _Running:
            top, begin = part
            state = _Running(columns[top : top + height], min(top_k, vocabulary))
            part_rows = hidden[top : top + height]
            # a CPU would get the memory of every tile anew from the system
            space = None if hidden.is_cuda else torch.empty(len(part_rows) * step)
            for first in range(begin, min(begin + span, vocabulary), step):
                last = min(first + step, begin + span, vocabulary)
                shape = (len(part_rows), last - first)
                out = None if space is None else space[: shape[0] * shape[1]].view(shape)
                state.fold(self.logits(part_rows, first, last, out), first)
            return state

        threads = 1 if hidden.is_cuda or rows * vocabulary * width < _SMALL else torch.get_num_threads()
        tops = range(0, rows, height)
        # parts do not depend on the number of threads, and neither do the digits of the sums
        spans = 1 if hidden.is_cuda or len(tops) >= _PARTS else -(-_PARTS // max(1, len(tops)))
        span = -(-vocabulary // (spans * step)) * step
        begins = range(0, vocabulary, span)
        states = iter(_each(run, [(top, begin) for top in tops for begin in begins], threads))
        blocks = [reduce(_Running.join, islice(states, len(begins))) for _ in tops]
        results = [state.result() for state in blocks or [_Running(columns, min(top_k, vocabulary))]]
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
    """The running softmax of rows, and the logits of some of their tokens. The first of them is the target.

    Attributes:
        leads: whether the target is the first of the largest logits of its slice, and above those before.
    """

    def __init__(self, ids: Tensor, top_k: int) -> None:
        rows, device = len(ids), ids.device
        self.ids = ids
        self.maximum = torch.full((rows,), -torch.inf, device=device)
        self.total = torch.zeros(rows, device=device)
        self.picked = torch.full(ids.shape, -torch.inf, device=device)
        self.leads = torch.zeros(rows, dtype=torch.bool, device=device)
        self.top_logits = torch.full((rows, top_k), -torch.inf, device=device)
        self.top_ids = torch.zeros((rows, top_k), dtype=torch.long, device=device)
        self._kernel = _kernel_of(device)
        if self._kernel is None:
            self._targets, self._order = ids[:, 0].sort()
            self._sorted = self._targets.tolist()

    def fold(self, logits: Tensor, first: int) -> None:
        """Take in the logits of vocabulary entries from `first` on, which are overwritten."""
        top_k = self.top_ids.shape[1]
        if top_k > 1 or (top_k and self._kernel):
            values, ids = logits.topk(min(top_k, logits.shape[1]), dim=1)
            self._merge_top(values, ids + first)
        if self._kernel is not None:
            state = {"maximum": self.maximum, "total": self.total, "leads": self.leads, "picked": self.picked}
            self._kernel(logits, first, self.ids, **state)
            return
        values = logits.amax(dim=1)
        rises = values > self.maximum
        largest = _first_largest(logits) if top_k == 1 else None
        if largest is not None:
            self.top_logits[rises, 0] = values[rises]
            self.top_ids[rises, 0] = largest[rises] + first
        self._pick(logits, first, rises, largest)
        self._raise_maximum(values)
        self.total += logits.sub_(self.maximum[:, None]).exp_().sum(dim=1)

    def _pick(self, logits: Tensor, first: int, rises: Tensor, largest: Tensor | None) -> None:
        """Keep the logits of ids that are in this slice.

        Args:
            rises: whether a row's maximum is above those before.
            largest: its column, where that is searched already.
        """
        width = logits.shape[1]
        if self.ids.shape[1] > 1:
            local = self.ids - first
            is_here = (local >= 0) & (local < width)
            self.picked = torch.where(is_here, logits.gather(1, local.clamp(0, width - 1)), self.picked)
        part = slice(*(bisect_left(self._sorted, bound) for bound in (first, first + width)))
        if part.start == part.stop:
            return
        rows, columns = self._order[part], self._targets[part] - first
        self.picked[rows, 0] = logits[rows, columns]
        if largest is None and len(rows) == len(logits):
            largest = _first_largest(logits)
        best = _first_largest(logits[rows]) if largest is None else largest[rows]
        self.leads[rows[(best == columns) & rises[rows]]] = True

    def join(self, later: _Running) -> _Running:
        """Take in the state of the same rows over later vocabulary entries."""
        self.leads |= later.leads & (later.picked[:, 0] > self.maximum)
        self.picked = torch.maximum(self.picked, later.picked)
        self._merge_top(later.top_logits, later.top_ids)
        self._raise_maximum(later.maximum)
        self.total += later.total * (later.maximum - self.maximum).exp()
        return self

    def _merge_top(self, logits: Tensor, ids: Tensor) -> None:
        merged, merged_ids = torch.cat([self.top_logits, logits], 1), torch.cat([self.top_ids, ids], 1)
        self.top_logits, order = merged.topk(self.top_ids.shape[1], dim=1)
        self.top_ids = merged_ids.gather(1, order)

    def _raise_maximum(self, values: Tensor) -> None:
        maximum = torch.maximum(self.maximum, values)
        self.total *= (self.maximum - maximum).exp()
        self.maximum = maximum

    def result(self) -> RowScores:
        # the maximum goes first: large logits would swallow the logarithm's digits
        maximum, log_total = self.maximum[:, None], self.total.log()[:, None]
        picked = self.picked - maximum - log_total
        is_greedy = self.leads & (self.picked[:, 0] == self.maximum)
        return RowScores(picked[:, 0], is_greedy, self.top_ids, self.top_logits - maximum - log_total, picked[:, 1:])


def _first_largest(logits: Tensor) -> Tensor:
    """The column of the first of the largest logits of every row. Not-a-number is the largest.

    PyTorch finds a maximum on a CPU ten times as fast as its column: the column is searched in one block of a row.
    """
    rows, width = logits.shape
    if not rows or width % _BLOCK:
        return logits.argmax(dim=1)
    blocks = logits.view(rows, -1, _BLOCK)
    block = blocks.amax(dim=2).argmax(dim=1)
    return block * _BLOCK + blocks[torch.arange(rows), block].argmax(dim=1)


@cache
def _kernel_of(device: torch.device) -> Callable[..., None] | None:
    """The fold as one kernel, where Triton runs on a GPU. It needs a C compiler there."""
    if device.type != "cuda":
        return None
    try:
        from moe_eval.engines import fold_kernel

        logits, zeros = torch.zeros((1, 2), device=device), torch.zeros((5, 1), device=device)
        fold_kernel.fold(
            logits, 0, zeros[:1].long(), maximum=zeros[1], total=zeros[2], leads=zeros[3].bool(), picked=zeros[4:]
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton raises errors of many classes
        reason = " ".join(str(error).split())[:200]
        log.warning(
            "Triton does not run here (%s), so the output head takes about twice as long. Install triton and a C "
            "compiler.",
            reason or type(error).__name__,
        )
        return None
    return fold_kernel.fold


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
