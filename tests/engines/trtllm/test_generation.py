"""Completions, times and traces of the TensorRT-LLM engine against Transformers' own greedy decoding."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from moe_eval.data.window import Window
from moe_eval.engines import requests
from moe_eval.engines.base import Completion, GenerationRequest, RequestTimes
from moe_eval.engines.trtllm.engine import TrtllmEngine
from moe_eval.errors import EngineError, UsageError, WorkerDied
from tests.engines.conftest import NEW
from tests.engines.trtllm.conftest import EVERY, NEWEST, OLDEST, Load, started

CLASSES = {"1.2.0": "CutlassFusedMoE", "1.3.0rc8": "CutlassFusedMoE", "1.4.0rc1": "TrtllmCutlassFusedMoeImpl"}


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_completions_of_fixed_length_are_transformers_greedy_ones(
    engine: TrtllmEngine, prompts: list[list[int]], greedy: list[list[int]], ignore_eos: bool
) -> None:
    finished: dict[int, Completion] = {}
    request = GenerationRequest(NEW, ignore_eos=ignore_eos)
    completions = engine.generate(prompts, request, done=finished.__setitem__)
    assert completions == [Completion(tuple(row), "length") for row in greedy]
    assert finished == dict(enumerate(completions))


def test_nothing_to_generate_is_no_error(engine: TrtllmEngine) -> None:
    assert engine.generate([], GenerationRequest(NEW)) == []


def test_what_does_not_fit_is_refused(engine: TrtllmEngine) -> None:
    assert len(engine.generate([[5] * 1020], GenerationRequest(2, ignore_eos=True))[0].token_ids) == 2
    with pytest.raises(ValueError, match="1020 tokens and 3 new ones are more than 1022"):
        engine.generate([[5], [5] * 1020], GenerationRequest(3))


def test_a_stop_text_ends_a_completion_and_stays_in_it(
    engine: TrtllmEngine, tokenizer: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    stop = tokenizer.decode(greedy[0][3:5])
    assert tokenizer.encode(stop) == greedy[0][3:5]
    first, other = engine.generate([prompts[0], prompts[2]], GenerationRequest(NEW, stop=("no such text", stop)))
    assert first == Completion(tuple(greedy[0][:5]), "stop")
    if stop not in tokenizer.decode(greedy[2]):
        assert other == Completion(tuple(greedy[2]), "length")


@EVERY
@pytest.mark.usefixtures("double")
def test_the_end_token_ends_a_completion_and_is_left_out(
    spoil: Callable[..., Path], prompts: list[list[int]], greedy: list[list[int]], tokenizer: Any
) -> None:
    end = greedy[0][3]
    assert end not in greedy[0][:3]
    text = tokenizer.convert_ids_to_tokens(end)
    files = {"generation_config.json": {"eos_token_id": [end, 0]}, "tokenizer_config.json": {"eos_token": text}}
    folder = spoil(files=files)
    engine = started(transformers.AutoTokenizer.from_pretrained(folder), folder)
    assert engine.ends == {end, 0}
    assert engine.generate(prompts[:1], GenerationRequest(NEW)) == [Completion(tuple(greedy[0][:3]), "stop")]
    (ignored,) = engine.generate(prompts[:1], GenerationRequest(NEW, ignore_eos=True))
    assert ignored == Completion(tuple(greedy[0]), "length")
    engine.close()


def read(engine: TrtllmEngine, request: GenerationRequest, **output: Any) -> Completion:
    return requests.completion("TensorRT-LLM", SimpleNamespace(**output), request, engine.ends)


def test_an_end_token_that_the_library_returned_is_cut_off(engine: TrtllmEngine) -> None:
    output = {"token_ids": [5, 6, 0], "finish_reason": "stop"}
    assert read(engine, GenerationRequest(NEW), **output).token_ids == (5, 6)
    assert read(engine, GenerationRequest(3, ignore_eos=True), **output).token_ids == (5, 6, 0)


@pytest.mark.parametrize("reason", ["cancelled", "timeout", None])
def test_a_request_that_was_broken_off_is_no_completion(engine: TrtllmEngine, reason: str | None) -> None:
    with pytest.raises(EngineError, match=f"broke a request off \\({reason}\\)"):
        read(engine, GenerationRequest(NEW), token_ids=[5], finish_reason=reason)


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (GenerationRequest(4, ignore_eos=True), {"max_tokens": 4, "ignore_eos": True, "detokenize": False}),
        (GenerationRequest(4, top_p=0.5, top_k=3), {"max_tokens": 4, "detokenize": False}),
        (
            GenerationRequest(4, temperature=0.7, top_p=0.9, top_k=5),
            {"max_tokens": 4, "detokenize": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5},
        ),
        (GenerationRequest(4, temperature=1.0), {"max_tokens": 4, "detokenize": False, "temperature": 1.0}),
        (
            GenerationRequest(4, stop=("\n\n",), timed=True),
            {"max_tokens": 4, "stop": ["\n\n"], "include_stop_str_in_output": True, "return_perf_metrics": True},
        ),
    ],
)
def test_sampling_settings_are_passed_on(
    engine: TrtllmEngine, events: Any, request_: GenerationRequest, wanted: dict[str, Any]
) -> None:
    engine.generate([[5, 6, 7]], request_)
    ends = {} if request_.ignore_eos else {"stop_token_ids": sorted(engine.ends)}
    assert [each["sampling"] for each in events("request")] == [wanted | ends]


@pytest.mark.parametrize(
    ("release", "further", "is_applied"),
    [
        ("1.3.0rc24", {"repetition_penalty": 1.2}, True),
        ("1.3.0rc20", {"repetition_penalty": 1.2}, False),
        ("1.4.0rc4", {"bad": ["x"]}, False),
    ],
)
def test_what_the_version_s_own_sampler_would_ignore_is_refused(
    engine: TrtllmEngine,
    events: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    release: str,
    further: dict[str, Any],
    is_applied: bool,
) -> None:
    monkeypatch.setattr(engine.session, "installed", replace(engine.session.installed, version=release))
    request = GenerationRequest(4, further=further, stop_tokens=(9,), min_new_tokens=1)
    if not is_applied:
        with pytest.raises(UsageError, match=f"TensorRT-LLM {release} ignores {next(iter(further))}"):
            engine.generate([], request)
        arguments = {**engine.facts.arguments, "sampler_type": "TRTLLMSampler"}
        monkeypatch.setattr(engine, "facts", replace(engine.facts, arguments=arguments))
    engine.generate([[5, 6, 7]], request)
    ends = sorted({*engine.ends, 9})
    sampling = {"max_tokens": 4, "min_tokens": 1, "detokenize": False, "stop_token_ids": ends, **further}
    assert [event["sampling"] for event in events("request")] == [sampling]


def test_times_are_in_order_and_only_there_when_asked_for(engine: TrtllmEngine, prompts: list[list[int]]) -> None:
    for completion in engine.generate(prompts, GenerationRequest(6, ignore_eos=True, timed=True)):
        times = completion.times
        assert isinstance(times, RequestTimes)
        assert 0 <= times.scheduled <= times.first_token < times.last_token < 60
    assert all(each.times is None for each in engine.generate(prompts, GenerationRequest(2)))


def test_times_of_a_batch_count_from_its_first_request(
    engine: TrtllmEngine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    send, gap = engine.session.llm.generate_async, 0.3

    def slowly(*arguments: Any, **more: Any) -> Any:
        time.sleep(gap)
        return send(*arguments, **more)

    monkeypatch.setattr(engine.session.llm, "generate_async", slowly)
    found = engine.generate(prompts[:3], GenerationRequest(2, ignore_eos=True, timed=True))
    times = [each.times for each in found if each.times is not None]
    assert [gap * at <= each.scheduled < gap * (at + 1) for at, each in enumerate(times)] == [True] * 3


@NEWEST
@pytest.mark.parametrize("case", [("1.1.2", 1, True), ("1.1.2", 4, False), ("1.2.0", 4, True), ("own", 4, False)])
def test_a_first_token_that_an_old_version_stamps_on_waiting_requests_is_no_time(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: tuple[str, int, bool]
) -> None:
    """Of a version and a number of prompts, one of which fits into a step: whether there are times."""
    version_, prompts_, timed = case
    monkeypatch.setenv("TRTLLM_DOUBLE", f"version={version_}")
    engine = load(max_length=16, options={"max_num_tokens": 18})
    found = engine.generate([[5] * 10] * prompts_, GenerationRequest(2, ignore_eos=True, timed=True))
    assert [each.times is not None for each in found] == [timed] * prompts_
    assert ("Its own times are omitted" in caplog.text) is not timed
    assert engine.session.llm.args.return_perf_metrics is True, "else arrival is when the loop takes a request up"


@NEWEST
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_ends_in_this_process_is_noticed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    monkeypatch.setenv("TRTLLM_DOUBLE", f"end_loop_at={engine.session.llm._executor.engine.started + 2}")
    with pytest.raises(WorkerDied, match="The loop of TensorRT-LLM's engine in this process has ended"):
        engine.generate([[5, 6], [7, 8], [9, 10]], GenerationRequest(2))


def test_a_trace_in_process_holds_the_matrix_products(engine: TrtllmEngine, tmp_path: Path) -> None:
    with engine.trace(tmp_path / "trace.json") as handle:
        engine.score([Window((5, 6, 7), (8, 9))])
    assert handle.path == tmp_path / "trace.json"
    events = json.loads(handle.path.read_text(encoding="utf-8"))["traceEvents"]
    assert any(event.get("name") == "aten::mm" and event["dur"] > 0 for event in events)


def test_the_experts_are_named_as_they_are(engine: TrtllmEngine, version: str) -> None:
    facts = engine.facts
    assert facts.worker == "in_process"
    assert (facts.moe_backend_requested, facts.moe_backend_observed) == ("auto", CLASSES[version])
    assert (facts.precision, facts.dtype, facts.architecture) == ("fp32", "float32", "Qwen3MoeForCausalLM")
    assert (facts.vocabulary, facts.emulated, facts.device) == (4096, False, "cpu")


@NEWEST
def test_a_substituted_backend_is_observed(load: Load) -> None:
    facts = load(options={"moe_backend": "DEEPGEMM"}).facts
    assert (facts.moe_backend_requested, facts.moe_backend_observed) == ("DEEPGEMM", CLASSES["1.4.0rc1"])


@OLDEST
def test_closing_twice_is_closing_once(load: Load, events: Any) -> None:
    engine = load()
    engine.close()
    engine.close()
    assert engine.session.llm is None, "its model can go"
    assert len(events("shutdown")) == 1
