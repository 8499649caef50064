"""The doubles do what the facts about TensorRT-LLM say, each version its own way."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pickle
import queue
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SHIPPED
from tests.contract.commands import Commands, Ended

PROMPT = [40, 478, 79, 891, 14, 389, 262, 199]
Make = Callable[..., Any]


@pytest.fixture
def trtllm(double: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, its engine in this process, which saves a start of Python and torch."""
    monkeypatch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
    import tensorrt_llm

    return tensorrt_llm


@pytest.fixture
def make(trtllm: Any) -> Make:
    """LLM(...) with block reuse off."""

    def build(reuse: bool = False, **kwargs: Any) -> Any:
        cache = trtllm.llmapi.KvCacheConfig(enable_block_reuse=reuse)
        return trtllm.LLM(str(SHIPPED), **{"kv_cache_config": cache, **kwargs})

    return build


@pytest.fixture
def run(commands: Commands, double_path: Path, tmp_path: Path) -> Callable[..., Ended]:
    """Run a program in a process of its own, whose workers have processes of their own."""

    def ended(code: str, **variables: str) -> Ended:
        head = f"import sys, os\nfrom tensorrt_llm import LLM, SamplingParams\nMODEL = {str(SHIPPED)!r}\n"
        (tmp_path / "program.py").write_text(head + code)
        script = str(tmp_path / "program.py")
        return commands.run(script, program="python", folder=tmp_path, double=double_path, variables=variables)

    return ended


def test_metadata(trtllm: Any, version: str) -> None:
    assert trtllm.__version__ == version
    assert importlib.metadata.version("tensorrt_llm") == version


def test_wrong_keywords(trtllm: Any, version: str) -> None:
    with pytest.raises(ValueError, match="LLM got invalid argument: nonsense"):
        trtllm.LLM(SHIPPED, nonsense=1)
    words = "invalid argument: quant_config" if version == "1.4.0rc1" else "specific to the TensorRT backend"
    with pytest.raises(ValueError, match=words):
        trtllm.LLM(SHIPPED, quant_config=None)
    with pytest.raises(ValueError, match="Extra inputs"):
        trtllm.LLM(SHIPPED, kv_cache_config={"nonsense": 1})
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        trtllm.LLM(SHIPPED, tensor_parallel_size=4, moe_tensor_parallel_size=2, moe_expert_parallel_size=4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        trtllm.llmapi.KvCacheConfig(free_gpu_memory_fraction=1.5)
    with pytest.raises(ValueError, match="int7"):
        trtllm.llmapi.KvCacheConfig(dtype="int7")
    assert trtllm.llmapi.KvCacheConfig(dtype="FP8").dtype == "fp8"


def test_fields_by_version(trtllm: Any, version: str) -> None:
    old, newest = version == "1.2.0", version == "1.4.0rc1"
    api = trtllm.llmapi
    fields = api.TorchLlmArgs.model_fields
    assert "quant_config" not in fields
    assert ("env_overrides" in fields) == ("nvfp4_gemm_config" in fields) == (not old)
    assert ("disable_flashinfer_sampling" in fields) == (version == "1.3.0rc8")
    assert ("enable_energy_metrics" in fields) == newest
    assert ("max_gpu_total_bytes" in api.KvCacheConfig.model_fields) == (not old)
    backends = typing.get_args(api.MoeConfig.model_fields["backend"].annotation)
    assert ("AUTO" in backends) == (not old)
    assert ("WIDEEP" in backends) == (not newest)
    assert api.MoeConfig().backend == ("CUTLASS" if old else "AUTO")
    names = {field.name for field in dataclasses.fields(trtllm.SamplingParams)}
    assert ("prompt_logprobs_simple_format" in names) == newest
    if newest:
        with pytest.raises(ValueError, match="TRTLLMSampler"):
            api.TorchLlmArgs(model=SHIPPED, sampler_type="TRTLLMSampler")
    assert hasattr(trtllm.LLM, "start_profile") == newest
    assert hasattr(api.RequestOutput, "abort") == (not old)


def test_sampling_params(trtllm: Any) -> None:
    params = trtllm.SamplingParams(prompt_logprobs=True)
    assert params.prompt_logprobs == 1
    assert params.max_tokens == 32
    with pytest.raises(TypeError):
        trtllm.SamplingParams(nonsense=1)
    with pytest.raises(AttributeError):
        params.nonsense = 1
    with pytest.raises(ValueError, match="greedy"):
        trtllm.SamplingParams(best_of=2)
    trtllm.SamplingParams(best_of=2, temperature=0.5)


def test_unreadable_quantisation(trtllm: Any, tmp_path: Path) -> None:
    config = json.loads((SHIPPED / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="bitsandbytes"):
        trtllm.LLM(tmp_path)


def test_submission(make: Make, trtllm: Any, caplog: pytest.LogCaptureFixture) -> None:
    params = trtllm.SamplingParams
    with make(max_num_tokens=16, max_seq_len=20) as llm:
        for tokens, words in ((17, "max_num_tokens"), (20, "max_num_tokens")):
            with pytest.raises(ValueError, match=words):
                llm.generate([5] * tokens, params(max_tokens=1))
        with pytest.raises(ValueError, match="max_tokens"):
            llm.generate(PROMPT, params(max_tokens=0))
        capped = llm.generate(PROMPT, params(max_tokens=50, ignore_eos=True, logprobs=0, detokenize=False))
        output = capped.outputs[0]
        assert (output.length, output.finish_reason, output.text) == (12, "length", "")
        assert [list(entry) for entry in output.logprobs] == [[token] for token in output.token_ids]
        with pytest.raises(RuntimeError, match="pickled"):
            pickle.dumps(llm)
        assert llm.get_stats() == []
    with make(max_seq_len=4096, enable_chunked_prefill=True, skip_tokenizer_init=True, max_num_tokens=16) as llm:
        assert "max_seq_len" in caplog.text
        with pytest.raises(ValueError, match="end_id"):
            llm.generate(PROMPT)
        over_long = trtllm.llmapi.RequestError if trtllm.__version__ >= "1.4" else ValueError
        with pytest.raises(over_long, match="max_seq_len"):
            llm.generate([5] * 1024, params(max_tokens=1, end_id=-1))
        assert llm.generate([5] * 1023, params(max_tokens=9, end_id=-1)).outputs[0].length == 1


def test_generation(make: Make, trtllm: Any) -> None:
    params = trtllm.SamplingParams
    with make(enable_iter_perf_stats=True, tokenizer=SHIPPED, dtype="float32") as llm:
        asked = [params(max_tokens=6, return_perf_metrics=True), params(max_tokens=2)]
        first, second = llm.generate([PROMPT, "Hello"], asked)
        assert first.prompt_token_ids == PROMPT
        assert (second.prompt, second.outputs[0].length, second.finished) == ("Hello", 2, True)
        assert second.outputs[0].request_perf_metrics is None
        times = first.outputs[0].request_perf_metrics.timing_metrics
        points = (times.arrival_time, times.first_scheduled_time, times.first_token_time, times.last_token_time)
        assert list(points) == sorted(points)
        assert times.last_token_time.total_seconds() > times.first_token_time.total_seconds()
        stats = llm.get_stats()
        assert sum(row["inflightBatchingStats"]["numContextRequests"] for row in stats) == 2
        assert len(stats) >= 6

        ids = first.outputs[0].token_ids
        place = next(place for place in range(1, 6) if ids[place] not in ids[:place])
        for ending in ({"stop_token_ids": [ids[place]]}, {"end_id": ids[place]}):
            output = llm.generate(PROMPT, params(max_tokens=6, **ending)).outputs[0]
            assert (output.token_ids, output.finish_reason) == (ids[:place], "stop")
        stop = llm.tokenizer.decode([ids[place]])
        if llm.tokenizer.encode(stop) == [ids[place]]:
            output = llm.generate(PROMPT, params(max_tokens=6, stop=stop, include_stop_str_in_output=True)).outputs[0]
            assert (output.token_ids, output.stop_reason) == (ids[: place + 1], stop)
            assert llm.generate(PROMPT, params(max_tokens=6, stop=stop, ignore_eos=True)).outputs[0].length == 6

        waiting = llm.generate_async(PROMPT, params(max_tokens=900, ignore_eos=True))
        with pytest.raises(queue.Empty):
            waiting.result(timeout=0)
        if hasattr(waiting, "abort"):
            waiting.abort()
            assert waiting.result().outputs[0].finish_reason == "cancelled"
        steps = [out.outputs[0].length for out in llm.generate_async(PROMPT, params(max_tokens=3), streaming=True)]
        assert steps == [1, 2, 3]


def test_prompt_logprobs(make: Make, trtllm: Any, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with make() as llm:

        def ask(**asked: Any) -> Any:
            return llm.generate(PROMPT, trtllm.SamplingParams(max_tokens=1, **asked))

        both = ask(prompt_logprobs=1, return_context_logits=True)
        logits, entries = both.context_logits, both.outputs[0].prompt_logprobs
        assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (len(PROMPT), 4096))
        assert len(entries) == len(PROMPT)
        assert ask(prompt_logprobs=1).context_logits is None
        logprobs = logits.log_softmax(-1)
        top = [int(row.argmax()) for row in logits]
        following = [*PROMPT[1:], both.outputs[0].token_ids[0]]
        extra: list[Any] = {"1.2.0": top, "1.3.0rc8": PROMPT, "1.4.0rc1": following}[version]
        for place, entry in enumerate(entries):
            assert set(entry) == {top[place], extra[place]}
            for token, found in entry.items():
                assert found.logprob == pytest.approx(float(logprobs[place, token]), abs=1e-5)
                assert found.rank == int((logits[place] > logits[place, token]).sum()) + 1
        none = ask(prompt_logprobs=0).outputs[0].prompt_logprobs
        assert [list(entry) for entry in none] == ([[token] for token in following] if version == "1.4.0rc1" else [])
        monkeypatch.setenv("TRTLLM_DOUBLE", "shift=1,no_rank,shift_logits=1")
        moved = ask(prompt_logprobs=1, return_context_logits=True)
        assert [set(entry) for entry in moved.outputs[0].prompt_logprobs] == [set(e) for e in entries[1:] + entries[:1]]
        assert {found.rank for entry in moved.outputs[0].prompt_logprobs for found in entry.values()} == {None}
        assert torch.equal(moved.context_logits, logits.roll(1, 0))


def test_block_reuse(make: Make, trtllm: Any, caplog: pytest.LogCaptureFixture) -> None:
    params = trtllm.SamplingParams(max_tokens=1, prompt_logprobs=1, return_context_logits=True)
    prompt = [token % 50 + 20 for token in range(70)]
    with make(reuse=True, num_postprocess_workers=0) as llm:
        assert len(llm.generate(prompt, params).context_logits) == 70
        again = llm.generate([*prompt[:40], *prompt[:10]], params)
        assert (len(again.context_logits), len(again.outputs[0].prompt_logprobs), again.cached_tokens) == (18, 18, 32)
        assert "reuse" in caplog.text
        assert llm.generate(prompt, params, cache_salt="own").cached_tokens == 0
    with make(num_postprocess_workers=1) as llm:
        assert llm.generate(prompt, params).context_logits is None


def test_moe_class(make: Make, trtllm: Any, version: str) -> None:
    with make(moe_config=trtllm.llmapi.MoeConfig(backend="TRTLLM"), model_kwargs={"num_hidden_layers": 2}) as llm:
        layers = llm._executor.engine.model_engine.model.model.layers
        assert len(layers) == 2
        experts = layers[1].mlp.experts
        names = (type(experts).__name__, type(getattr(experts, "backend", experts)).__name__)
        assert (
            names
            == {
                "1.2.0": ("CutlassFusedMoE", "CutlassFusedMoE"),
                "1.3.0rc8": ("ConfigurableMoE", "CutlassFusedMoE"),
                "1.4.0rc1": ("ConfigurableMoE", "TrtllmCutlassFusedMoeImpl"),
            }[version]
        )
        assert llm.generate(PROMPT, trtllm.SamplingParams(max_tokens=1)).finished


def test_failing_requests(make: Make, trtllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DOUBLE", "no_gpu")
    with pytest.raises(RuntimeError, match="Found no NVIDIA driver"):
        make()
    monkeypatch.setenv("TRTLLM_DOUBLE", "oom_load")
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        make()
    monkeypatch.setenv("TRTLLM_DOUBLE", "oom_at=1,fail_at=2,short_output")
    params = trtllm.SamplingParams(max_tokens=3, ignore_eos=True)
    with make() as llm:
        for words in ("CUDA out of memory", "illegal memory access"):
            with pytest.raises(trtllm.llmapi.RequestError, match=words):
                llm.generate(PROMPT, params)
        assert llm.generate(PROMPT, params).outputs[0].length == 2


SPAWNED = """
more = {} if "env_overrides" not in LLM._args_class.model_fields else {"env_overrides": {"MINE": "1"}}
llm = LLM(MODEL, tensor_parallel_size=RANKS, skip_tokenizer_init=True, **more)
assert not hasattr(llm._executor, "engine")
if hasattr(llm, "start_profile"):
    llm.start_profile(output_dir=sys.argv[1], activities=["CPU", "GPU"])
print(llm.generate([5, 6, 7], SamplingParams(max_tokens=2, end_id=-1)).outputs[0].length)
if hasattr(llm, "start_profile"):
    llm.stop_profile()
"""


def test_spawned(run: Callable[..., Ended], version: str, tmp_path: Path) -> None:
    """Two ranks in the newest version, one in the others; atexit ends them."""
    ranks = 2 if version == "1.4.0rc1" else 1
    single = {"TLLM_WORKER_USE_SINGLE_PROCESS": "1"} if ranks == 2 else {}
    code = SPAWNED.replace("RANKS", str(ranks)).replace("sys.argv[1]", repr(str(tmp_path)))
    done = run(code, TLLM_X="1", OTHER="1", **single)
    assert (done.code, done.out.strip(), done.left) == (0, "2", []), done.err
    events = done.events
    others = [event["event"] for event in events if event["event"] != "worker"]
    assert others == ["import", "construct", "request", "shutdown"]
    workers = [event for event in events if event["event"] == "worker"]
    assert len(workers) == ranks
    assert events[0]["pid"] not in {worker["pid"] for worker in workers}
    for worker in workers:
        assert worker["env"]["TLLM_X"] == "1"
        assert "OTHER" not in worker["env"]
        assert ("MINE" in worker["env"]) == (version != "1.2.0")
    request = next(event for event in events if event["event"] == "request")
    assert (request["n"], request["prompt_len"], request["queued"]) == (1, 3, 0)
    assert request["sampling"] == {"max_tokens": 2, "end_id": -1}
    if ranks == 2:
        traces = [json.loads((tmp_path / f"trace-rank{rank}.json").read_text())["traceEvents"] for rank in range(2)]
        assert {event["cat"] for event in traces[0]} == {"user_annotation", "kernel"}


DEATH = """
llm = LLM(MODEL, skip_tokenizer_init=True)
output = llm.generate_async([5, 6], SamplingParams(max_tokens=1, end_id=-1))
try:
    output.result(timeout=1)
except TimeoutError:
    print("waits", flush=True)
import threading
stop = threading.Thread(target=llm.shutdown, daemon=True)
stop.start()
stop.join(0.5)
print(stop.is_alive(), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("version", ["1.3.0rc8"], indirect=True, scope="session")
def test_dead_worker_goes_unnoticed(run: Callable[..., Ended]) -> None:
    """One version is enough: nothing of it depends on the version."""
    done = run(DEATH, TRTLLM_DOUBLE="die_after=1")
    assert done.out.split() == ["waits", "True"], done.err
