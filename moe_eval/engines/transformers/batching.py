"""Batches of sequences of like length under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Enough tokens for many batches, so that sorting by length pays, and few enough that a failure loses only minutes.
_SLAB_TOKENS = 131072


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
