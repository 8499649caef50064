"""Which launch a kernel came from, against a search through all of them."""

from __future__ import annotations

import numpy as np
import pytest

from moe_eval.traces.kernel_table import NONE, index_in
from moe_eval.traces.readers.launch_calls import launches

GRAPH = 1 << 32  # CUPTI counts the nodes of a graph above this


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_the_last_launch_of_the_process_with_that_id_counts(step: int) -> None:
    draw = np.random.default_rng(step)
    process, owner = draw.integers(-1, 4, 300) * step, draw.integers(0, 3, 200) * step
    ids, call_ids = draw.integers(-1, 60, 300) * step, draw.integers(-1, 50, 200) * step
    ids, call_ids = np.maximum(ids, NONE), np.maximum(call_ids, NONE)
    expected = [
        max(np.flatnonzero((owner == pid) & (call_ids == key)).tolist(), default=NONE) if key >= 0 else NONE
        for pid, key in zip(process.tolist(), ids.tolist(), strict=True)
    ]
    assert launches(process, ids, owner, call_ids).tolist() == expected
    assert launches(process, ids, owner[:0], call_ids[:0]).tolist() == [NONE] * 300


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [5],
        range(3, 40, 2),
        [-(1 << 62), 0, 1 << 62],
        [graph * GRAPH + node for graph in (1, 2, 7) for node in (0, 3)],
    ],
)
def test_an_index_is_that_of_the_equal_number(numbers: list[int]) -> None:
    numbers = list(numbers)
    values = [*numbers, *(number + 1 for number in numbers), NONE, 0, -(1 << 63), (1 << 63) - 1, GRAPH + 9]
    expected = [numbers.index(value) if value in numbers else NONE for value in values]
    assert index_in(np.array(numbers, np.int64), np.array(values, np.int64)).tolist() == expected
