"""Quantise-dequantise of whole tensors against Model-Optimizer, compressed-tensors and loops in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from moe_eval.emulation import formats

Array = npt.NDArray[Any]
ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "fp8": formats.fp8,
    "fp8_rows": formats.fp8_rows,
    "fp8_groups": formats.fp8_groups,
    "fp8_blocks": formats.fp8_blocks,
    "nvfp4": formats.nvfp4,
    "nvfp4_rows": formats.nvfp4_rows,
}
every = pytest.mark.parametrize("quantise", ALL.values(), ids=ALL.keys())


def normal(*shape: int, seed: int = 0, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.float() - exact.float()).norm() / exact.float().norm()).item()


def scaled_e4m3(part: Array) -> Array:
    """A part of a float32 array with one scale, in the form of DeepSeek-V3: s = amax / 448, y = E4M3(x / s) * s."""
    amax = np.abs(part).max()
    scale = amax / np.float32(448) if amax else np.float32(1)
    scaled = np.clip(part / scale, np.float32(-448), np.float32(448))
    return scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def in_parts(values: Array, high: int, wide: int) -> Array:
    out = np.empty_like(values)
    for at in np.ndindex(values.shape[:-2]):
        for row in range(0, values.shape[-2], high):
            for column in range(0, values.shape[-1], wide):
                part = (*at, slice(row, row + high), slice(column, column + wide))
                out[part] = scaled_e4m3(values[part])
    return out


def special(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """A normal tensor, and what is done to it that makes scales difficult."""
    plain = normal(*shape, dtype=dtype)
    zeros, outlier, even = plain.clone(), plain.clone(), plain.clone()
    zeros[..., :20] = 0
    zeros[..., -1, :] = 0
    outlier[..., 0, 0] = -30000.0
    return {"plain": plain, "zeros": zeros, "outlier": outlier, "grid": (even * 2).round() / 2}


SHAPES = [(1, 1), (3, 15), (4, 16), (5, 17), (2, 48), (7, 130), (64, 256), (3, 5, 40), (2, 130, 260)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp8_has_one_scale(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for values in special(shape, dtype).values():
        wanted = torch.from_numpy(scaled_e4m3(values.float().numpy())).to(dtype)
        assert torch.equal(formats.fp8(values), wanted)
        assert torch.equal(formats.fp8(values, values.abs().amax()), wanted)


def test_fp8_saturates_at_the_magnitude_that_it_is_given() -> None:
    values = torch.tensor([0.1, 2.0, 5.0, -torch.inf])
    found = formats.fp8(values, torch.tensor(2.0))
    assert found[1:].tolist() == [2.0, 2.0, -2.0]
    assert abs(found[0].item() - 0.1) <= 0.1 / 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp8_blocks_and_groups_are_those_of_a_loop(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for values in special(shape, dtype).values():
        exact = values.float().numpy()
        assert torch.equal(formats.fp8_blocks(values), torch.from_numpy(in_parts(exact, 128, 128)).to(dtype))
        assert torch.equal(formats.fp8_groups(values), torch.from_numpy(in_parts(exact, 1, 128)).to(dtype))
    small = normal(*shape, dtype=dtype)
    wanted = torch.from_numpy(in_parts(small.float().numpy(), 4, 4)).to(dtype)
    assert torch.equal(formats.fp8_blocks(small, 4), wanted)


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (130, 200), (3, 500)], ids=str)
def test_fp8_blocks_are_those_of_compressed_tensors(shape: tuple[int, int]) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="needs compressed-tensors")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = normal(*shape)
    args = quantization.QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[128, 128])
    amax = torch.stack([torch.stack([b.abs().max() for b in r.split(128, 1)]) for r in weight.split(128, 0)])
    scale, zero = calculate_qparams(-amax, amax, args)
    assert torch.equal(formats.fp8_blocks(weight), fake_quantize(weight, scale, zero, args))


@pytest.fixture(scope="module")
def modelopt() -> Callable[[Tensor], Tensor]:
    """Model-Optimizer's own packing and unpacking. It pads, but does not cut off again, so both are done here."""
    found = pytest.importorskip("modelopt.torch.quantization.qtensor", reason="needs nvidia-modelopt")

    def round_trip(values: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % 16))
        packed, scale, whole = found.NVFP4QTensor.quantize(padded.clone(), 16)
        unpacked = packed.dequantize(scale=scale, double_scale=whole, block_sizes={-1: 16})
        assert unpacked.dtype == values.dtype
        return unpacked[..., : values.shape[-1]]

    return round_trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nvfp4_is_that_of_modelopt_bit_for_bit(
    modelopt: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Up to the sign of zeros: Model-Optimizer's table has no negative one."""
    for size in (1e-6, 1e-3, 1.0, 1e3, 1e6):
        for name, values in special(shape, dtype).items():
            scaled = values * size
            if scaled.any():  # of nothing but zeros Model-Optimizer makes NaN, see below
                assert torch.equal(formats.nvfp4(scaled), modelopt(scaled)), (name, size)


def test_nvfp4_is_that_of_modelopt_where_blocks_differ_in_size_beyond_e4m3(
    modelopt: Callable[[Tensor], Tensor],
) -> None:
    """Block scales from below 2^-9, where they are held at it, through subnormal ones to 448."""
    values = normal(400, 64) * torch.logspace(-9, 3, 400)[:, None]
    assert torch.equal(formats.nvfp4(values), modelopt(values))
    assert not formats.nvfp4(values)[0].any()


def test_zeros_stay_zeros_in_every_format(modelopt: Callable[[Tensor], Tensor]) -> None:
    zeros = torch.zeros(3, 40)
    for name, quantise in ALL.items():
        assert torch.equal(quantise(zeros), zeros), name
    assert modelopt(zeros).isnan().all(), "Model-Optimizer divides 0 by 0 here; if not any more, drop the exception"


def ct_scales(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The convention of compressed-tensors, written down again: block scales and global scale, and values in blocks.

    It keeps the reciprocal g = 2688 / amax of Model-Optimizer's float32 scale, multiplies by it where that divides,
    calculates g and amax / 6 in the tensor's own dtype (in bfloat16 g has 8 bits), and makes a block scale that
    rounds to 0 into 0.125, not 2^-9.
    """
    blocks = values.unflatten(-1, (-1, 16))
    whole = (2688.0 / values.abs().amax()).float()
    scale = formats.round_e4m3(whole * (blocks.abs().amax(-1, keepdim=True) / 6.0).float())
    return torch.where(scale == 0, 0.125, scale), whole, blocks.float()


def compressed_tensors_nvfp4(values: Tensor) -> Tensor:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = preset_name_to_scheme("NVFP4", ["Linear"]).weights
    whole = generate_gparam(values.min(), values.max())
    blocks = values.unflatten(-1, (-1, 16))
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=whole)
    found: Tensor = fake_quantize(values, scale, zero, args, global_scale=whole)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["plain", "outlier", "grid"])
def test_nvfp4_of_compressed_tensors_is_our_rounding_with_their_scales(case: str, dtype: torch.dtype) -> None:
    """Every difference from ours is one of scales: with theirs in their place nothing is left."""
    values = special((64, 512), dtype)[case]
    scale, whole, blocks = ct_scales(values)
    effective = scale / whole
    ours_with_theirs = (formats.round_e2m1(blocks / effective) * effective).flatten(-2).to(dtype)
    assert torch.equal(ours_with_theirs, compressed_tensors_nvfp4(values))


@pytest.mark.parametrize("seed", range(4))
def test_nvfp4_differs_from_compressed_tensors_at_ties_alone_in_float32(seed: int) -> None:
    """Dividing by the float32 scale or multiplying by its reciprocal differs in the last bits, which ties show.

    In bfloat16, where theirs has a coarser scale, the two errors differ in the third digit.
    """
    values = normal(256, 1024, seed=seed)
    ours, theirs = formats.nvfp4(values), compressed_tensors_nvfp4(values)
    assert relative_error(ours, values) == pytest.approx(0.0952, abs=0.0015)
    assert relative_error(theirs, values) == pytest.approx(relative_error(ours, values), rel=1e-4)
    apart = (ours - theirs).abs() > 2**-20 * values.abs()
    scale, whole, blocks = ct_scales(values)
    scaled = (blocks * whole / scale).flatten(-2).abs()
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    at_tie = ((scaled[..., None] - middles).abs() < 1e-5).any(-1)
    unrounded = (blocks.abs().amax(-1, keepdim=True) / 6 * whole).expand_as(blocks).flatten(-2)
    moved = formats.round_e4m3(unrounded * (1 + 1e-6)) != formats.round_e4m3(unrounded * (1 - 1e-6))
    assert not (apart & ~at_tie & ~moved).any()
    coarse = values.bfloat16()
    errors = relative_error(formats.nvfp4(coarse), coarse), relative_error(compressed_tensors_nvfp4(coarse), coarse)
    assert errors[0] != errors[1]
    assert errors[0] == pytest.approx(errors[1], abs=2e-3)


@pytest.mark.parametrize(("rows", "whole"), [(formats.fp8_rows, formats.fp8), (formats.nvfp4_rows, formats.nvfp4)])
def test_rows_are_quantised_each_by_itself(rows: Callable[[Tensor], Tensor], whole: Callable[[Tensor], Tensor]) -> None:
    values = normal(2, 5, 40) * torch.logspace(-6, 6, 10).reshape(2, 5, 1)
    values[1, 2] = 0
    apart = torch.stack([torch.stack([whole(row) for row in each]) for each in values])
    assert torch.equal(rows(values), apart)


@every
def test_no_rows_stay_no_rows(quantise: Callable[[Tensor], Tensor]) -> None:
    """An expert in a list may get no token."""
    if quantise in (formats.fp8_rows, formats.fp8_groups, formats.nvfp4_rows):
        assert quantise(torch.empty(0, 40)).shape == (0, 40)
    elif quantise in (formats.fp8, formats.nvfp4):
        assert quantise(torch.empty(0, 40), torch.tensor(1.0)).shape == (0, 40)  # type: ignore[call-arg]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_stay_and_the_input_is_not_written_to(
    quantise: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    for shape in SHAPES:
        values = normal(*shape, dtype=dtype)
        before = values.clone()
        found = quantise(values)
        assert (found.shape, found.dtype) == (values.shape, dtype)
        assert torch.equal(values, before)
        transposed = values.transpose(-1, -2)
        assert torch.equal(quantise(transposed), quantise(transposed.contiguous()))


@every
def test_what_is_no_number_reaches_no_further_than_its_scale(quantise: Callable[[Tensor], Tensor]) -> None:
    values = normal(256, 256)
    values[3, 5] = torch.nan
    found = quantise(values)
    assert found[3, 5].isnan()
    if quantise not in (formats.fp8, formats.nvfp4):
        assert torch.equal(found[128:], quantise(normal(256, 256))[128:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantise", [formats.fp8, formats.nvfp4])
def test_with_one_amax_a_second_time_changes_nothing(
    quantise: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    for seed, size in enumerate((1e-6, 0.037, 1.0, 1e6)):
        values = normal(50, 70, seed=seed, size=size, dtype=dtype)
        amax = values.float().abs().amax() * 1.37
        once = quantise(values, amax)
        assert torch.equal(quantise(once, amax), once)


@every
def test_a_second_time_changes_last_bits_at_most(quantise: Callable[[Tensor], Tensor]) -> None:
    once = quantise(normal(150, 300))
    torch.testing.assert_close(quantise(once), once, rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("quantise", [formats.fp8, formats.fp8_rows, formats.fp8_groups, formats.nvfp4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_rounds_as_a_cpu_does(quantise: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    values = torch.randn(33, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(quantise(values), quantise(values.cuda()).cpu())
