"""Batches of sequences of like length under a token budget, smaller ones where memory does not hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from moe_eval.errors import UsageError

log = logging.getLogger(__name__)

# Enough tokens for many batches, so that sorting by length pays, and few enough that a failure loses only minutes.
_SLAB_TOKENS = 131072
# Continuations in place of a sequence, and tokens in place of one: they read few, and need memory for a context's keys
# and values alone.
_CONTINUATIONS, _CONTEXT_TOKENS = 4, 2


def batches_in_slabs(lengths: Sequence[int], max_tokens: int | None, max_rows: int | None) -> Iterator[list[int]]:
    """The batches of plan_batches, for one slab of consecutive sequences after another."""
    first = total = 0
    for index, length in enumerate(lengths):
        total += length
        if total >= _SLAB_TOKENS or index + 1 == len(lengths):
            for batch in plan_batches(lengths[first : index + 1], max_tokens, max_rows):
                yield [first + offset for offset in batch]
            first, total = index + 1, 0


def plan_batches(lengths: Sequence[int], max_tokens: int | None, max_rows: int | None) -> list[list[int]]:
    """Group indices so that padding is small and the first batch is the largest.

    Args:
        lengths: tokens of every sequence.
        max_tokens: bound on rows x longest row of a batch, padding included. A single longer sequence gets its own
            batch. None for no bound.
        max_rows: bound on the sequences of a batch. None for no bound.

    Returns:
        Every index once, longest sequences first, so that memory runs out at the start, if at all.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[current[0]] if current else 0
        full = max_rows is not None and len(current) >= max_rows
        if current and (full or (max_tokens is not None and longest * (len(current) + 1) > max_tokens)):
            batches.append(current)
            current = []
        current.append(index)
    if current:
        batches.append(current)
    return batches


@dataclass
class Batches:
    """The bounds of batches. That on sequences sinks once a GPU's memory does not hold a batch."""

    max_tokens: int | None
    max_rows: int | None
    device_name: str

    def of(self, lengths: Sequence[int], max_rows: int | None = None) -> Iterator[list[int]]:
        """Batches of sequences of these lengths, with another bound on sequences where one is given."""
        return batches_in_slabs(lengths, self.max_tokens, max_rows or self.max_rows)

    def of_continuations(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Batches of continuations of contexts that were read. Lengths are of both together."""
        max_tokens = self.max_tokens and self.max_tokens * _CONTEXT_TOKENS
        return batches_in_slabs(lengths, max_tokens, self.max_rows and self.max_rows * _CONTINUATIONS)

    def run(self, batch: list[int], work: Callable[[list[int]], None]) -> None:
        """Run a batch. If the GPU's memory does not hold it, run its halves, and smaller batches from then on."""
        if self.max_rows is not None and len(batch) > self.max_rows:
            for first in range(0, len(batch), self.max_rows):
                self.run(batch[first : first + self.max_rows], work)
            return
        try:
            work(batch)
            return
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UsageError(
                    f"One sequence does not fit into the memory of {self.device_name}. Lower max_length, or use "
                    "a checkpoint of lower precision or a larger GPU."
                ) from None
        torch.cuda.empty_cache()
        middle = (len(batch) + 1) // 2
        self.max_rows = min(self.max_rows or middle, middle)
        log.warning("A batch of %d did not fit into the GPU's memory. Batches of %d follow.", len(batch), middle)
        self.run(batch[:middle], work)
        self.run(batch[middle:], work)
