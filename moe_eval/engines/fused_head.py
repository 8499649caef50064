"""The output head and its softmax in one kernel of Triton, for 16-bit weights on a GPU.

A program multiplies some rows with a slice of the vocabulary and keeps of the float32 logits, which never leave its
registers, what the softmax needs: maximum, its token, and sum of exponentials. The slices are joined afterwards, as in
the online softmax of Milakov and Gimelshein (arXiv 1805.02867).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _TOKENS, _WIDTH = 128, 256, 64
_WARPS, _STAGES = 8, 3
_GROUP = 8  # blocks of rows that read a slice of the weights while it is in the GPU's cache
_ROWS_AT_ONCE = 16384  # 120 MB of partial results at 151,936 tokens


@triton.jit  # type: ignore[untyped-decorator]
def _slices(  # type: ignore[no-untyped-def]  # noqa: PLR0917  Triton reads annotations as types of its own
    hidden,
    weight,
    bias,
    targets,
    maxima,
    totals,
    tokens,
    picked,
    rows,
    vocabulary,
    width,
    factor,
    cap,
    has_bias: tl.constexpr,
    has_cap: tl.constexpr,
    block_rows: tl.constexpr,
    block_tokens: tl.constexpr,
    block_width: tl.constexpr,
    group: tl.constexpr,
):
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, block_rows)
    in_group = group * tl.cdiv(vocabulary, block_tokens)
    first = program // in_group * group
    size = min(row_blocks - first, group)
    row = (first + program % in_group % size) * block_rows + tl.arange(0, block_rows)
    block = program % in_group // size
    token = block * block_tokens + tl.arange(0, block_tokens)
    column = tl.arange(0, block_width)
    # rows and tokens beyond the last read others, and are left out below
    left = hidden + (row % rows).to(tl.int64)[:, None] * width + column[None, :]
    right = weight + (token % vocabulary).to(tl.int64)[None, :] * width + column[:, None]
    logits = tl.zeros((block_rows, block_tokens), dtype=tl.float32)
    for done in range(0, width, block_width):
        is_inside = column < width - done
        part = tl.load(left, mask=is_inside[None, :], other=0.0)
        logits = tl.dot(part, tl.load(right, mask=is_inside[:, None], other=0.0), logits)
        left += block_width
        right += block_width
    if has_bias:
        logits += tl.load(bias + token % vocabulary).to(tl.float32)[None, :]
    logits *= factor
    if has_cap:
        logits = cap * (2 * tl.sigmoid(2 * logits / cap) - 1)  # cap * tanh(logits / cap)
    logits = tl.where((token < vocabulary)[None, :], logits, float("-inf"))

    maximum, index = tl.max(logits, 1, return_indices=True, return_indices_tie_break_left=True)
    total = tl.sum(tl.exp(logits - maximum[:, None]), 1)
    is_row = row < rows
    place = block.to(tl.int64) * rows + row
    tl.store(maxima + place, maximum, mask=is_row)
    tl.store(totals + place, total, mask=is_row)
    tl.store(tokens + place, block * block_tokens + index, mask=is_row)
    target = tl.load(targets + row, mask=is_row, other=0)
    value = tl.sum(tl.where(token[None, :] == target[:, None], logits, 0.0), 1)
    tl.store(picked + row, value, mask=is_row & (target // block_tokens == block))


def score(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, factor: float = 1.0, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The natural-log probabilities of targets (n,), float32, and whether each is the most probable token, bool.

    Args:
        hidden: 16-bit hidden states, shape (n, width), and `weight` of the same type, shape (vocabulary, width).
        factor: multiplies the logits, which then go through cap * tanh(logits / cap) if `cap` is not 0.
    """
    parts = zip(torch.split(hidden, _ROWS_AT_ONCE), torch.split(targets, _ROWS_AT_ONCE), strict=True)
    scores = [_score(part.contiguous(), weight.contiguous(), bias, ids, factor=factor, cap=cap) for part, ids in parts]
    logprobs, greedy = (torch.cat(column) for column in zip(*scores, strict=True))
    return logprobs, greedy


def _score(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, factor: float, cap: float
) -> tuple[Tensor, Tensor]:
    rows, (vocabulary, width) = len(hidden), weight.shape
    slices = triton.cdiv(vocabulary, _TOKENS)
    maxima, totals = torch.empty((2, slices, rows), device=hidden.device)
    tokens = torch.empty((slices, rows), dtype=torch.int32, device=hidden.device)
    picked = torch.empty(rows, device=hidden.device)
    _slices[(triton.cdiv(rows, _ROWS) * slices,)](
        *(hidden, weight, weight if bias is None else bias, targets, maxima, totals, tokens, picked),
        *(rows, vocabulary, width, factor, cap),
        has_bias=bias is not None,
        has_cap=bool(cap),
        block_rows=_ROWS,
        block_tokens=_TOKENS,
        block_width=_WIDTH,
        group=_GROUP,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    maximum = maxima.amax(0)
    total = (totals * (maxima - maximum).exp()).sum(0)
    best = torch.where(maxima == maximum, tokens, vocabulary).amin(0)  # the lowest of tied tokens
    return picked - maximum - total.log(), best == targets
