"""Rounding to FP8 and NVFP4 and back, in plain PyTorch, on any device.

Every function takes a floating-point tensor and returns one of the same shape and dtype that holds only values of the
format times their scales. The arithmetic in between is float32. Not-a-number stays not-a-number.

Sources: E4M3 is the `fn` variant of Micikevicius et al., arXiv 2209.05433 (no infinities, largest value 448). E2M1 is
that of the OCP Microscaling specification 1.0. Scales follow NVIDIA Model-Optimizer for per-tensor FP8 and NVFP4, whose
checkpoints TensorRT-LLM reads, and DeepSeek-V3 (arXiv 2412.19437, section 3.3) for FP8 in blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

E4M3_MAX = 448.0
E4M3_SMALLEST = 2.0**-9
E2M1_MAX = 6.0
_EXPONENT = 0x7F800000  # its bits in a float32
NVFP4_BLOCK = 16
FP8_BLOCK = 128
# bits of a stored weight with its block's scale, by precision. Scales of whole matrices are below 0.01 %
STORED_BITS = {"fp8": 8.0, "fp8_block": 8 + 32 / FP8_BLOCK**2, "nvfp4": 4 + 8 / NVFP4_BLOCK}


def round_e4m3(values: Tensor) -> Tensor:
    """To the nearest E4M3 value, ties to even, float32. Magnitudes above 448 become 448."""
    return values.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def round_e2m1(values: Tensor) -> Tensor:
    """To the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 and their negatives, ties to even, float32."""
    wide = values.float()
    size = wide.abs().clamp_(max=E2M1_MAX)
    # the distance of neighbours: half of a number's power of two, which is its float32 without the mantissa
    step = (size.clamp(min=1).view(torch.int32) & _EXPONENT).view(torch.float32) / 2
    return torch.copysign(size.div_(step).round_().mul_(step), wide)


def fp8(values: Tensor, amax: Tensor | None = None) -> Tensor:
    """E4M3 with one float32 scale: amax / 448.

    Args:
        amax: the largest magnitude that the scale has to hold. Larger values saturate. A scalar, or a tensor that
            broadcasts against `values` for a scale each. None for the tensor's own.
    """
    wide = values.float()
    scale = _scale(wide.abs().amax() if amax is None else amax.float(), E4M3_MAX)
    return (round_e4m3(wide / scale) * scale).to(values.dtype)


def fp8_rows(values: Tensor) -> Tensor:
    """E4M3 with a scale for every row (the last dimension): dynamic activations, a scale for each token."""
    return fp8(values, values.float().abs().amax(-1, keepdim=True)) if values.numel() else values


def fp8_groups(values: Tensor, size: int = FP8_BLOCK) -> Tensor:
    """E4M3 with a scale for every `size` consecutive values of a row: activations of block-scaled FP8 (1 x 128).

    A last group that is not full has its own scale.
    """
    grouped = _groups(values.float(), size)
    return _ungrouped(fp8(grouped, grouped.abs().amax(-1, keepdim=True)), values)


def fp8_blocks(weight: Tensor, size: int = FP8_BLOCK) -> Tensor:
    """E4M3 with a scale for every `size` x `size` block of the last two dimensions: weights of block-scaled FP8.

    Blocks at the edges that are not full have their own scales.
    """
    rows, columns = weight.shape[-2:]
    padded = pad(weight.float(), (0, -columns % size, 0, -rows % size))
    high, wide = padded.shape[-2] // size, padded.shape[-1] // size
    blocks = padded.reshape(*padded.shape[:-2], high, size, wide, size)
    rounded = fp8(blocks, blocks.abs().amax((-3, -1), keepdim=True))
    return rounded.reshape(padded.shape)[..., :rows, :columns].to(weight.dtype)


def nvfp4(values: Tensor, amax: Tensor | None = None) -> Tensor:
    """E2M1 with an E4M3 scale for every 16 consecutive values of a row and one float32 scale over those.

    The float32 scale is amax / (6 x 448). A block's scale is its own largest magnitude / (6 x the float32 scale),
    rounded to E4M3 between 2^-9 and 448. It is 1 for a block of zeros. A last block that is not full is filled up with
    zeros.

    Args:
        amax: as for fp8, or None for the whole tensor's own.
    """
    blocks = _groups(values.float(), NVFP4_BLOCK)
    whole = _scale(values.float().abs().amax() if amax is None else amax.float(), E2M1_MAX * E4M3_MAX)
    if whole.ndim:
        whole = whole.unsqueeze(-1)
    block = blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * whole)
    block = torch.where(block == 0, 1.0, block)
    scale = block.clamp(E4M3_SMALLEST, E4M3_MAX).to(torch.float8_e4m3fn).float() * whole
    return _ungrouped(round_e2m1(blocks / scale) * scale, values)


def nvfp4_rows(values: Tensor) -> Tensor:
    """NVFP4 with a float32 scale for every row: activations without a calibrated scale."""
    return nvfp4(values, values.float().abs().amax(-1, keepdim=True)) if values.numel() else values


def _scale(amax: Tensor, maximum: float) -> Tensor:
    """amax / maximum, and 1 for zeros only."""
    # divided by a tensor: for a plain number CUDA multiplies by its rounded reciprocal, which moves the last bit
    scale = amax / torch.full_like(amax, maximum)
    return torch.where(scale == 0, 1.0, scale)


def _groups(wide: Tensor, size: int) -> Tensor:
    """[..., n] as [..., groups, size], the last group filled up with zeros."""
    padded = pad(wide, (0, -wide.shape[-1] % size))
    # the number of groups is explicit: without rows (an expert without tokens) no size can be inferred
    return padded.reshape(*padded.shape[:-1], padded.shape[-1] // size, size)


def _ungrouped(grouped: Tensor, like: Tensor) -> Tensor:
    return grouped.flatten(-2, -1)[..., : like.shape[-1]].to(like.dtype)
