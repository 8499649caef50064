"""Workloads: prompts that are the text's own tokens, or PCG64's as computed here from its definition."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from moe_eval.data import workload
from moe_eval.data.workload import Shape, Workload
from moe_eval.errors import UsageError


def encode(text: str) -> list[int]:
    return [ord(letter) - ord("a") for letter in text]


def pcg64(seed: int) -> Iterator[int]:
    """PCG XSL-RR 128/64 (O'Neill, 2014) in plain integers; the seeding is NumPy's."""
    start = np.random.PCG64(seed).state["state"]
    state, increment = int(start["state"]), int(start["inc"])
    while True:
        state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + increment) % 2**128
        word, turn = (state >> 64 ^ state) % 2**64, state >> 122
        yield (word >> turn | word << (64 - turn)) % 2**64


def test_shapes_are_named_as_metric_keys_spell_them() -> None:
    shapes = workload.shapes([8, 1], 512, 256)
    assert [shape.name for shape in shapes] == ["b8_i512_o256", "b1_i512_o256"]
    assert [shape.tokens for shape in shapes] == [6144, 768]


@pytest.mark.parametrize(
    ("sizes", "input_len", "output_len", "message"),
    [
        ([], 8, 8, "no batch size"),
        ([1, 0], 8, 8, "batch size is 0"),
        ([1], -3, 8, "input length in tokens is -3"),
        ([1], 8, 0, "output length in tokens is 0"),
        ([4, 1, 4], 8, 8, "Batch size 4 is given twice"),
    ],
)
def test_shapes_that_cannot_be_run_are_refused(sizes: list[int], input_len: int, output_len: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workload.shapes(sizes, input_len, output_len)


@given(st.lists(st.text("abcdefgh", max_size=30), max_size=8), st.integers(1, 7), st.integers(1, 5))
@settings(max_examples=200)
def test_prompts_of_text_are_its_slices_in_order_each_once(pages: list[str], length: int, batch: int) -> None:
    text = "".join(pages)
    expected: list[tuple[int, ...]] = []
    for index in range(len(text) // length):
        piece = tuple(encode(text[index * length : (index + 1) * length]))
        if piece not in expected:
            expected.append(piece)
    shapes = workload.shapes([batch], length, 4)
    if len(expected) < batch:
        with pytest.raises(
            UsageError, match=rf"gives {len(expected)} different prompts of {length} .* needs {batch}\."
        ):
            workload.from_text(pages, encode, shapes, 8, "x")
    else:
        assert list(workload.from_text(pages, encode, shapes, 8, "x").pool) == expected[:batch]


def test_a_token_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(UsageError, match=r"token 7 .* vocabulary has 7"):
        workload.from_text(["abch"], encode, workload.shapes([1], 2, 1), 7, "x")


def test_a_larger_batch_holds_the_smaller_ones_prompts() -> None:
    work = workload.from_seed(3, workload.shapes([1, 4, 16], 8, 2), 100)
    small, middle, large = (work.prompts(shape) for shape in work.shapes)
    assert (len(small), len(middle), len(large)) == (1, 4, 16)
    assert large[:4] == middle
    assert middle[:1] == small
    alone = workload.from_seed(3, workload.shapes([4], 8, 2), 100)
    assert alone.pool == middle
    for shape in (Shape(17, 8, 2), Shape(1, 9, 2)):
        with pytest.raises(UsageError, match=f"16 prompts of 8 tokens, which do not fit {shape.name}"):
            work.prompts(shape)


def test_shapes_of_several_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match=r"not \[8, 9\]"):
        workload.from_seed(0, [Shape(1, 8, 1), Shape(1, 9, 1)], 10)


@pytest.mark.parametrize(("seed", "special"), [(0, ()), (12345, (0, 3, 99)), (2**63, (1, 500))])
def test_random_prompts_are_pcg64s_on_every_platform(seed: int, special: tuple[int, ...]) -> None:
    work = workload.from_seed(seed, workload.shapes([6], 20, 2), 100, special)
    allowed = [token for token in range(100) if token not in special]
    stream = pcg64(seed)
    assert work.pool == tuple(tuple(allowed[next(stream) % len(allowed)] for _ in range(20)) for _ in range(6))


def test_the_digest_of_a_seed_is_the_same_everywhere() -> None:
    work = workload.from_seed(0, workload.shapes([1, 8, 32], 512, 64), 151936, special=range(151643, 151936))
    assert work.digest == "2d53f9d0deb9f18e"


def test_random_prompts_are_uniform_and_leave_special_tokens_out() -> None:
    work = workload.from_seed(7, workload.shapes([64], 500, 1), 50, special=(0, 49))
    counts = Counter(token for prompt in work.pool for token in prompt)
    assert set(counts) == set(range(1, 49))
    assert distributions.chisquare(list(counts.values())).pvalue > 1e-3


def test_all_prompts_differ_even_where_there_are_hardly_enough() -> None:
    work = workload.from_seed(1, workload.shapes([27], 3, 1), 4, special=(2,))
    assert sorted(work.pool) == sorted(product((0, 1, 3), repeat=3))
    with pytest.raises(UsageError, match="3 tokens that may be drawn make fewer than 28 different prompts of 3"):
        workload.from_seed(1, workload.shapes([28], 3, 1), 4, special=(2,))
    with pytest.raises(UsageError, match="seed is -1"):
        workload.from_seed(-1, workload.shapes([1], 3, 1), 4)


@pytest.fixture
def frozen() -> Workload:
    return workload.from_seed(5, workload.shapes([1, 3], 4, 2), 30)


def test_a_workload_survives_json(frozen: Workload) -> None:
    assert workload.from_json(json.loads(json.dumps(frozen.to_json()))) == frozen


@pytest.mark.parametrize("change", ["token", "shape", "missing prompt", "order", "moved boundary"])
def test_a_changed_workload_is_refused(frozen: Workload, change: str) -> None:
    raw = json.loads(json.dumps(frozen.to_json()))
    if change == "token":
        raw["pool"][2][3] = (raw["pool"][2][3] + 1) % 30
    elif change == "shape":
        raw["shapes"][0]["output_len"] += 1
    elif change == "missing prompt":
        del raw["pool"][-1]
    elif change == "order":
        raw["pool"].reverse()
    else:
        raw["pool"][1].insert(0, raw["pool"][0].pop())
    with pytest.raises(UsageError, match=f"digest {frozen.digest} and its shapes and tokens have"):
        workload.from_json(raw)


@pytest.mark.parametrize(
    "raw", [{}, {"shapes": 3}, {"shapes": [{"batch": 1}], "pool": []}, {"shapes": [4], "pool": []}]
)
def test_what_is_no_workload_is_refused(raw: object) -> None:
    with pytest.raises(UsageError, match="not a workload"):
        workload.from_json(raw)
