"""The scores of the Transformers engine against Transformers itself, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines.base import WindowScores
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.errors import UsageError
from tests.engines.conftest import check

Start = Callable[..., TransformersEngine]
Oracle = Callable[[Path, Window], Tensor]


def record_batches(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the sequences of every batch from now on."""
    batches: list[list[int]] = []
    score = engine._scoring._score_batch

    def recording(inputs: list[tuple[int, ...]], *rest: Any) -> list[WindowScores]:
        batches.append([len(row) for row in inputs])
        return score(inputs, *rest)

    monkeypatch.setattr(engine._scoring, "_score_batch", recording)
    return batches


def test_every_family_is_scored_as_by_itself(
    family: Path, start: Start, oracle: Oracle, mixed_windows: Sequence[Window]
) -> None:
    assert oracle(family, mixed_windows[0]).std() > 0.3, "logits too even to tell a wrong position from a right one"
    check(partial(oracle, family), mixed_windows, start(family).score(mixed_windows))


@pytest.mark.parametrize("top_k", [1, 5, 500])
def test_top_tokens_are_the_most_probable_ones(
    mixtral: Path, start: Start, oracle: Oracle, mixed_windows: Sequence[Window], top_k: int
) -> None:
    for window, scores in zip(mixed_windows, start(mixtral).score(mixed_windows, top_k=top_k), strict=True):
        best = oracle(mixtral, window).topk(min(top_k, 101))
        np.testing.assert_allclose(scores.top_logprobs, best.values, rtol=1e-4, atol=1e-4)
        picked = oracle(mixtral, window).gather(1, torch.from_numpy(scores.top_ids))
        np.testing.assert_allclose(scores.top_logprobs, picked, rtol=1e-4, atol=1e-4)


def test_requested_tokens_are_scored(
    mixtral: Path, start: Start, oracle: Oracle, mixed_windows: Sequence[Window]
) -> None:
    generator = np.random.default_rng(5)
    ids = [generator.integers(0, 101, (len(window.continuation), 6)) for window in mixed_windows]
    engine = start(mixtral, batch_size=3)
    assert engine.facts.scores_ids
    for window, of_window, scores in zip(mixed_windows, ids, engine.score(mixed_windows, 2, ids=ids), strict=True):
        picked = oracle(mixtral, window).gather(1, torch.from_numpy(of_window))
        np.testing.assert_allclose(scores.of_ids, picked, rtol=1e-4, atol=1e-4)
        assert scores.top_ids.shape == (len(window.continuation), 2)


def test_no_top_tokens_unless_asked_for(llama: Path, start: Start) -> None:
    (scores,) = start(llama).score([Window((1, 2), (3, 4, 5))])
    assert scores.top_ids.shape == scores.top_logprobs.shape == scores.of_ids.shape == (3, 0)


@pytest.mark.parametrize(
    ("bounds", "most_rows", "most_tokens"),
    [
        ({"batch_size": 1}, 1, None),
        ({"batch_size": 3}, 3, None),
        ({"batch_size": None}, None, 4096),
        ({"options": {"max_tokens_per_batch": 40}}, None, 40),
        ({"batch_size": 2, "options": {"max_tokens_per_batch": 50}}, 2, 50),
    ],
)
def test_scores_do_not_depend_on_the_batches(
    mixtral: Path,
    start: Start,
    oracle: Oracle,
    mixed_windows: Sequence[Window],
    monkeypatch: pytest.MonkeyPatch,
    *,
    bounds: dict[str, Any],
    most_rows: int | None,
    most_tokens: int | None,
) -> None:
    engine = start(mixtral, **bounds)
    batches = record_batches(engine, monkeypatch)
    check(partial(oracle, mixtral), mixed_windows, engine.score(mixed_windows))
    assert sum(map(len, batches)) == len(mixed_windows)
    for lengths in batches:
        assert most_rows is None or len(lengths) <= most_rows
        assert most_tokens is None or len(lengths) == 1 or len(lengths) * max(lengths) <= most_tokens
    assert any(len(lengths) > 1 for lengths in batches) == (most_rows != 1)


def test_windows_that_read_the_same_tokens_share_one_pass(
    llama: Path, start: Start, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = (4, 8, 15, 16, 23)
    windows = [
        Window(question, (42,)),
        Window((9,), (9, 9)),
        Window(question, (7,)),
        Window(question[:2], (*question[2:], 7)),
        Window(question, (42,)),
    ]
    engine = start(llama)
    batches = record_batches(engine, monkeypatch)
    check(partial(oracle, llama), windows, engine.score(windows))
    assert sorted(length for lengths in batches for length in lengths) == [2, 5]


def test_every_window_is_told_once_it_is_done(llama: Path, start: Start, mixed_windows: Sequence[Window]) -> None:
    finished: list[tuple[int, WindowScores]] = []
    windows = [*mixed_windows, *mixed_windows[:3]]
    scores = start(llama, batch_size=2).score(windows, done=lambda *each: finished.append(each))
    assert sorted(index for index, _ in finished) == list(range(len(windows)))
    assert all(each is scores[index] for index, each in finished)


def test_nothing_to_score_is_no_error(llama: Path, start: Start) -> None:
    assert start(llama).score([]) == []


def test_a_window_is_too_long_where_the_model_would_read_too_many_tokens(llama: Path, start: Start) -> None:
    engine = start(llama, max_length=8)
    assert len(engine.score([Window((1,) * 8, (2,))])) == 1
    with pytest.raises(ValueError, match="a window of 9 tokens is longer than 8"):
        engine.score([Window((1,) * 8, (2,)), Window((1,) * 8, (2, 3))])


def test_a_batch_that_does_not_fit_is_split_and_scored_right(
    mixtral: Path,
    start: Start,
    oracle: Oracle,
    mixed_windows: Sequence[Window],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, finished = start(mixtral), {}
    fail_above(engine, 1, monkeypatch)
    check(partial(oracle, mixtral), mixed_windows, engine.score(mixed_windows, done=finished.__setitem__))
    assert sorted(finished) == list(range(len(mixed_windows)))


def test_a_batch_size_that_did_not_fit_is_not_tried_again(
    llama: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(llama, batch_size=4)
    tried = fail_above(engine, 1, monkeypatch)
    engine.score([Window((first,), (5,)) for first in range(12)])
    assert (tried.count(4), tried.count(2), tried.count(1)) == (1, 1, 12)


def test_one_sequence_that_does_not_fit_is_the_users_to_mend(
    llama: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(llama)
    fail_above(engine, 0, monkeypatch)
    with pytest.raises(UsageError, match="One sequence does not fit into the memory of ") as refused:
        engine.score([Window((1,), (2,)), Window((2,), (2,))])
    assert "\n" not in str(refused.value)


def fail_above(engine: TransformersEngine, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let batches of more rows run out of memory; returns the list that every tried size is put into."""
    tried: list[int] = []
    score = engine._scoring._score_batch

    def scarce(inputs: list[tuple[int, ...]], *rest: Any) -> list[WindowScores]:
        tried.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError("out of memory")
        return score(inputs, *rest)

    monkeypatch.setattr(engine._scoring, "_score_batch", scarce)
    return tried
