"""Rounding to E4M3 and E2M1 against ml_dtypes and against the definition, over whole domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_eval.emulation import formats

Array = npt.NDArray[Any]


class Format(NamedTuple):
    """`sizes` are the magnitudes of the format in float32; an index is a bit pattern, so even ones end in a 0 bit."""

    name: str
    round: Callable[[Tensor], Tensor]
    dtype: Any
    sizes: Array

    @property
    def largest(self) -> np.float32:
        return np.float32(self.sizes[-1])


E4M3 = Format(
    "e4m3",
    formats.round_e4m3,
    ml_dtypes.float8_e4m3fn,
    np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32),  # pattern 127 is the NaN
)
E2M1 = Format(
    "e2m1",
    formats.round_e2m1,
    ml_dtypes.float4_e2m1fn,
    np.arange(8, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32),
)
both = pytest.mark.parametrize("form", [E4M3, E2M1], ids=lambda form: form.name)


def expected(form: Format, values: Array) -> Array:
    """The rounding of ml_dtypes, where it has to round finite values that the format reaches."""
    return np.clip(values, -form.largest, form.largest).astype(form.dtype).astype(np.float32)


def same_bits(found: Tensor, wanted: Array) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy().view(np.uint32), wanted.astype(np.float32).view(np.uint32))


def nearest(form: Format, value: float) -> float:
    """The definition: of all magnitudes the nearest one, of two the one whose last bit is 0."""
    # what is beyond the largest one first goes to it: no float64 tells 2^60 - 6 from 2^60
    distances = np.abs(form.sizes.astype(np.float64) - min(abs(value), float(form.largest)))
    candidates = np.flatnonzero(distances == distances.min())
    chosen = next((index for index in candidates if index % 2 == 0), candidates[0])
    return float(np.copysign(form.sizes[chosen], value))


@both
def test_the_tables_of_the_formats_are_those_of_their_papers(form: Format) -> None:
    assert np.all(np.diff(form.sizes) > 0)
    if form is E2M1:
        assert form.sizes.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    else:
        assert form.sizes[[1, 7, 8, 126]].tolist() == [2**-9, 7 * 2**-9, 2**-6, 448]
    assert form.largest == (formats.E2M1_MAX if form is E2M1 else formats.E4M3_MAX)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_pattern_of_16_bits_is_rounded_as_by_ml_dtypes(form: Format, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = every[~every.isnan()]
    assert numbers.isinf().sum() == 2
    same_bits(form.round(numbers), expected(form, numbers.float().numpy()))
    odd = every[every.isnan()]
    assert len(odd) == (254 if dtype == torch.bfloat16 else 2046)
    assert form.round(odd).isnan().all()


@both
@pytest.mark.parametrize("sign", [1, -1])
def test_every_tie_goes_to_the_even_mantissa_and_its_neighbours_to_the_nearer_value(form: Format, sign: int) -> None:
    low, high = form.sizes[:-1], form.sizes[1:]
    ties = (low + high) / np.float32(2)
    assert np.all(ties.astype(np.float64) == (low.astype(np.float64) + high) / 2), "not exact in float32"
    even = np.where(np.arange(len(ties)) % 2 == 0, low, high)
    for values, wanted in (
        (ties, even),
        (np.nextafter(ties, np.float32(0)), low),
        (np.nextafter(ties, np.float32(np.inf)), high),
    ):
        same_bits(form.round(torch.from_numpy(sign * values)), np.copysign(wanted, np.float32(sign)))


@both
def test_every_value_of_the_format_stays(form: Format) -> None:
    values = np.concatenate([form.sizes, -form.sizes])
    assert np.signbit(values).sum() == len(form.sizes), "a negative zero is a value too"
    same_bits(form.round(torch.from_numpy(values)), values)


@both
def test_what_is_too_large_saturates(form: Format) -> None:
    most = float(form.largest)
    values = torch.tensor([torch.inf, torch.finfo(torch.float32).max, 2 * most, 1.001 * most])
    assert form.round(values).tolist() == [most] * 4
    assert form.round(-values).tolist() == [-most] * 4


@both
def test_what_is_no_number_stays_beside_numbers_that_do_not_change(form: Format) -> None:
    found = form.round(torch.tensor([1.0, torch.nan, -2.0, -torch.nan]))
    assert found.isnan().tolist() == [False, True, False, True]
    assert found[[0, 2]].tolist() == [1.0, -2.0]


@both
def test_the_smallest_float32_numbers_become_zeros_of_their_sign(form: Format) -> None:
    tiny = torch.tensor([2.0**-149, 2.0**-126, float(form.sizes[1]) / 2])
    same_bits(form.round(tiny), np.zeros(3))
    same_bits(form.round(-tiny), -np.zeros(3))


@both
def test_any_float32_number_goes_to_the_nearest_value(form: Format) -> None:
    numbers = st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.floats(width=32, min_value=-float(form.largest), max_value=float(form.largest)),
    )

    @settings(max_examples=400)
    @given(st.lists(numbers, min_size=1, max_size=50))
    def holds(values: list[float]) -> None:
        same_bits(form.round(torch.tensor(values)), np.array([nearest(form, value) for value in values]))

    holds()


@both
def test_the_input_is_not_written_to(form: Format) -> None:
    values = torch.tensor([0.3, -1000.0, torch.inf])
    before = values.clone()
    form.round(values)
    assert torch.equal(values, before)
