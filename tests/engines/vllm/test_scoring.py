"""Scores of the vLLM engine against the Transformers engine's."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moe_eval.data.window import Window
from moe_eval.engines.base import GenerationRequest, WindowScores
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.vllm import readers
from moe_eval.engines.vllm.engine import VllmEngine
from moe_eval.errors import EngineError, UsageError, WorkerDied
from tests.conftest import SAMPLE
from tests.engines.conftest import LONGEST, window
from tests.engines.vllm.conftest import Load


@pytest.fixture(scope="session")
def windows(tokenizer: Any) -> list[Window]:
    """Real text in pieces of many shapes, extremes, repeated ones, and ones that share a beginning."""
    tokens = tokenizer.encode(SAMPLE.read_text(encoding="utf-8"), verbose=False)
    shapes = ((1, 1), (40, 60), (1, 120), (100, 1), (7, 30), (200, 50))
    found = []
    for context, continuation in shapes:
        piece, tokens = tokens[: context + continuation], tokens[context + continuation :]
        found.append(Window(tuple(piece[:context]), tuple(piece[context:])))
    last = found[-1].context + found[-1].continuation
    found += [Window(last[:20], last[20:]), found[0], Window(last[:-1], last[-1:]), window(4, LONGEST, 1)]
    return [*found, Window((5,), window(7, 1, LONGEST).continuation)]


def _same(found: Sequence[WindowScores], expected: Sequence[WindowScores]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.logprobs.dtype, one.top_ids.dtype, one.greedy.dtype) == (np.float32, np.int64, np.bool_)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, atol=1e-4, rtol=1e-4)
        assert one.greedy.tolist() == other.greedy.tolist()
        assert one.top_ids.shape == other.top_ids.shape


@pytest.mark.parametrize("top_k", [0, 1, 64])
def test_scores_are_those_of_transformers(
    engine: VllmEngine, reference: TransformersEngine, windows: list[Window], top_k: int
) -> None:
    told: dict[int, WindowScores] = {}
    found = engine.score(windows, top_k, done=told.__setitem__)
    expected = reference.score(windows, top_k)
    _same(found, expected)
    assert {index: id(each) for index, each in told.items()} == dict(enumerate(map(id, found)))
    for one, other in zip(found, expected, strict=True):
        assert (one.top_ids == other.top_ids).mean() > 0.97 if top_k else one.top_ids.size == 0


def test_an_order_of_windows_is_kept_when_few_run_at_once(
    load: Load, reference: TransformersEngine, windows: list[Window]
) -> None:
    order: list[int] = []
    found = load(batch_size=2).score(windows[:7], done=lambda index, _: order.append(index))
    _same(found, reference.score(windows[:7]))
    assert sorted(order) == list(range(7))


def test_a_window_that_does_not_fit_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match="a window of 1023 tokens is longer than 1022"):
        engine.score([window(1, 2, 2), window(2, LONGEST, 2)])


def test_the_window_is_what_was_asked_for(load: Load) -> None:
    engine = load(max_length=64)
    assert engine.facts.max_length == 64
    assert engine.facts.arguments["max_model_len"] == 66
    assert len(engine.score([window(3, 1, 64)])[0].logprobs) == 64
    assert load(options={"max_model_len": 100}).facts.max_length == 98


def test_requested_tokens_are_refused(load: Load) -> None:
    engine = load()
    assert not engine.facts.scores_ids
    assert engine.score([window(1, 3, 9)])[0].of_ids.shape == (9, 0)
    with pytest.raises(UsageError, match=r"and no others\. Score without ids\."):
        engine.score([window(1, 3, 9)], ids=[np.zeros((9, 1), np.int64)])


def test_log_probabilities_of_other_tokens_are_noticed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    monkeypatch.setenv("VLLM_DOUBLE", "shift=1")
    with pytest.raises(EngineError, match="belong to other tokens"):
        engine.score([window(1, 3, 9)])


@pytest.mark.parametrize("flat", [None, SimpleNamespace(token_ids=[0] * 5, logprobs=[0.0] * 5, ranks=[1] * 5)])
def test_missing_log_probabilities_are_noticed(flat: Any) -> None:
    with pytest.raises(EngineError, match="instead of 4"):
        readers.scores(SimpleNamespace(prompt_logprobs=flat), [], Window((1,), (2, 3)), 1)


def test_a_version_that_keeps_its_requests_elsewhere_gives_the_same_scores(
    load: Load, reference: TransformersEngine, windows: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DOUBLE", "no_states")
    engine = load()
    for top_k in (0, 3):
        _same(engine.score(windows[:7], top_k), reference.score(windows[:7], top_k))


def test_the_most_probable_of_two_equal_tokens_is_greedy_whatever_its_rank(load: Load) -> None:
    """vLLM counts equals: both have rank 2. The window is looked at again, with the most probable token beside it."""
    engine = load()
    with torch.no_grad():
        model = engine.session.llm.llm_engine.model_executor.driver_worker.model
        head = next(each for name, each in model.named_parameters() if "lm_head" in name or "embed_tokens" in name)
        prompt = (5, 6, 7)
        best = int(engine.generate([prompt], GenerationRequest(1, ignore_eos=True))[0].token_ids[0])
        twin = best + 1 if best + 1 < len(head) else best - 1
        head[twin] = head[best]
        model.ready()
    for token in (best, twin):
        (found,) = engine.score([Window(prompt, (token,))])
        assert found.greedy.tolist() == [True]
        assert found.top_ids.shape == (1, 0)
    (worse,) = engine.score([Window(prompt, ((best + 5) % len(head),))])
    assert worse.greedy.tolist() == [False]


def test_what_was_scored_before_a_failure_is_kept_and_nothing_stays_in_flight(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(batch_size=1)
    monkeypatch.setenv("VLLM_DOUBLE", "fail_at=4")
    told: list[int] = []
    with pytest.raises(EngineError, match=r"failed while scoring .*illegal memory access") as caught:
        engine.score([window(seed, 3, 9) for seed in range(8)], done=lambda index, _: told.append(index))
    assert told == [0, 1, 2]
    assert str(caught.value).count("\n") == 0
    assert not engine.session.llm.llm_engine.has_unfinished_requests()


def test_a_listener_that_fails_leaves_nothing_in_flight(load: Load) -> None:
    engine = load(batch_size=2)

    def listen(index: int, _: object) -> None:
        raise KeyError(index)

    with pytest.raises(KeyError):
        engine.score([window(seed, 3, 9) for seed in range(8)], done=listen)
    assert not engine.session.llm.llm_engine.has_unfinished_requests()
    assert len(engine.score([window(1, 3, 9)])) == 1


def test_a_dead_engine_core_is_told_in_a_sentence(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    monkeypatch.setenv("VLLM_DOUBLE", "dead_at=1")
    with pytest.raises(WorkerDied, match="The engine core of vLLM has ended while scoring"):
        engine.score([window(1, 3, 9)])


def test_nothing_to_score_is_no_error(engine: VllmEngine) -> None:
    assert engine.score([]) == []
