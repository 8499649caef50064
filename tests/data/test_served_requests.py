"""Requests of servers: cut from one stream, the same for every arm, by their digest."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from moe_eval.data.served_requests import Lengths, LoadPoint, of_stream, point_of, points, read_lengths
from moe_eval.errors import UsageError


def test_prompts_are_consecutive_slices_of_the_stream() -> None:
    requests = of_stream(itertools.count(), [Lengths(3, 2), Lengths(5, 4)], 4, "counted")
    assert [request.prompt for request in requests.requests] == [
        (0, 1, 2),
        (3, 4, 5, 6, 7),
        (8, 9, 10),
        (11, 12, 13, 14, 15),
    ]
    assert [request.output_len for request in requests.requests] == [2, 4, 2, 4]
    assert (requests.longest, requests.different) == (9, 4)


def test_a_short_stream_begins_again_elsewhere_and_says_so() -> None:
    requests = of_stream(range(10), [Lengths(4, 1)], 5, "ten")
    prompts = [request.prompt for request in requests.requests]
    assert prompts == [(0, 1, 2, 3), (4, 5, 6, 7), (3, 4, 5, 6), (6, 7, 8, 9), (2, 3, 4, 5)]
    assert len(set(prompts)) == 5
    assert requests.different == 2
    with pytest.raises(UsageError, match="has 10 tokens and a prompt needs 11"):
        of_stream(range(10), [Lengths(11, 1)], 1, "ten")


def test_the_digest_is_of_tokens_and_lengths_and_of_nothing_else() -> None:
    first = of_stream(range(100), [Lengths(4, 1)], 5, "a name")
    assert first.digest == of_stream(range(100), [Lengths(4, 1)], 5, "another name").digest
    others = [of_stream(range(1, 100), [Lengths(4, 1)], 5, ""), of_stream(range(100), [Lengths(4, 2)], 5, "")]
    assert first.digest not in [other.digest for other in others]


def test_points_are_named_and_ordered() -> None:
    found = points((4, 1), (2.5,))
    assert [point.name for point in found] == ["c1", "c4", "r2.5"]
    assert [point.place for point in found] == ["at 1 user", "at 4 users", "at 2.5 requests per second"]
    assert [point.requests(15) for point in found] == [15, 40, 15], "ten of every user at least"
    assert [point.warm_up for point in found] == [1, 4, 1]


def test_a_point_is_known_by_the_beginning_of_a_name() -> None:
    for point in points((4, 128), (2.5, 1e-7, 3e6)):
        assert [point_of(f"{point.name}_{end}") for end in ("i512_o128", "mixed")] == [point] * 2
    assert [point_of(name) for name in ("b4_i8_o9", "c4", "r2.5.1_x", "cat_1", "r_1")] == [None] * 5


@pytest.mark.parametrize(
    ("users", "rates", "words"),
    [
        ((), (), "no load"),
        ((2, 2), (), "given twice"),
        ((), (0.0,), "is 0"),
        ((), (2.0, 2.0000001), "r2 is given twice"),
    ],
)
def test_points_that_make_no_sense_are_refused(users: tuple[int, ...], rates: tuple[float, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        points(users, rates)


def test_lengths_are_read_from_a_trace_as_mooncake_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n\n'
        '{"input_length": 12, "output_length": 3}\n'
    )
    assert read_lengths(file) == (Lengths(6758, 500), Lengths(12, 3))
    assert LoadPoint(3).name == "c3"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"input_length": 0, "output_length": 1}', '{"input_length": "x", "output_length": 1}', "text"]
)
def test_files_without_lengths_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match="Give JSON lines with input_length and output_length"):
        read_lengths(file)
    with pytest.raises(UsageError, match="does not exist"):
        read_lengths(tmp_path / "nothing")
