"""The fold of a slice of logits into a running softmax in one kernel of Triton, for a GPU.

The operations of torch that do the same read and write the slice five times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _fold(  # type: ignore[no-untyped-def]  # noqa: PLR0917  Triton reads annotations as types of its own
    logits, ids, maximum, total, leads, picked, first, width, ids_of_row, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    values = tl.load(logits + row * width + column, mask=column < width, other=float("-inf"))
    top, index = tl.max(values, 0, return_indices=True, return_indices_tie_break_left=True)
    before = tl.load(maximum + row)
    after = tl.maximum(before, top)
    summed = tl.load(total + row) * tl.exp(before - after) + tl.sum(tl.exp(values - after), 0)
    tl.store(total + row, summed)
    tl.store(maximum + row, after)
    # strictly greater: the lowest id wins a tie
    is_target = first + index == tl.load(ids + row * ids_of_row)
    tl.store(leads + row, is_target, mask=is_target & (top > before))
    for place in range(0, ids_of_row):
        column_of_id = tl.load(ids + row * ids_of_row + place) - first
        is_here = (column_of_id >= 0) & (column_of_id < width)
        value = tl.load(logits + row * width + column_of_id, mask=is_here)
        tl.store(picked + row * ids_of_row + place, value, mask=is_here)


def fold(
    logits: Tensor, first: int, ids: Tensor, *, maximum: Tensor, total: Tensor, leads: Tensor, picked: Tensor
) -> None:
    """Take float32 logits (n, width) of vocabulary entries from `first` on into the state of n rows, in place.

    Args:
        ids: int64 (n, k), whose logits go to `picked`, float32 (n, k).
        maximum, total: of the logits, and of their exponentials less the maximum: float32 (n,).
        leads: becomes true where the first of a row's ids has a logit above all before it, bool (n,).
    """
    rows, width = logits.shape
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _fold[(rows,)](
            *(logits, ids, maximum, total, leads, picked, first, width, ids.shape[1]),
            block=block,
            num_warps=max(1, min(16, block // 1024)),
        )
