"""Properties of plan_batches that hold for any lengths and bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.engines.transformers.batching import batches_in_slabs, plan_batches

LENGTHS = st.lists(st.integers(1, 50), max_size=60)
TOKENS = st.none() | st.integers(1, 200)
ROWS = st.none() | st.integers(1, 10)


@given(LENGTHS, TOKENS, ROWS)
def test_batches_hold_every_index_once_and_are_as_large_as_the_bounds_allow(
    lengths: list[int], tokens: int | None, rows: int | None
) -> None:
    batches = plan_batches(lengths, tokens, rows)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert all(batches)
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True), "lengths never rise"
    for batch in batches:
        assert rows is None or len(batch) <= rows
        assert tokens is None or len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    for batch in batches[:-1]:
        grown = len(batch) + 1
        assert (rows is not None and grown > rows) or (tokens is not None and grown * lengths[batch[0]] > tokens)


@given(LENGTHS)
def test_without_bounds_there_is_one_batch(lengths: list[int]) -> None:
    assert len(plan_batches(lengths, None, None)) == (1 if lengths else 0)


@given(st.lists(st.just(7), min_size=2, max_size=20), ROWS)
def test_equal_lengths_keep_the_order_given(lengths: list[int], rows: int | None) -> None:
    batches = plan_batches(lengths, None, rows)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("lengths", "tokens", "rows", "expected"),
    [
        ([6, 2, 10, 5], None, None, [[2, 0, 3, 1]]),
        ([6, 2, 10, 5], None, 3, [[2, 0, 3], [1]]),
        ([6, 2, 10, 5], 20, None, [[2, 0], [3, 1]]),
        ([6, 2, 10, 5], 19, None, [[2], [0, 3, 1]]),
        ([6, 2, 10, 5], 9, None, [[2], [0], [3], [1]]),
        ([6, 2, 10, 5], 20, 1, [[2], [0], [3], [1]]),
        ([3, 100, 3], 10, None, [[1], [0, 2]]),
    ],
)
def test_batches_of_a_few(lengths: list[int], tokens: int | None, rows: int | None, expected: list[list[int]]) -> None:
    assert plan_batches(lengths, tokens, rows) == expected


@given(LENGTHS, TOKENS, ROWS)
def test_short_work_is_one_slab(lengths: list[int], tokens: int | None, rows: int | None) -> None:
    assert list(batches_in_slabs(lengths, tokens, rows)) == plan_batches(lengths, tokens, rows)


def test_what_comes_first_is_finished_first() -> None:
    lengths = [1024 if index % 2 else 30_000 for index in range(100)]
    order = [index for batch in batches_in_slabs(lengths, 65_536, None) for index in batch]
    assert sorted(order) == list(range(100))
    assert max(abs(place - index) for place, index in enumerate(order)) < 10
