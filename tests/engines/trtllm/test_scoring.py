"""The scores of the TensorRT-LLM engine against Transformers itself, on every double."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_eval.data.window import Window
from moe_eval.engines.base import WindowScores
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.engines.trtllm.readers import PromptLogprobs
from moe_eval.engines.trtllm.session import Session
from moe_eval.engines.trtllm.workers import Workers
from tests.engines.conftest import LONGEST, check, window
from tests.engines.trtllm.conftest import NEWEST, OLDEST, Distribution, Load

FROM = {
    "1.2.0": "context_logits, checked against generation",
    "1.3.0rc8": "context_logits, checked against generation",
    "1.4.0rc1": "prompt_logprobs=0, checked against context_logits, themselves checked against generation",
}


def test_the_engine_says_what_its_scores_are_read_from(engine: TrtllmEngine, version: str) -> None:
    assert (engine.facts.name, engine.facts.version) == ("trtllm", version)
    assert engine.facts.scores_from == FROM[version]
    assert engine.facts.max_length == LONGEST


def test_scores_are_those_of_each_window_by_itself(
    engine: TrtllmEngine, oracle: Distribution, windows: list[Window]
) -> None:
    assert oracle(windows[2]).std() > 0.3, "logits too even to tell a wrong position from a right one"
    found = engine.score(windows)
    assert any(scores.greedy.any() for scores in found)
    check(oracle, windows, found)


def test_both_forms_give_the_same(engine: TrtllmEngine, oracle: Distribution, windows: list[Window]) -> None:
    check(oracle, windows, engine.score_with(engine.context, windows))


@NEWEST
@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_engines_own_form_is_right_since_1_3_0rc11(
    engine: TrtllmEngine, oracle: Distribution, windows: list[Window], k: int
) -> None:
    some = [each for each in windows if len(each.inputs) < LONGEST]
    check(oracle, some, engine.score_with(PromptLogprobs(k), some))


@pytest.mark.parametrize("top_k", [1, 5, 5000])
def test_top_tokens_are_the_most_probable_ones(
    engine: TrtllmEngine, oracle: Distribution, windows: list[Window], top_k: int
) -> None:
    some = windows[:3] if top_k > 4096 else windows[:7]
    found = engine.score(some, top_k=top_k)
    check(oracle, some, found)
    for each, scores in zip(some, found, strict=True):
        best = oracle(each).topk(min(top_k, 4096))
        assert scores.top_ids.dtype == np.int64
        np.testing.assert_allclose(scores.top_logprobs, best.values, rtol=1e-4, atol=1e-4)
        picked = oracle(each).gather(1, torch.from_numpy(scores.top_ids))
        np.testing.assert_allclose(scores.top_logprobs, picked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_k", [0, 3])
def test_requested_tokens_are_scored(
    engine: TrtllmEngine, oracle: Distribution, windows: list[Window], top_k: int
) -> None:
    generator = np.random.default_rng(5)
    ids = [generator.integers(0, 4096, (len(each.continuation), 6)) for each in windows[:5]]
    assert engine.facts.scores_ids
    scores = engine.score(windows[:5], top_k, ids=ids)
    check(oracle, windows[:5], scores)
    for each, of_window, result in zip(windows[:5], ids, scores, strict=True):
        picked = oracle(each).gather(1, torch.from_numpy(of_window))
        np.testing.assert_allclose(result.of_ids, picked, rtol=1e-4, atol=1e-4)
        assert result.top_ids.shape == (len(each.continuation), top_k)


def test_no_top_tokens_unless_asked_for(engine: TrtllmEngine) -> None:
    (scores,) = engine.score([Window((1, 2), (3, 4, 5))])
    assert scores.top_ids.shape == scores.top_logprobs.shape == scores.of_ids.shape == (3, 0)


def test_every_window_is_told_once_it_is_done(engine: TrtllmEngine, windows: list[Window]) -> None:
    finished: list[tuple[int, WindowScores]] = []
    scores = engine.score(windows[:3] * 4, done=lambda *each: finished.append(each))
    assert sorted(index for index, _ in finished) == list(range(12))
    assert all(each is scores[index] for index, each in finished)


def test_nothing_to_score_is_no_error(engine: TrtllmEngine) -> None:
    assert engine.score([]) == engine.score([], top_k=3) == []


def test_a_window_that_is_too_long_is_refused_before_any_is_scored(engine: TrtllmEngine) -> None:
    finished: list[int] = []
    too_long = Window((1,) * LONGEST, (2, 3))
    with pytest.raises(ValueError, match=f"a window of {LONGEST + 1} tokens is longer than {LONGEST}"):
        engine.score([Window((1,), (2,)), too_long], done=lambda index, _: finished.append(index))
    assert finished == []


def test_one_token_is_generated_for_a_window_and_no_block_is_reused(load: Load, events: Any, version: str) -> None:
    engine = load(options={"max_batch_size": 2})
    before = len(events("request"))
    same = window(9, 100, 2)
    engine.score([same] * 9)
    requests = events("request")[before:]
    wanted = {"prompt_logprobs": 0} if version == "1.4.0rc1" else {"return_context_logits": True}
    assert [each["sampling"] for each in requests] == [{"max_tokens": 1, **wanted}] * 9
    assert {each["prompt_len"] for each in requests} == {102 if version == "1.4.0rc1" else 101}
    queued = [each["queued"] for each in requests]
    assert max(queued[4:]) == 3, "one set of two runs and the next one waits"
    assert max(queued) == 3
    assert "enable_block_reuse=False" in events("construct")[0]["kwargs"]["kv_cache_config"]
    assert engine.session.llm.args.kv_cache_config.enable_block_reuse is False


def test_a_prompt_longer_than_the_token_budget_is_scored_in_chunks(
    load: Load, oracle: Distribution, version: str
) -> None:
    long = [window(10, 300, 40), window(11, 1, 500)]
    engine = load(options={"max_num_tokens": "64", "enable_chunked_prefill": "true"})
    assert engine.facts.max_length == LONGEST
    check(oracle, long, engine.score(long))


@OLDEST
def test_the_window_that_was_asked_for_is_the_longest(load: Load, oracle: Distribution) -> None:
    engine = load(max_length=40)
    assert engine.facts.max_length == 40
    fitting = [window(12, 40, 1), window(13, 1, 40)]
    check(oracle, fitting, engine.score(fitting))
    with pytest.raises(ValueError, match="41 tokens is longer than 40"):
        engine.score([window(12, 41, 1)])


class Recorder:
    """An LLM that answers with the prompt, and counts what is in flight whenever a result is waited for."""

    def __init__(self) -> None:
        self.flying: deque[list[int]] = deque()
        self.at_wait: list[list[list[int]]] = []

    def generate_async(self, prompt: list[int], **_: Any) -> Any:
        self.flying.append(prompt)
        return SimpleNamespace(result=lambda: self._result(prompt))

    def _result(self, prompt: list[int]) -> list[int]:
        self.at_wait.append(list(self.flying))
        self.flying.remove(prompt)
        return prompt

    def shutdown(self) -> None:
        self.flying.clear()


def streamed(prompts: Sequence[list[int]], requests: int, tokens: int | None) -> Recorder:
    recorder = Recorder()
    library: Any = SimpleNamespace(sampling_params=lambda **_: None, version="0")
    session = Session(library, recorder, Workers(()), "checkpoint", requests, 0)
    assert list(session.stream(prompts, {}, "testing", tokens)) == list(enumerate(prompts))
    return recorder  # nothing runs that a close would end, and its garbage collection takes a while


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 6), st.none() | st.integers(1, 60))
def test_requests_in_flight_are_bounded_and_as_many_as_the_bounds_allow(
    lengths: list[int], requests: int, tokens: int | None
) -> None:
    prompts = [[index] * length for index, length in enumerate(lengths)]
    recorder = streamed(prompts, requests, tokens)
    for waited, flying in enumerate(recorder.at_wait):
        assert flying[0] == prompts[waited], "the oldest is waited for"
        held = sum(map(len, flying))
        assert len(flying) <= requests
        assert tokens is None or len(flying) == 1 or held <= tokens
        following = waited + len(flying)
        if following < len(prompts) and len(flying) < requests:
            assert tokens is not None
            assert held + lengths[following] > tokens
