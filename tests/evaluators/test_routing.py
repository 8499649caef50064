"""Counts of experts against brute force with sets."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import routing
from moe_eval.records.shape_latency import Routing

Array = npt.NDArray[Any]


def drawn(seed: int, lengths: list[int], layers: int, experts: int, top_k: int) -> list[Array]:
    """Independent uniform draws of different experts."""
    generator = np.random.default_rng(seed)
    return [
        generator.random((length, layers, experts)).argpartition(top_k - 1, axis=2)[:, :, :top_k].astype(np.int16)
        for length in lengths
    ]


@given(
    seed=st.integers(0, 10**6),
    decoded=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    layers=st.integers(1, 3),
    experts=st.integers(2, 7),
    top_k=st.integers(1, 2),
)
@settings(max_examples=150)
def test_every_count_is_that_of_sets(seed: int, decoded: list[int], layers: int, experts: int, top_k: int) -> None:
    input_len = 3
    arrays = drawn(seed, [input_len + length for length in decoded], layers, experts, top_k)
    sizes = list(range(1, len(decoded) + 1))
    by_size = routing.read(arrays, input_len, experts, sizes)
    assert list(by_size) == sizes
    for size, counted in by_size.items():
        batch = arrays[:size]
        steps = min(decoded[:size])
        different = [
            len({int(expert) for prompt in batch for expert in prompt[input_len + t, layer]})
            for t in range(steps)
            for layer in range(layers)
        ]
        assert counted.steps == steps
        assert counted.distinct == (pytest.approx(sum(different) / len(different)) if different else None)
        loads = [
            Counter(int(expert) for prompt in batch for expert in prompt[:, layer].ravel()) for layer in range(layers)
        ]
        assert counted.load == tuple(tuple(load[expert] for expert in range(experts)) for load in loads)
        entropies = [-sum(n / load.total() * math.log(n / load.total()) for n in load.values()) for load in loads]
        assert counted.effective == pytest.approx(sum(map(math.exp, entropies)) / layers)
        maxima = [max(load.values()) * experts / load.total() for load in loads]
        assert counted.max_over_mean == pytest.approx(sum(maxima) / layers)


def test_a_step_is_made_of_the_same_row_of_every_prompt() -> None:
    # read 2, make 2: in the first step both prompts choose 0 and 1, in the second four different experts
    first = np.array([[[4, 5]], [[4, 5]], [[0, 1]], [[0, 1]]])
    second = np.array([[[2, 3]], [[2, 3]], [[1, 0]], [[2, 3]]])
    by_size = routing.read([first, second], 2, 6, [2, 1])
    assert list(by_size) == [2, 1]
    assert by_size[2].distinct == (2 + 4) / 2
    assert by_size[1].distinct == 2
    # what was read counts as load and not as a step
    assert by_size[2].load == ((3, 3, 3, 3, 2, 2),)


def test_independent_draws_read_what_is_expected_of_them() -> None:
    arrays = drawn(0, [24] * 64, 12, 128, 8)
    by_size = routing.read(arrays, 8, 128, [1, 8, 32, 64])
    # measured on a model with random weights, and expected, in the table of facts: 8, 51.6, 111.8, 125.9
    assert [counted.independent for counted in by_size.values()] == pytest.approx([8, 51.6, 111.8, 125.9], abs=0.06)
    for counted in by_size.values():
        assert counted.distinct == pytest.approx(counted.independent, rel=0.01)
    assert by_size[64].effective == pytest.approx(128, rel=0.02)
    assert by_size[64].max_over_mean < 1.6


def test_evenly_loaded_experts_count_in_full_and_a_collapsed_layer_as_its_few() -> None:
    even = np.arange(8).reshape(4, 1, 2)
    counted = routing.read([even], 1, 8, [1])[1]
    assert (counted.effective, counted.max_over_mean) == (pytest.approx(8), 1)
    always = np.zeros((4, 3, 2), dtype=np.int16) + np.array([2, 5], dtype=np.int16)
    counted = routing.read([always], 1, 8, [1])[1]
    assert (counted.effective, counted.max_over_mean, counted.distinct) == (pytest.approx(2), 4, 2)


@pytest.mark.parametrize("size", [0, 3])
def test_a_batch_of_prompts_that_are_not_there_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"routing of 2 prompts and none of a batch of {size}"):
        routing.read(drawn(0, [4, 4], 1, 8, 2), 2, 8, [size])


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (np.zeros((4, 2, 2), dtype=int), "prompt 1 has shape"),
        (np.zeros((4, 2), dtype=int), "prompt 1 has shape"),
        (np.zeros((1, 1, 2), dtype=int), "prompt 1 has shape"),
        (np.full((4, 1, 2), 8), "names experts 8 to 8 of 8"),
        (np.full((4, 1, 2), -1), "names experts -1 to -1 of 8"),
    ],
)
def test_what_cannot_be_routing_is_refused(second: Array, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        routing.read([*drawn(0, [4], 1, 8, 2), second], 2, 8, [1, 2])


def test_a_routing_survives_json() -> None:
    by_size = routing.read(drawn(0, [6, 6], 3, 8, 2), 2, 8, [2])
    assert msgspec.json.decode(msgspec.json.encode(by_size), type=dict[int, Routing]) == by_size


def test_tokens_by_the_rank_that_holds_their_expert() -> None:
    # two layers of four experts, one of two per token
    chosen = np.array([[[0, 1], [0, 2]], [[0, 3], [0, 2]], [[0, 1], [1, 3]]], dtype=np.int16)
    counted = routing.read([chosen], 1, 4, [1], (0, 0, 1, 1))[1]
    assert counted.rank_load == (5 + 3, 1 + 3)
    assert counted.rank_max_over_mean == pytest.approx((5 / 3 + 3 / 3) / 2)
    assert routing.read([chosen], 1, 4, [1])[1].rank_max_over_mean is None
    with pytest.raises(EngineError, match="hold 3 experts of 4"):
        routing.read([chosen], 1, 4, [1], (0, 0, 1))
