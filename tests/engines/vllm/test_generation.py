"""Completions, times, experts and traces of the vLLM engine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from moe_eval.engines import registry
from moe_eval.engines.base import Completion, GenerationRequest, RequestTimes
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.vllm import readers
from moe_eval.engines.vllm.engine import VllmEngine
from moe_eval.errors import EngineError, UsageError
from tests.conftest import SHIPPED
from tests.engines.conftest import NEW
from tests.engines.vllm.conftest import Load

TELLING = {"enable_return_routed_experts": True, "enforce_eager": True}


@pytest.mark.parametrize("ignore_eos", [True, False])
@pytest.mark.parametrize("timed", [True, False])
def test_completions_of_fixed_length_are_transformers_greedy_ones(
    engine: VllmEngine, prompts: list[list[int]], greedy: list[list[int]], ignore_eos: bool, timed: bool
) -> None:
    finished: dict[int, Completion] = {}
    request = GenerationRequest(NEW, ignore_eos=ignore_eos, timed=timed)
    completions = engine.generate(prompts, request, done=finished.__setitem__)
    assert [list(each.token_ids) for each in completions] == greedy
    assert {each.finish_reason for each in completions} == {"length"}
    assert finished == dict(enumerate(completions))
    assert all((each.times is not None) == timed for each in completions)


def test_times_count_from_the_queue_on_one_clock(engine: VllmEngine, prompts: list[list[int]]) -> None:
    completions = engine.generate(prompts, GenerationRequest(NEW, ignore_eos=True, timed=True))
    for each in completions:
        assert isinstance(each.times, RequestTimes)
        assert 0 <= each.times.scheduled < each.times.first_token < each.times.last_token < 60
    assert engine.generate([], GenerationRequest(NEW, timed=True)) == []


def test_without_statistics_there_are_no_times(load: Load, prompts: list[list[int]]) -> None:
    engine = load(options={"disable_log_stats": "true"})
    assert engine.generate(prompts[:1], GenerationRequest(2, ignore_eos=True, timed=True))[0].times is None
    assert readers.times(SimpleNamespace(metrics=SimpleNamespace(scheduled_ts=0.0))) is None


def test_no_counters_are_kept_for_a_server(load: Load) -> None:
    engine = load()
    assert engine.session.llm.llm_engine.log_stats is True
    assert engine.session.llm.llm_engine.logger_manager is None


def test_what_does_not_fit_is_refused(engine: VllmEngine) -> None:
    assert len(engine.generate([[5] * 1020], GenerationRequest(2, ignore_eos=True))[0].token_ids) == 2
    with pytest.raises(ValueError, match="1020 tokens and 3 new ones are more than 1022"):
        engine.generate([[5], [5] * 1020], GenerationRequest(3))


def test_a_stop_text_ends_a_completion_and_stays_in_it(
    engine: VllmEngine, reference: TransformersEngine, tokenizer: Any, prompts: list[list[int]]
) -> None:
    text = tokenizer.decode(reference.generate(prompts[:1], GenerationRequest(NEW, ignore_eos=True))[0].token_ids)
    stop = text[len(text) // 3 : len(text) // 3 + 3]
    request = GenerationRequest(NEW, stop=(stop, "never"), ignore_eos=True)
    found = engine.generate(prompts[:1], request)[0]
    assert found.finish_reason == "stop"
    assert stop in tokenizer.decode(found.token_ids)
    assert found == reference.generate(prompts[:1], request)[0]


def test_the_end_token_ends_a_completion_and_is_left_out(
    load: Load, spoil: Callable[..., Path], prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    expected = tuple(greedy[1])
    end = expected[4]
    folder = spoil(files={"generation_config.json": {"eos_token_id": [0, end]}})
    engine = load(folder)
    found = engine.generate(prompts[1:2], GenerationRequest(NEW))[0]
    assert found == Completion(expected[: expected.index(end)], "stop")
    assert engine.generate(prompts[1:2], GenerationRequest(NEW, ignore_eos=True))[0].token_ids == expected


def test_sampling_is_passed_on(engine: VllmEngine, prompts: list[list[int]]) -> None:
    torch.manual_seed(1)
    made = {engine.generate(prompts[:1], GenerationRequest(6, temperature=1.5))[0].token_ids for _ in range(4)}
    assert len(made) > 1
    one = GenerationRequest(6, temperature=1.5, top_k=1, top_p=0.9)
    assert len({engine.generate(prompts[:1], one)[0].token_ids for _ in range(2)}) == 1


def test_arguments_of_vllm_reach_it_by_their_own_names_and_it_judges_them(engine: VllmEngine) -> None:
    request = GenerationRequest(
        *(4, 2), stop_tokens=(7,), temperature=0.5, seed=3, further={"min_p": 0.1, "presence_penalty": 1.0}
    )
    sampling = engine._sampling(request)
    wanted = {"min_tokens": 2, "stop_token_ids": [0, 7], "seed": 3, "min_p": 0.1, "presence_penalty": 1.0}
    assert {name: sampling[name] for name in wanted} == wanted
    assert engine.generate([], request) == []
    with pytest.raises(EngineError, match="no_such"):
        engine.generate([], GenerationRequest(4, further={"no_such": 1}))


@pytest.mark.parametrize("timed", [True, False])
def test_another_length_than_asked_for_is_an_error(
    load: Load, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], timed: bool
) -> None:
    engine = load()
    monkeypatch.setenv("VLLM_DOUBLE", "short_output")
    with pytest.raises(EngineError, match="generated 3 tokens instead of 4"):
        engine.generate(prompts[:1], GenerationRequest(4, ignore_eos=True, timed=timed))


def test_a_request_that_is_broken_off_is_an_error(engine: VllmEngine) -> None:
    output = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1], finish_reason="abort")])
    with pytest.raises(EngineError, match=r"broke a request off \(abort\)"):
        engine._completion(output, GenerationRequest(1))


def test_experts_are_those_of_the_routers_of_transformers(load: Load, prompts: list[list[int]]) -> None:
    found = load(options=TELLING).routing(prompts, NEW)
    model = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    top_k = model.config.num_experts_per_tok
    for prompt, chosen in zip(prompts, found, strict=True):
        made = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0
        )
        with torch.no_grad():
            logits = model(input_ids=made[:, :-1], output_router_logits=True).router_logits
        expected = np.stack([each.topk(top_k, dim=-1).indices.numpy() for each in logits], axis=1)
        assert (chosen.dtype, chosen.shape) == (np.int16, (len(prompt) + NEW - 1, len(logits), top_k))
        np.testing.assert_array_equal(np.sort(chosen, axis=-1), np.sort(expected, axis=-1))


def test_layers_without_a_router_have_no_experts() -> None:
    chosen = [np.array([[[0, 0], [3, 1]], [[0, 0], [0, 2]]], dtype=np.int16)]
    assert readers.routed_layers(chosen)[0].tolist() == [[[3, 1]], [[0, 2]]]
    assert readers.routed_layers([]) == []
    assert readers.routed_layers(chosen, (1,))[0].tolist() == [[[3, 1]], [[0, 2]]]


def test_layers_with_a_router_that_takes_one_expert_are_those_of_the_configuration() -> None:
    chosen = [np.array([[[0], [0], [0], [5]], [[0], [2], [0], [0]]], dtype=np.int16)]
    assert readers.routed_layers(chosen)[0].shape == (2, 4, 1), "zeros may be a choice"
    assert readers.routed_layers(chosen, (1, 3))[0].tolist() == [[[0], [5]], [[2], [0]]]
    assert readers.routed_layers(chosen, (1, 3, 5))[0].shape == (2, 4, 1), "another model's layers"


def test_an_engine_that_was_not_loaded_to_tell_experts_says_how(engine: VllmEngine) -> None:
    with pytest.raises(UsageError, match="Add enable_return_routed_experts=true and enforce_eager=true"):
        engine.routing([[5]], 2)


@pytest.mark.parametrize(("knob", "words"), [("silent_experts", "Give moe_backend=triton"), ("drop", "for 3 tokens")])
def test_experts_that_are_not_told_are_an_error(
    load: Load, monkeypatch: pytest.MonkeyPatch, knob: str, words: str
) -> None:
    engine = load(options=TELLING)
    monkeypatch.setenv("VLLM_DOUBLE", knob)
    with pytest.raises(EngineError, match=words):
        engine.routing([[5, 6]], 2)


def test_a_trace_in_this_process_holds_what_ran(engine: VllmEngine, tmp_path: Path) -> None:
    with engine.trace(tmp_path / "trace.json") as handle:
        engine.generate([[5, 6]], GenerationRequest(2, ignore_eos=True))
    assert any("mm" in event.get("name", "") for event in json.loads(handle.path.read_text())["traceEvents"])


def test_a_spawned_worker_is_traced_by_vllm_where_its_profiler_is_set(load: Load, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="Give worker=in_process"),
        load(options={"worker": "spawned"}).trace(tmp_path / "trace.json"),
    ):
        pass
    settings = json.dumps({"profiler": "torch", "torch_profiler_dir": str(tmp_path / "profiles")})
    engine = load(options={"worker": "spawned", "profiler_config": settings})
    with engine.trace(tmp_path / "trace.json") as handle:
        engine.generate([[5, 6]], GenerationRequest(1))
    assert json.loads(handle.path.read_text()) == {"traceEvents": []}
    with engine.trace(tmp_path / "trace.json.gz"):
        pass
    with gzip.open(tmp_path / "trace.json.gz") as packed:
        assert json.load(packed) == {"traceEvents": []}


@pytest.mark.parametrize("worker", ["in_process", "spawned"])
def test_captures_are_opened_by_vllm_in_its_workers(load: Load, worker: str) -> None:
    engine = load(options={"worker": worker, **registry.named("vllm").captures})
    with engine.capture("b1"):
        engine.generate([[5, 6]], GenerationRequest(1))
        assert engine.session.llm.captures == ["start"]
    with pytest.raises(EngineError), engine.capture("b1"):
        raise EngineError("it broke")
    assert engine.session.llm.captures == ["start", "stop"] * 2


def test_a_spawned_worker_opens_no_capture_unless_it_was_loaded_to(load: Load) -> None:
    with (
        pytest.raises(UsageError, match="so its workers open no capture"),
        load(options={"worker": "spawned"}).capture("b1"),
    ):
        pass


def test_a_closed_engine_holds_nothing(load: Load) -> None:
    engine = load()
    core = engine.session.llm.llm_engine
    engine.close()
    engine.close()
    assert engine.session.llm is None
    assert core._model is None
