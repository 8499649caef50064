"""One pass over logits in one kernel of Triton, for a GPU: the softmax's sum and the rank of one token of each row.

The sum is running (the online softmax of Milakov and Gimelshein, arXiv 1805.02867). engines/fold_kernel.py folds slices
of float32 logits into a state that lasts, and has no ranks: vLLM has the whole row, in 16 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 4096, 8
_FLOOR = tl.constexpr(-1e30)  # for a running maximum: with minus infinity, nothing less nothing would be not-a-number


@triton.jit  # type: ignore[untyped-decorator]
def moe_eval_softmax(  # type: ignore[no-untyped-def]  # noqa: PLR0917  Triton reads annotations as types of its own
    logits, stride, ids, maximum, log_total, ranks, width, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    own = tl.load(start + tl.load(ids + row)).to(tl.float32)
    most = tl.full([block], _FLOOR, tl.float32)  # every lane has a maximum, a sum and a count of its own
    total = tl.zeros([block], tl.float32)
    rank = tl.zeros([block], tl.int32)
    for first in range(0, width, block):
        column = first + tl.arange(0, block)
        values = tl.load(start + column, mask=column < width, other=float("-inf")).to(tl.float32)
        rank += ((values >= own) & (column < width)).to(tl.int32)
        after = tl.maximum(most, values)
        total = total * tl.exp(most - after) + tl.exp(values - after)
        most = after
    top = tl.max(most, 0)
    tl.store(maximum + row, top)
    tl.store(log_total + row, tl.log(tl.sum(total * tl.exp(most - top), 0)))
    tl.store(ranks + row, tl.sum(rank, 0))


def read(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read logits (n, width) of any floating type, whose rows are contiguous, for one token of each row, `ids` (n,).

    Returns:
        The maximum of each row and the logarithm of the sum of exponentials less it, float32 (n,), and how many logits
        are at least the token's, int32 (n,).
    """
    rows, width = logits.shape
    maximum, log_total = torch.empty((2, rows), dtype=torch.float32, device=logits.device)
    ranks = torch.empty(rows, dtype=torch.int32, device=logits.device)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        moe_eval_softmax[(rows,)](
            *(logits, logits.stride(0), ids, maximum, log_total, ranks, width), block=_BLOCK, num_warps=_WARPS
        )
    return maximum, log_total, ranks
