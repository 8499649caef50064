"""Counts of experts against brute force with sets, and the case in which one arm's routing had collapsed."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval.errors import EngineError, UsageError
from moe_eval.evaluators import routing
from moe_eval.evaluators.routing import Routing

Array = npt.NDArray[Any]


def drawn(seed: int, lengths: list[int], layers: int, experts: int, top_k: int) -> list[Array]:
    """Independent uniform draws of different experts."""
    generator = np.random.default_rng(seed)
    return [
        generator.random((length, layers, experts)).argpartition(top_k - 1, axis=2)[:, :, :top_k].astype(np.int16)
        for length in lengths
    ]


def collapsed(seed: int, prompts: int, length: int, layers: int, kept: int) -> list[Array]:
    """Tokens that all choose 8 of the same few experts."""
    return [each + 100 for each in drawn(seed, [length] * prompts, layers, kept, 8)]


@given(
    seed=st.integers(0, 10**6),
    made=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    layers=st.integers(1, 3),
    experts=st.integers(2, 7),
    top_k=st.integers(1, 2),
)
@settings(max_examples=150)
def test_every_count_is_that_of_sets(seed: int, made: list[int], layers: int, experts: int, top_k: int) -> None:
    read = 3
    arrays = drawn(seed, [read + each for each in made], layers, experts, top_k)
    sizes = list(range(1, len(made) + 1))
    found = routing.read(arrays, read, experts, sizes)
    assert list(found) == sizes
    for size, each in found.items():
        batch = arrays[:size]
        steps = min(made[:size])
        different = [
            len({int(expert) for prompt in batch for expert in prompt[read + t, layer]})
            for t in range(steps)
            for layer in range(layers)
        ]
        assert each.steps == steps
        assert each.distinct == (pytest.approx(sum(different) / len(different)) if different else None)
        loads = [
            Counter(int(expert) for prompt in batch for expert in prompt[:, layer].ravel()) for layer in range(layers)
        ]
        assert each.load.tolist() == [[load[expert] for expert in range(experts)] for load in loads]
        entropies = [-sum(n / load.total() * math.log(n / load.total()) for n in load.values()) for load in loads]
        assert each.effective == pytest.approx(sum(map(math.exp, entropies)) / layers)
        most = [max(load.values()) * experts / load.total() for load in loads]
        assert each.max_over_mean == pytest.approx(sum(most) / layers)


def test_a_step_is_made_of_the_same_row_of_every_prompt() -> None:
    # read 2, make 2: in the first step both prompts choose 0 and 1, in the second four different experts
    one = np.array([[[4, 5]], [[4, 5]], [[0, 1]], [[0, 1]]])
    two = np.array([[[2, 3]], [[2, 3]], [[1, 0]], [[2, 3]]])
    found = routing.read([one, two], 2, 6, [2, 1])
    assert list(found) == [2, 1]
    assert found[2].distinct == (2 + 4) / 2
    assert found[1].distinct == 2
    # what was read counts as load and not as a step
    assert found[2].load.tolist() == [[3, 3, 3, 3, 2, 2]]


def test_independent_draws_read_what_is_expected_of_them() -> None:
    arrays = drawn(0, [24] * 64, 12, 128, 8)
    found = routing.read(arrays, 8, 128, [1, 8, 32, 64])
    # measured on a model with random weights, and expected, in the table of facts: 8, 51.6, 111.8, 125.9
    assert [each.independent for each in found.values()] == pytest.approx([8, 51.6, 111.8, 125.9], abs=0.06)
    for each in found.values():
        assert each.distinct == pytest.approx(each.independent, rel=0.01)
    assert found[64].effective == pytest.approx(128, rel=0.02)
    assert found[64].max_over_mean < 1.6


def test_evenly_loaded_experts_count_in_full_and_a_collapsed_layer_as_its_few() -> None:
    even = np.arange(8).reshape(4, 1, 2)
    found = routing.read([even], 1, 8, [1])[1]
    assert (found.effective, found.max_over_mean) == (pytest.approx(8), 1)
    always = np.zeros((4, 3, 2), dtype=np.int16) + np.array([2, 5], dtype=np.int16)
    found = routing.read([always], 1, 8, [1])[1]
    assert (found.effective, found.max_over_mean, found.distinct) == (pytest.approx(2), 4, 2)


def test_an_arm_with_collapsed_routing_is_no_fair_opponent() -> None:
    whole = routing.read(drawn(1, [40] * 8, 6, 128, 8), 8, 128, [8])[8]
    narrow = routing.read(collapsed(2, 8, 40, 6, kept=15), 8, 128, [8])[8]
    assert whole.distinct == pytest.approx(51.6, rel=0.02)
    assert narrow.distinct == pytest.approx(15.0, rel=0.02)
    assert routing.fair(whole, narrow, names=("bf16", "fp8")) is not None
    other = routing.read(drawn(3, [40] * 8, 6, 128, 8), 8, 128, [8])[8]
    assert routing.fair(whole, other) is None
    assert routing.fair(replace(whole, distinct=51.8), replace(narrow, distinct=15.0), names=("bf16", "fp8")) == (
        "bf16 reads 51.8 experts per layer and step and fp8 15.0: more than 5 % apart"
    )


@pytest.mark.parametrize(
    ("one", "two", "bound", "fair"),
    [(100, 95, 0.05, True), (95, 100, 0.05, True), (100, 94.9, 0.05, False), (94.9, 100, 0.05, False),
     (100, 94.9, 0.1, True), (8, 8, 0, True), (None, None, 0.05, True), (8, None, 0.05, False)],
)  # fmt: skip
def test_the_bound_is_a_share_of_the_greater(one: float | None, two: float | None, bound: float, fair: bool) -> None:
    plain = routing.read([np.zeros((2, 1, 1), dtype=int)], 1, 4, [1])[1]
    said = routing.fair(replace(plain, distinct=one), replace(plain, distinct=two), bound)
    assert (said is None) == fair


def test_batches_of_different_size_are_not_compared() -> None:
    found = routing.read(drawn(0, [4, 4], 1, 8, 2), 2, 8, [1, 2])
    with pytest.raises(UsageError, match="Batches of 1 and 2"):
        routing.fair(found[1], found[2])


@pytest.mark.parametrize("size", [0, 3])
def test_a_batch_of_prompts_that_are_not_there_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"routing of 2 prompts and none of a batch of {size}"):
        routing.read(drawn(0, [4, 4], 1, 8, 2), 2, 8, [size])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (np.zeros((4, 2, 2), dtype=int), "prompt 1 has shape"),
        (np.zeros((4, 2), dtype=int), "prompt 1 has shape"),
        (np.zeros((1, 1, 2), dtype=int), "prompt 1 has shape"),
        (np.full((4, 1, 2), 8), "names experts 8 to 8 of 8"),
        (np.full((4, 1, 2), -1), "names experts -1 to -1 of 8"),
    ],
)
def test_what_cannot_be_routing_is_refused(second: Array, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        routing.read([*drawn(0, [4], 1, 8, 2), second], 2, 8, [1, 2])


def test_a_routing_survives_json() -> None:
    found = routing.read(drawn(0, [6, 6], 3, 8, 2), 2, 8, [2])[2]
    again = routing.from_json(json.loads(json.dumps(found.to_json())))
    assert isinstance(again, Routing)
    assert again.load.dtype == found.load.dtype
    assert again.to_json() == found.to_json()
