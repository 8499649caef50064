"""Medians against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from moe_eval.traces.medians import median_of


@pytest.mark.parametrize("size", [1, 2, 3, 8, 101])
def test_medians_are_those_of_numpy(size: int) -> None:
    random = np.random.default_rng(size)
    whole = random.integers(-(2**62), 2**62, (size, 4))
    real = random.normal(size=(size, 4)) * 10.0 ** random.integers(-300, 300, (size, 4))
    real[random.random((size, 4)) < 0.1] = np.nan
    real[0, 1:3] = np.inf, -np.inf
    for values in (whole, real):
        for axis in (0, 1):
            np.testing.assert_array_equal(median_of(values, axis), np.median(values, axis))
        assert median_of(list(values[:, 0])) == pytest.approx(np.median(values[:, 0]), rel=0, abs=0, nan_ok=True)
