"""Generation and traces of the Transformers engine on the shipped model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_eval.data.window import Window
from moe_eval.engines.base import Completion, GenerationRequest
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.machine import nsys
from moe_eval.traces import ranges
from tests.engines.conftest import NEW, TEXTS


@pytest.fixture(scope="module")
def engine(shipped: Path, start: Callable[..., TransformersEngine]) -> TransformersEngine:
    return start(shipped, dtype="float32")


def until_text(tokenizer: Any, tokens: list[int], stop: str) -> Completion:
    """The fewest tokens that hold the text."""
    size = next(size for size in range(1, len(tokens) + 1) if stop in tokenizer.decode(tokens[:size]))
    return Completion(tuple(tokens[:size]), "stop")


def full(tokens: list[int]) -> Completion:
    return Completion(tuple(tokens), "length")


@pytest.mark.parametrize("rows", [None, 1, 2])
def test_greedy_completions_are_those_of_each_prompt_alone(
    engine: TransformersEngine, prompts: list[list[int]], greedy: list[list[int]], rows: int | None
) -> None:
    finished: dict[int, Completion] = {}
    completions = replace(engine, max_rows=rows).generate(prompts, GenerationRequest(NEW), done=finished.__setitem__)
    assert completions == [full(row) for row in greedy]
    assert finished == dict(enumerate(completions))


def test_no_prompts_give_no_completions(engine: TransformersEngine) -> None:
    assert engine.generate([], GenerationRequest(NEW)) == []


@pytest.mark.parametrize("several", [False, True])
def test_a_completion_ends_before_the_end_token(
    engine: TransformersEngine,
    prompts: list[list[int]],
    greedy: list[list[int]],
    several: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = greedy[0][5]
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", [4095, end] if several else end)
    expected = [Completion(tuple(row[: row.index(end)]), "stop") if end in row else full(row) for row in greedy]
    assert {completion.finish_reason for completion in expected} == {"stop", "length"}
    assert engine.generate(prompts, GenerationRequest(NEW)) == expected


def test_ignoring_the_end_token_gives_every_token_asked_for(
    engine: TransformersEngine, prompts: list[list[int]], greedy: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", greedy[0][5])
    completions = engine.generate(prompts, GenerationRequest(NEW, ignore_eos=True))
    assert [(len(each.token_ids), each.finish_reason) for each in completions] == [(NEW, "length")] * len(prompts)


def test_a_stop_text_ends_its_own_completion_alone(
    engine: TransformersEngine, tokenizer: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    stop = tokenizer.decode(greedy[0])[5:9]
    expected = [until_text(tokenizer, row, stop) if stop in tokenizer.decode(row) else full(row) for row in greedy]
    assert [completion.finish_reason for completion in expected].count("stop") in (2, 3)
    assert engine.generate(prompts, GenerationRequest(NEW, stop=("no such text", stop))) == expected


def test_a_stop_text_that_begins_in_the_prompt_ends_nothing(
    engine: TransformersEngine, tokenizer: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    """lm-evaluation-harness's own hf model looks for stop texts in the new tokens alone."""
    stop = TEXTS[0][-2:] + tokenizer.decode(greedy[0][:1])
    assert stop not in tokenizer.decode(greedy[0])
    assert engine.generate(prompts[:1], GenerationRequest(NEW, stop=(stop,))) == [full(greedy[0])]


def test_a_stop_text_ends_a_completion_of_a_model_without_an_end_token(
    engine: TransformersEngine,
    tokenizer: Any,
    prompts: list[list[int]],
    greedy: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine.model.generation_config, "eos_token_id", None)
    stop = tokenizer.decode(greedy[0])[5:9]
    assert stop not in tokenizer.decode(greedy[1])
    expected = [until_text(tokenizer, greedy[0], stop), full(greedy[1])]
    assert engine.generate(prompts[:2], GenerationRequest(NEW, stop=(stop,))) == expected


def test_a_stop_text_leaves_no_padding_where_the_end_token_is_ignored(
    engine: TransformersEngine, tokenizer: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    stop = tokenizer.decode(greedy[0])[5:9]
    (completion, _) = engine.generate(prompts[:2], GenerationRequest(NEW, stop=(stop,), ignore_eos=True))
    assert completion.token_ids == tuple(greedy[0][: len(completion.token_ids)])


def test_sampling_is_repeatable_valid_and_not_greedy(
    engine: TransformersEngine, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    request = GenerationRequest(NEW, temperature=2.0, ignore_eos=True)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append([list(completion.token_ids) for completion in engine.generate(prompts[:2], request)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != greedy[:2]
    assert all(len(row) == NEW and all(0 <= token < engine.facts.vocabulary for token in row) for row in drawn[0])


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_sampling_among_one_token_is_greedy(
    engine: TransformersEngine, prompts: list[list[int]], greedy: list[list[int]], narrow: dict[str, Any]
) -> None:
    completions = engine.generate(prompts[:2], GenerationRequest(NEW, temperature=1.0, **narrow))
    assert completions == [full(row) for row in greedy[:2]]


def test_prompts_that_do_not_fit_together_are_generated_apart(
    engine: TransformersEngine, prompts: list[list[int]], greedy: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(engine)
    generate = own._generation._generate_batch

    def scarce(batch: list[Any], request: GenerationRequest) -> list[Completion]:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(batch, request)

    monkeypatch.setattr(own._generation, "_generate_batch", scarce)
    assert own.generate(prompts[:3], GenerationRequest(NEW)) == [full(row) for row in greedy[:3]]


def test_a_trace_holds_the_matrix_products_of_what_ran(engine: TransformersEngine, tmp_path: Path) -> None:
    with engine.trace(tmp_path / "trace.json") as handle:
        engine.score([Window((5, 6, 7), (8, 9))])
    assert handle.path == tmp_path / "trace.json"
    events = json.loads(handle.path.read_text(encoding="utf-8"))["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert products
    assert all(event["dur"] > 0 for event in products)


def test_a_capture_names_steps_and_modules(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    @contextmanager
    def ranged(name: str) -> Iterator[None]:
        names.append(name)
        yield

    monkeypatch.setattr(nsys, "capture", ranged)
    monkeypatch.setattr(torch.cuda.nvtx, "range", ranged)
    with engine.capture("b1"):
        engine.generate([[5, 6]], GenerationRequest(2, ignore_eos=True))
    assert names[0] == "b1"
    assert [ranges.step(name) for name in names if ranges.step(name)] == ["prefill", "decode"]
    assert {module.layer for name in names if (module := ranges.module(name))} == {
        *range(engine.model.config.num_hidden_layers)
    }
